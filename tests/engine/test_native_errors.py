"""What the native engine refuses, and that a refusal changes nothing."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.engine.native_door import config_values, layer_values, load_native
from miudo.errors import MissingError, ModelFileError, RequestError, ResourceError
from miudo.protocol import SamplingSettings, SeqWork, Want
from miudo.tensors import DType, StoredTensor, tensor_table

PAGE_BYTES = 32 * 2 * 2 * (8 + 16) * 2  # positions, layers, kv heads, key and padded value, float16


def with_tensor(model: Any, name: str, tensor: StoredTensor | None) -> Any:
    weights = {k: v for k, v in model.weights.items() if k != name}
    if tensor is not None:
        weights[name] = tensor
    return replace(model, weights=weights)


def test_weights_that_do_not_fit_the_config_are_refused(llama: Any) -> None:
    name = "layers.1.mlp.up.weight"
    other = StoredTensor.from_f32(np.zeros((80, 47), np.float32))
    for model, says in [
        (with_tensor(llama, name, None), f"{name} is missing"),
        (with_tensor(llama, name, other), r"\[80, 47\]"),
        (with_tensor(llama, "layers.2.x", other), "layers.2.x is unknown"),
    ]:
        with pytest.raises(ModelFileError, match=says):
            NativeEngine(model)


@pytest.mark.parametrize("cut", [1, 4, 100])
def test_a_tensor_with_too_few_bytes_is_refused(llama: Any, cut: int) -> None:
    right = llama.weights["embed.weight"]
    short = StoredTensor(right.dtype, right.shape, right.data[:-cut])
    with pytest.raises(ModelFileError, match=r"embed.weight has \d+ bytes"):
        NativeEngine(with_tensor(llama, "embed.weight", short))


def test_rows_that_are_no_whole_blocks_are_refused(llama: Any) -> None:
    wrong = StoredTensor(DType.Q8_0, (131, 48), np.zeros(131 * 51, np.uint8))
    with pytest.raises(ModelFileError, match=r"embed.weight has"):
        NativeEngine(with_tensor(llama, "embed.weight", wrong))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("vocab_size", 0, "vocab_size is 0"),
        ("vocab_size", -5, "vocab_size is -5"),
        ("d_model", 1 << 40, "d_model is"),
        ("max_positions", 1 << 62, "max_positions is"),
        ("norm", 2, "norm is 2"),
        ("block", 3, "block is 3"),
        ("parallel", 3, "parallel is 3"),
        ("qk_norm", 3, "qk_norm is 3"),
        ("activation", -1, "activation is -1"),
        ("norm_eps", float("nan"), "norm_eps"),
        ("attention_factor", 0.0, "attention_factor"),
        ("embed_scale", -1.0, "embed_scale"),
        ("residual_scale", float("inf"), "residual_scale"),
        ("logit_scale", float("nan"), "logit_scale"),
        ("attn_scale", -0.1, "attn_scale"),
        ("attn_softcap", float("nan"), "attn_softcap"),
        ("logit_softcap", 1e9, "logit_softcap"),
        ("latent.kv_rank", -1, "latent.kv_rank is -1"),
        ("latent.kv_rank", 8, "latent.rope_dim is 0"),
    ],
)
def test_the_c_door_checks_again(llama: Any, field: str, value: float, says: str) -> None:
    native = load_native()
    values = {**config_values(llama.config), field: value}
    with pytest.raises(native.NativeError, match=says):
        native.Engine(values, layer_values(llama.config), 1, True, 1, 1 << 20)


@pytest.mark.parametrize(
    "layer",
    [
        (0, 1, 8, 8, 8, 0, (), ()),
        (6, 4, 8, 8, 8, 0, (), ()),
        (6, 2, 8, 1 << 30, 8, 0, (), ()),
        (6, 2, 8, 8, 8, -1, (), ()),
        (6, 2, 7, 8, 8, 0, (1.0,) * 4, ()),
        (6, 2, 8, 8, 8, 0, (1.0,) * 5000, ()),
        (6, 2, 8, 8, 8, 0, (float("inf"),), ()),
        (6, 2, 8, 8, 8, 0, (), (1.0,) * 5),
        (6, 2, 8, 8, 8, 0, (), (float("nan"),) * 6),
    ],
)
def test_the_c_door_checks_layers(llama: Any, layer: tuple[Any, ...]) -> None:
    native = load_native()
    with pytest.raises(native.NativeError):
        native.Engine(config_values(llama.config), [layer], 1, True, 1, 1 << 20)
    with pytest.raises(native.NativeError, match="n_layers"):
        native.Engine(config_values(llama.config), [], 1, True, 1, 1 << 20)


@pytest.mark.parametrize(
    ("changes", "layer", "says"),
    [
        ({"norm_bias": 1, "norm_weight": 0}, {}, "norm_bias is set"),
        ({"parallel": 1, "block": 1}, {}, "norms before"),
        ({"qkv_bias": 1}, {}, "neither qkv_bias nor qk_norm"),
        ({"qk_norm": 2}, {}, "neither qkv_bias nor qk_norm"),
        ({"latent.rope_dim": 9}, {}, "rope_dim is 9"),
        ({}, {1: 3}, "as many keys as queries"),
        ({}, {6: (1.0, 0.5)}, "not what the frequencies rotate"),
    ],
)
def test_the_c_door_checks_what_goes_together(
    llama: Any, changes: dict[str, Any], layer: dict[int, Any], says: str
) -> None:
    native = load_native()
    latent = {"latent.q_rank": 4, "latent.kv_rank": 4, "latent.rope_dim": 2}
    values = {**config_values(llama.config), **latent}
    right: list[Any] = [6, 6, 8, 8, 8, 0, (1.0,), ()]
    native.Engine(values, [tuple(right)], 1, True, 1, 1 << 20)
    for place, value in layer.items():
        right[place] = value
    with pytest.raises(native.NativeError, match=says):
        native.Engine({**values, **changes}, [tuple(right)], 1, True, 1, 1 << 20)


def test_the_c_door_knows_every_tensor(config: ModelConfig, make_model: Callable[..., Any]) -> None:
    """None may be absent, and none be there that the config has not."""
    native, model = load_native(), make_model(config)
    kinds = {spec.name: list(spec.shape) for spec in tensor_table(config)}

    def engine(names: list[str]) -> Any:
        made = native.Engine(config_values(config), layer_values(config), 1, True, 1, 1 << 24)
        for name in names:
            data = np.ascontiguousarray(model.weights[name].data)
            made.set_tensors([(name, 0, kinds[name], data, 0)])
        return made

    engine(list(kinds)).finalize()
    for name in kinds:
        with pytest.raises(native.NativeError, match=f"{name} is missing"):
            engine([n for n in kinds if n != name]).finalize()
    unknown = ("layers.0.attn.other.weight", 0, [1], np.zeros(4, np.uint8), 0)
    with pytest.raises(native.NativeError, match="is unknown"):
        engine([]).set_tensors([unknown])


def test_an_unfinished_engine_runs_nothing(llama: Any) -> None:
    native = load_native()
    layers = layer_values(llama.config)
    engine = native.Engine(config_values(llama.config), layers, 1, True, 1, 1 << 20)
    with pytest.raises(native.NativeError, match="is missing"):
        engine.finalize()
    with pytest.raises(native.NativeError, match="no weights"):
        engine.open()


def test_results_of_the_wrong_size_are_refused(llama: Any) -> None:
    native = load_native()
    engine = NativeEngine(llama)
    core, k = engine._core, engine.open()
    ids, plain = np.array([1, 2], np.int32), (0.0, 0, 1.0, 0.0, 1.0, (), (), 0, 0)
    small = np.zeros(7, np.float32)
    for want, logits, hidden, attention in [
        (2, small, None, ()),
        (4, small, None, ()),
        (8, None, small, ()),
        (16, None, None, [small, small]),
        (16, None, None, []),
        (2, None, None, ()),
        (8, None, None, ()),
        (64, None, None, ()),
    ]:
        with pytest.raises(native.NativeError):
            core.step([native.Work(k, ids, want, plain, None, logits, hidden, attention, None)])
    with pytest.raises(native.NativeError, match="mask"):
        core.step([native.Work(k, ids, 1, plain, np.ones(3, np.bool_), None, None, (), None)])
    with pytest.raises(native.NativeError, match="logprobs"):
        core.score(ids, small, ids, small, 0, ids[:0], small[:0], None)
    assert engine.length(k) == 0


def test_the_c_door_checks_adapters_again(llama: Any) -> None:
    native = load_native()
    core = NativeEngine(llama)._core
    q, k, out = "layers.0.attn.q.weight", "layers.0.attn.k.weight", np.ones((48, 2), np.float32)
    down = np.ones((2, 48), np.float32)
    good = (q, down, out, 1.0)
    for parts, says in [
        ([good, (k, down, out, 1.0)], f"{k}: up has 96 numbers"),
        ([good, (k, down[:, :40].copy(), out[:16].copy(), 1.0)], f"{k}: down has 80 numbers"),
        ([(q, down, out[:, :1].copy(), 1.0)], "up is not"),
        ([(q, down * np.float32("nan"), out, 1.0)], "NaN"),
        ([(q, down, out, float("inf"))], "infinity"),
        ([good, good], "was given twice"),
        ([("head.weight", down, out, 1.0)], "head.weight is no matrix"),
        ([(f"{q}\0", down, out, 1.0)], "zero character"),
        ([], "corrects no matrix"),
    ]:
        with pytest.raises(native.NativeError, match=says):
            core.add_adapter("mine", parts)
    with pytest.raises(native.NativeError, match="zero character"):
        core.add_adapter("mi\0ne", [good])
    with pytest.raises(native.NativeError, match="no adapter named 'mine'"):
        core.remove_adapter("mine")
    core.add_adapter("mine", [good])


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\udc80", "x" * 201])
def test_names_that_no_adapter_can_have(llama: Any, make_adapter: Any, name: str) -> None:
    engine = NativeEngine(llama)
    for call in (
        lambda: engine.add_adapter(name, make_adapter(llama)),
        lambda: engine.remove_adapter(name),
        lambda: engine.score([1, 2], adapter=name),
        lambda: engine.step([SeqWork(engine.open(), [1], adapter=name)]),
    ):
        with pytest.raises(RequestError, match="adapter's name"):
            call()


def test_too_many_positions_and_bad_ids(llama: Any) -> None:
    engine = NativeEngine(llama)
    k = engine.open()
    for ids, says in [
        ([0] * 161, "161 positions, the model has 160"),
        ([131], "id 131"),
        ([-1], "id -1"),
        ([1 << 40], "id 1099511627776"),
        ([1 << 80], "whole numbers"),
        ([], "no ids"),
    ]:
        for call in (lambda i: engine.step([SeqWork(k, i)]), engine.score):
            with pytest.raises(RequestError, match=says):
                call(ids)
    with pytest.raises(RequestError, match="top_k is 132"):
        engine.score([1, 2], top_k=132)
    with pytest.raises(RequestError, match="length is 1, the conversation holds 0"):
        engine.truncate(k, 1)
    for length in (-1, 1 << 70):
        for call in (engine.truncate, engine.fork):
            with pytest.raises(RequestError, match=f"length is {length}"):
                call(k, length)
    assert engine.cache_bytes_used == 0


def test_wanting_nothing_of_nobody(llama: Any) -> None:
    assert NativeEngine(llama).step([]) == []


def test_a_full_cache_refuses_and_changes_nothing(llama: Any) -> None:
    engine = NativeEngine(llama, threads=1, cache_bytes=3 * PAGE_BYTES)
    a, b = engine.open(), engine.open()
    engine.step([SeqWork(a, range(33), Want.NOTHING)])
    assert engine.cache_bytes_used == 2 * PAGE_BYTES
    with pytest.raises(RequestError, match="cache is full: 2 pages are wanted, 1 are free"):
        engine.step([SeqWork(a, [1]), SeqWork(b, range(64))])
    assert (engine.length(a), engine.length(b)) == (33, 0)
    assert engine.cache_bytes_used == 2 * PAGE_BYTES
    with pytest.raises(RequestError, match="cache is full"):
        engine.score(range(66))
    (out,) = engine.step([SeqWork(b, range(32), Want.SAMPLE)])  # the last page
    assert engine.cache_bytes_used == 3 * PAGE_BYTES
    engine.close(a)
    assert engine.score(range(33)).argmax[31] == out.token
    engine.truncate(b, 0)
    assert engine.cache_bytes_used == 0
    with pytest.raises(ResourceError, match="cache_bytes is 100, one page"):
        NativeEngine(llama, cache_bytes=100)


def test_a_draw_that_fails_leaves_the_whole_batch_undone(llama: Any) -> None:
    engine = NativeEngine(llama)
    a, b = engine.open(), engine.open()
    engine.step([SeqWork(a, [1, 2])])
    used = engine.cache_bytes_used
    nothing = np.zeros(131, np.bool_)
    with pytest.raises(RequestError, match="no id can be drawn"):
        engine.step([SeqWork(a, range(40)), SeqWork(b, [5], mask=nothing)])
    assert (engine.length(a), engine.length(b), engine.cache_bytes_used) == (2, 0, used)


def test_a_bias_for_an_id_that_the_model_has_not_means_nothing(llama: Any) -> None:
    engine = NativeEngine(llama)
    biased = SamplingSettings(logit_bias=((1 << 31, 5.0), (9, 1e4)))
    (out,) = engine.step([SeqWork(engine.open(), [1], sampling=biased)])
    assert out.token == 9


def test_memory_stays_flat(llama: Any, make_adapter: Any) -> None:
    engine = NativeEngine(llama, threads=2)
    process, adapter = psutil.Process(), make_adapter(llama)

    def round_trip() -> None:
        k = engine.open()
        engine.step([SeqWork(k, range(100), Want.ALL_LOGITS | Want.HIDDEN)])
        engine.truncate(k, 10)
        engine.step([SeqWork(k, range(5))])
        engine.close(k)
        engine.score(range(60), top_k=3)
        engine.add_adapter("mine", adapter)
        engine.score(range(60), adapter="mine")
        engine.remove_adapter("mine")

    for _ in range(50):
        round_trip()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(600):
        round_trip()
    gc.collect()
    # 600 leaked pages would be 9 MB, 600 leaked results 70 MB.
    assert process.memory_info().rss - before < 3 << 20
    assert engine.cache_bytes_used == 0


def test_settings(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NativeEngine(llama, threads=3).threads == 3
    monkeypatch.setenv("MIUDO_THREADS", "2")
    assert NativeEngine(llama).threads == 2
    for name, value in [("MIUDO_THREADS", "many"), ("MIUDO_THREADS", "0"), ("MIUDO_ISA", "sse9")]:
        monkeypatch.setenv(name, value)
        with pytest.raises(RequestError, match=f"{name} is '{value}'"):
            NativeEngine(llama)
        monkeypatch.delenv(name)
    for wrong in ({"threads": 0}, {"activations": "int3"}, {"cache": "f8"}, {"cache_bytes": -1}):
        with pytest.raises(RequestError):
            NativeEngine(llama, **wrong)


def test_a_missing_module_says_what_to_do(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "miudo" and rest[2] and "_native" in rest[2]:
            raise ImportError("no module named _native")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingError, match="build_native"):
        NativeEngine(llama)


def test_ctrl_c_undoes_the_step(make_model: Callable[..., Any]) -> None:
    import signal

    config = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=2, d_ff=32, vocab_size=50, max_positions=40_000
    )
    engine = NativeEngine(make_model(config), threads=1)
    k = engine.open()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.step([SeqWork(k, [i % 50 for i in range(40_000)])])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert engine.length(k) == 0
    assert engine.cache_bytes_used == 0
    engine.step([SeqWork(k, [1, 2])])
    assert engine.length(k) == 2
