"""Where a family's file holds each tensor: under which name, with which others, in which order.

For: what `miudo.formats.layout` has to undo, as data.
Not for: doing it.
Read next: `miudo.families.family`, `miudo.formats.layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.tensors import tensor_table

__all__ = ["PLAIN", "Layout", "Source", "both_parts", "sources"]


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor in a file: `targets` stacked on the out axis, `[in, out]` if transposed.

    The rows lie in `groups`: one share of each target, then the next share of each. `skipped`
    rows come first that mean nothing. The file's values plus `plus` are miudo's.
    """

    name: str
    targets: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    skipped: int = 0
    plus: float = 0.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where files differ from miudo's order, by canonical names without their layer.

    `transposed` matrices lie as `[in, out]`. Rows of `by_head` tensors that share one in the file
    lie head by head: q, k and v of the first, then of the second. `shifted` tensors lack 1 in
    the file. `skipped` counts rows at a tensor's beginning that mean nothing.
    """

    transposed: frozenset[str] = frozenset()
    by_head: frozenset[str] = frozenset()
    shifted: frozenset[str] = frozenset()
    skipped: Mapping[str, int] = field(default_factory=dict)


PLAIN = Layout()
"""Every tensor lies as miudo has it."""


def both_parts(layer: str, names: Mapping[str, str]) -> dict[str, str]:
    """Returns names of weights and biases in files, `layer` before them, for modules `names`."""
    parts = ("weight", "bias")
    return {f"{ours}.{p}": f"{layer}{theirs}.{p}" for ours, theirs in names.items() for p in parts}


def sources(
    config: ModelConfig, names: Mapping[str, str], layout: Layout = PLAIN
) -> tuple[Source, ...]:
    """Returns every tensor that a file of `config` holds, in the tensor table's order.

    Raises ModelFileError for a tensor that `names` has no place for.
    """
    found: dict[str, Source] = {}
    for spec in tensor_table(config):
        at = "" if spec.layer is None else f"layers.{spec.layer}."
        key = spec.name.removeprefix(at)
        if key not in names:
            raise ModelFileError(f"this family has no place for {spec.name}")
        name = names[key].replace("{i}", str(spec.layer))
        if name in found:
            held = found[name]
            found[name] = replace(held, targets=(*held.targets, spec.name))
            continue
        by_head = spec.layer is not None and key in layout.by_head
        found[name] = Source(
            name,
            (spec.name,),
            transposed=key in layout.transposed,
            groups=config.layers[spec.layer or 0].n_kv_heads if by_head else 1,
            skipped=layout.skipped.get(key, 0),
            plus=1.0 if key in layout.shifted else 0.0,
        )
    return tuple(found.values())
