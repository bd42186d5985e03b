"""Tiny decoders and token batches for the compression tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miudo.config import Activation, Block, Mlp, ModelConfig, Norm, Parallel, Position, QkNorm
from miudo.decoder.decoder import Decoder

VOCAB = 96


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[[str], Decoder]:
    """Makes a decoder of a kind: llama tied or not, gpt2, qwen, neox, gemma (2)."""

    def make(kind: str) -> Decoder:
        rest: dict[str, object] = {"tie_embeddings": kind != "llama-untied"}
        if kind == "gpt2":
            rest |= {"norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED}
            rest |= {"mlp": Mlp.PLAIN, "activation": Activation.GELU_TANH, "mlp_bias": True}
            rest |= {"qkv_bias": True, "o_bias": True}
        elif kind == "qwen":
            rest |= {"qk_norm": QkNorm.HEAD, "norm_eps": 1e-6}
        elif kind == "neox":
            rest |= {"norm": Norm.LAYER, "norm_bias": True, "parallel": Parallel.TWO_NORMS}
            rest |= {"mlp": Mlp.PLAIN, "activation": Activation.GELU, "mlp_bias": True}
            rest |= {"qkv_bias": True, "o_bias": True, "rotary_dim": 4, "tie_embeddings": False}
        elif kind == "gemma":
            rest |= {"block": Block.SANDWICH, "activation": Activation.GELU_TANH}
            rest |= {"embed_scale": 8.0, "attn_softcap": 50.0, "logit_softcap": 30.0}
            rest |= {"norm_eps": 1e-6}
        config = ModelConfig.uniform(
            n_layers=3,
            d_model=64,
            n_heads=4,
            n_kv_heads=4 if kind in ("gpt2", "neox") else 2,
            d_ff=160,
            vocab_size=VOCAB,
            max_positions=48,
            bos_id=0,
            eos_ids=(0,),
            **rest,
        )
        decoder = Decoder(config)
        decoder.initialise(11)
        return decoder

    return make


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB, (2, 17), generator=generator) for _ in range(3)]
