"""Bytes and operations of a step, counted by hand and against each other."""

from dataclasses import replace
from typing import Any

import pytest

from miudo.config import LatentAttention, LayerConfig, ModelConfig, Position
from miudo.engine.probe import Peaks
from miudo.evaluate.roofline import Numbers, StepWork, bounds, step_work
from miudo.tensors import DType, Role, tensor_table


def tiny(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": 10, "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
        "head_dim": 16, "d_ff": 64, "max_positions": 100,
    }  # fmt: skip
    return ModelConfig.uniform(**(values | changes))


def types(config: ModelConfig, matrices: DType, head: DType | None = None) -> Numbers:
    chosen = {}
    for spec in tensor_table(config):
        outside = spec.role in (Role.EMBED, Role.HEAD) and head is not None
        chosen[spec.name] = DType.F32 if len(spec.shape) == 1 else head if outside else matrices
    return Numbers(chosen)


# q 32 x 32, k and v 16 x 32, o 32 x 32, gate, up and down 64 x 32.
INSIDE = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32
NORMS = 3 * 32 * 4


def test_one_step_of_a_small_model_counted_by_hand() -> None:
    config = tiny()
    work = step_work(config, types(config, DType.Q8_0), [(5, 1)])
    head = 10 * 32
    assert work.weight_bytes == (INSIDE + head) // 32 * 34 + NORMS
    # A key and a value of 16 numbers: five read, one written.
    assert work.cache_bytes == 2 * 16 * 2 * (5 + 1)
    assert work.int8_ops == 2 * (INSIDE + head)
    assert work.float_ops == 2 * (16 + 16) * 2 * 6  # two heads, six positions
    assert (work.bytes, work.ops) == (
        work.weight_bytes + work.cache_bytes, work.int8_ops + work.float_ops,
    )  # fmt: skip


def test_float_weights_and_float_activations_are_float_operations() -> None:
    config = tiny()
    rounded = step_work(config, types(config, DType.Q8_0), [(0, 1)])
    for work in (
        step_work(config, types(config, DType.F16), [(0, 1)]),
        step_work(config, replace(types(config, DType.Q8_0), int8=False), [(0, 1)]),
    ):
        assert (work.int8_ops, work.ops) == (0, rounded.ops)


def test_an_untied_table_is_looked_up_and_its_head_is_read() -> None:
    tied, untied = tiny(), tiny(tie_embeddings=False)
    first = step_work(tied, types(tied, DType.F32), [(0, 3)])
    second = step_work(untied, types(untied, DType.F32), [(0, 3)])
    assert second.weight_bytes == first.weight_bytes + 3 * 32 * 4
    assert second.ops == first.ops


def test_positions_are_looked_up() -> None:
    config = tiny(position=Position.LEARNED)
    with_table = step_work(config, types(config, DType.F16), [(0, 2)])
    without = step_work(tiny(), types(tiny(), DType.F16), [(0, 2)])
    assert with_table.weight_bytes == without.weight_bytes + 2 * 32 * 2


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("held", [0, 2, 7])
def test_a_prompt_does_the_work_of_its_steps_but_reads_weights_once(
    window: int | None, held: int
) -> None:
    config = tiny(window=window)
    kinds = types(config, DType.Q8_0)
    whole = step_work(config, kinds, [(held, 5)])
    steps = [step_work(config, kinds, [(held + i, 1)]) for i in range(5)]
    head = 2 * 10 * 32  # the prompt wants logits once
    assert whole.float_ops == sum(step.float_ops for step in steps)
    assert whole.int8_ops == sum(step.int8_ops for step in steps) - 4 * head
    assert whole.weight_bytes == steps[0].weight_bytes


def test_a_window_bounds_what_is_read_and_seen() -> None:
    config = tiny(window=4)
    kinds = types(config, DType.F32)
    far = step_work(config, kinds, [(60, 1)])
    assert far == step_work(config, kinds, [(3, 1)])
    assert far.cache_bytes == 2 * 16 * 2 * 4


def test_a_batch_reads_weights_once_and_each_cache() -> None:
    config = tiny()
    kinds = types(config, DType.Q8_0)
    one = step_work(config, kinds, [(9, 1)])
    four = step_work(config, kinds, [(9, 1)] * 4)
    assert four.weight_bytes == one.weight_bytes
    assert four.cache_bytes == 4 * one.cache_bytes
    assert four.ops == 4 * one.ops


def test_latent_attention_counts_its_narrow_matrices_and_wide_cache() -> None:
    layer = LayerConfig(n_heads=2, n_kv_heads=2, head_dim=24, v_head_dim=16, d_ff=64, rotary_dim=8)
    config = replace(tiny(), layers=(layer,), latent=LatentAttention(kv_rank=32, rope_dim=8))
    work = step_work(config, types(config, DType.F32), [(0, 1)])
    matrices = sum(
        spec.shape[0] * spec.shape[1] for spec in tensor_table(config) if len(spec.shape) == 2
    )
    assert work.cache_bytes == 2 * (24 + 16) * 2
    assert work.ops == 2 * matrices + 2 * (24 + 16) * 2


@pytest.mark.parametrize(
    ("cache", "head_dim", "row"),
    [
        ("f32", 16, 64),
        ("f16", 16, 32),
        ("bf16", 16, 32),
        ("int8", 16, 34),
        ("int8", 40, 68),
        ("int4", 64, 40),
    ],
)
def test_keys_and_values_are_of_the_caches_type(cache: Any, head_dim: int, row: int) -> None:
    config = tiny(head_dim=head_dim)
    work = step_work(config, replace(types(config, DType.F32), cache=cache), [(2, 1)])
    assert work.cache_bytes == 2 * row * 3


def test_qwen2_as_it_was_counted_elsewhere() -> None:
    # 0.5B in Q4_0 with its head in Q8_0: 346 MB a token; 0.738 G operations a prompt token.
    config = ModelConfig.uniform(
        vocab_size=151936, d_model=896, n_layers=24, n_heads=14, n_kv_heads=2, d_ff=4864,
        max_positions=32768, qkv_bias=True,
    )  # fmt: skip
    kinds = types(config, DType.Q4_0, DType.Q8_0)
    step = step_work(config, kinds, [(0, 1)])
    assert step.weight_bytes == pytest.approx(346e6, rel=0.005)
    prompt = step_work(config, kinds, [(0, 512)])
    assert prompt.ops / 512 == pytest.approx(0.738e9, rel=0.01)


def test_bounds_are_times_at_the_machines_rates() -> None:
    work = StepWork(weight_bytes=900, cache_bytes=100, int8_ops=4000, float_ops=600)
    peaks = Peaks(0, read_bytes_per_s=100.0, int8_ops_per_s=1000.0, float_ops_per_s=200.0)
    assert bounds(work, peaks) == (10.0, 7.0)
