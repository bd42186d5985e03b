"""What is said of tensors that a file holds in another type than was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from miudo.formats.precision import type_notes
from miudo.tensors import DType


def test_tensors_that_differ_in_layer_alone_are_one_note() -> None:
    rows = [("embed.weight", DType.Q8_0, "no blocks")]
    rows += [(f"layers.{i}.mlp.up.weight", DType.Q8_0, "no blocks") for i in (0, 1, 2, 5, 7, 8)]
    rows += [("layers.6.mlp.up.weight", DType.F16, "no blocks")]
    rows += [("layers.9.mlp.up.weight", DType.Q8_0, "other")]
    assert type_notes(rows) == (
        "embed.weight is Q8_0: no blocks",
        "layers.0-2,5,7-8.mlp.up.weight is Q8_0: no blocks",
        "layers.6.mlp.up.weight is F16: no blocks",
        "layers.9.mlp.up.weight is Q8_0: other",
    )


@given(st.sets(st.integers(0, 40), min_size=1))
def test_every_layer_is_named_and_no_other(layers: set[int]) -> None:
    rows = [(f"layers.{i}.attn.q.weight", DType.F16, "why") for i in sorted(layers)]
    (note,) = type_notes(rows)
    runs = note.removeprefix("layers.").partition(".")[0].split(",")
    named = [range(int(a), int(b or a) + 1) for a, _, b in (run.partition("-") for run in runs)]
    assert [i for run in named for i in run] == sorted(layers)
