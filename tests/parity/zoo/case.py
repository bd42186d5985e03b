"""One line of the conformance list: a tiny model of another program, all of it noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["TINY", "VOCAB", "Case", "ids", "noised", "of_class"]

VOCAB = 97
# Longer than every window and every original length below.
LENGTH = 33
TINY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Case:
    """How a family's model is made, and which columns of the table it has.

    `make` gives the reference, `save` writes its folder as it is found in the world. At each of
    `lengths` a session of that context is compared. `returns`: `transformers` loads the folder
    that miudo writes. `llama_cpp` is the GGUF architecture, empty where llama.cpp has none;
    `logprob` its bound there, greater where it computes an activation by a table.
    """

    family: str
    make: Callable[[], Any]
    save: Callable[[Any, Path], None] = _save
    lengths: tuple[int, ...] = (LENGTH,)
    returns: bool = True
    llama_cpp: str = ""
    logprob: float = 1e-3


def of_class(name: str, values: dict[str, Any], *, head: str = "ForCausalLM") -> Any:
    """Returns a model of a class of `transformers`."""
    config = getattr(transformers, name.replace("Gemma3", "Gemma3Text") + "Config")(**values)
    config._attn_implementation = "eager"
    return getattr(transformers, name + head)(config)


def noised(model: Any) -> Any:
    """Returns `model` with every parameter noise: initial values would hide most errors."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.25 if parameter.ndim > 1 else 0.3
            scale = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.normal_(1.0 if scale else 0.0, spread, generator=generator)
    return model.eval()


def ids(length: int) -> list[int]:
    """Returns `length` ids without an order that a model could lean on."""
    return [3 + (7 * i + i * i) % (VOCAB - 3) for i in range(length)]
