"""GGUF adapters: written and read again, equal; and what is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.adapter import Adapter, LowRank
from miudo.config import ModelConfig
from miudo.errors import MissingError, ModelFileError
from miudo.formats.adapter import is_adapter, open_adapter
from miudo.formats.blocks import encode
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_adapter import read_gguf_adapter, scan_gguf_adapter, write_gguf_adapter
from miudo.formats.gguf_writer import write_container
from miudo.formats.model_file import ModelFile
from miudo.formats.opening import open_model
from miudo.tensors import DType, Role, StoredTensor, tensor_table

MakeModel = Callable[..., ModelFile]
ROUNDING = 1e-5  # sums of a few products in float32


def made(config: ModelConfig, *, scale: float = 2.0, ranks: tuple[int, ...] = (4,)) -> Adapter:
    rng = np.random.default_rng(3)
    parts = {}
    for i, spec in enumerate(tensor_table(config)):
        if spec.role in (Role.ATTENTION, Role.MLP):
            rank = ranks[i % len(ranks)]
            down = rng.standard_normal((rank, spec.shape[1])).astype(np.float32)
            up = rng.standard_normal((spec.shape[0], rank)).astype(np.float32)
            parts[spec.name] = LowRank(down, up, scale)
    return Adapter(parts, base="b" * 64, tokenizer="c" * 64)


def products(adapter: Adapter) -> dict[str, Any]:
    return {name: part.scale * (part.up @ part.down) for name, part in adapter.parts.items()}


def assert_same_effect(one: Adapter, other: Adapter) -> None:
    left, right = products(one), products(other)
    for name in left.keys() | right.keys():
        np.testing.assert_allclose(left[name], right[name], atol=ROUNDING * 20, err_msg=name)


def test_what_is_written_is_read_again_to_the_bit(any_model: ModelFile, tmp_path: Path) -> None:
    adapter, path = made(any_model.config), tmp_path / "a.gguf"
    notes = write_gguf_adapter(path, any_model.config, adapter)
    back = open_adapter(path, any_model.config)
    assert (back.base, back.tokenizer) == (adapter.base, adapter.tokenizer)
    assert back.parts.keys() == adapter.parts.keys()
    assert_same_effect(adapter, back)
    if any_model.architecture == "gpt2":
        return  # its queries, keys and values share one matrix, so their pairs are joined
    assert notes == ()
    for name, part in adapter.parts.items():
        np.testing.assert_array_equal(part.down, back.parts[name].down)
        np.testing.assert_array_equal(part.up, back.parts[name].up)
        assert part.scale == back.parts[name].scale


def test_joined_pairs_share_directions_where_they_are_the_same(
    make_model: MakeModel, tmp_path: Path
) -> None:
    config = make_model("gpt2").config
    adapter = made(config)
    parts = dict(adapter.parts)
    for i in range(config.n_layers):
        del parts[f"layers.{i}.attn.k.weight"]
        shared = parts[f"layers.{i}.attn.q.weight"].down
        name = f"layers.{i}.attn.v.weight"
        parts[name] = dataclasses.replace(parts[name], down=shared)
    adapter = dataclasses.replace(adapter, parts=parts)
    write_gguf_adapter(tmp_path / "a.gguf", config, adapter)
    pairs = scan_gguf_adapter(tmp_path / "a.gguf").pairs
    assert pairs["blk.0.attn_qkv.weight"][0].shape == (4, 32)
    back = open_adapter(tmp_path / "a.gguf", config)
    assert not back.parts["layers.0.attn.k.weight"].up.any()
    for name, product in products(adapter).items():
        np.testing.assert_allclose(products(back)[name], product, atol=ROUNDING)


def test_parts_of_several_scales_share_one_alpha(make_model: MakeModel, tmp_path: Path) -> None:
    config = make_model().config
    adapter = made(config, ranks=(2, 5, 8))
    notes = write_gguf_adapter(tmp_path / "a.gguf", config, adapter)
    assert notes == ("8 matrices scaled to share one alpha",)
    assert_same_effect(adapter, open_adapter(tmp_path / "a.gguf", config))
    none = made(config, scale=0.0)
    write_gguf_adapter(tmp_path / "b.gguf", config, none)
    assert not any(p.any() for p in products(open_adapter(tmp_path / "b.gguf", config)).values())


def test_a_model_that_only_miudo_knows(unequal_model: ModelFile, tmp_path: Path) -> None:
    config = dataclasses.replace(unequal_model.config, tie_embeddings=False)
    adapter = made(config)
    write_gguf_adapter(tmp_path / "a.gguf", config, adapter)
    assert scan_gguf_adapter(tmp_path / "a.gguf").architecture == "miudo"
    assert_same_effect(adapter, open_adapter(tmp_path / "a.gguf", config))


def keys(**changes: Any) -> dict[str, Any]:
    given = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    return {k: v for k, v in (given | changes).items() if v is not None}


def pair(
    name: str = "blk.0.attn_q.weight", rank: int = 2, out: int = 32, fan_in: int = 32
) -> list[tuple[str, StoredTensor]]:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((rank, fan_in)).astype(np.float32)
    b = rng.standard_normal((out, rank)).astype(np.float32)
    return [
        (f"{name}.lora_a", StoredTensor.from_f32(a)),
        (f"{name}.lora_b", StoredTensor.from_f32(b)),
    ]


def written(path: Path, values: dict[str, Any], tensors: list[tuple[str, StoredTensor]]) -> Path:
    with path.open("wb") as file:
        write_container(file, values, tensors)
    return path


def test_without_alpha_the_product_is_added_as_it_is(make_model: MakeModel, tmp_path: Path) -> None:
    config = make_model().config
    for alpha in (None, 0.0):
        path = written(tmp_path / "a.gguf", keys(**{"adapter.lora.alpha": alpha}), pair())
        assert open_adapter(path, config).parts["layers.0.attn.q.weight"].scale == 1.0
    path = written(tmp_path / "a.gguf", keys(), pair())
    assert open_adapter(path, config).parts["layers.0.attn.q.weight"].scale == 4.0


def test_halves_in_other_types_are_read(make_model: MakeModel, tmp_path: Path) -> None:
    (a, down), (b, up) = pair(rank=32)
    coarse = [(a, encode(to(down), DType.Q8_0)), (b, encode(to(up), DType.F16))]
    path = written(tmp_path / "a.gguf", keys(), coarse)
    part = open_adapter(path, make_model().config).parts["layers.0.attn.q.weight"]
    np.testing.assert_allclose(part.down, to(down), atol=0.02)


def to(tensor: StoredTensor) -> Any:
    return tensor.data.view("<f4").reshape(tensor.shape)


SMALL = ModelConfig.uniform(
    n_layers=1, d_model=32, n_heads=4, d_ff=64, vocab_size=40, max_positions=24
)
NAN = StoredTensor.from_f32(np.full((2, 32), np.nan, np.float32))


@pytest.mark.parametrize(
    ("changes", "tensors", "says"),
    [
        ({"general.type": "model"}, pair(), "general.type: is 'model'"),
        ({"general.type": None}, pair(), "general.type: is None"),
        ({"adapter.type": "dora"}, pair(), "adapter.type: is 'dora'"),
        ({"adapter.lora.alpha": float("nan")}, pair(), "alpha: is nan"),
        ({"adapter.lora.alpha": "8"}, pair(), "alpha: is '8'"),
        ({"adapter.alora.invocation_tokens": [1]}, pair(), "tokens switch on"),
        ({"general.architecture": "qwen3"}, pair(), "is for the architecture qwen3"),
        ({"general.architecture": "rwkv"}, pair(), "architecture 'rwkv' is unknown"),
        ({"general.architecture": None}, pair(), "architecture '' is unknown"),
        ({"miudo.base": 7}, pair(), "miudo.base: is no text"),
        ({}, pair()[:1], "lora_a: has no other half"),
        ({}, pair()[1:], "lora_b: has no other half"),
        ({}, [("blk.0.attn_norm.weight", NAN)], "is no part of an adapter"),
        ({}, pair("token_embd.weight", out=40), "token_embd.weight is no matrix"),
        ({}, pair("output.weight", out=40), "output.weight is no matrix"),
        ({}, pair("blk.2.attn_q.weight"), "blk.2.attn_q.weight is no matrix"),
        ({}, pair(out=34), r"is \[34, 2\], the config wants \[32, 2\]"),
        ({}, pair(fan_in=31), r"corrects \[32, 31\]"),
        ({}, [pair(rank=2)[0], pair(rank=3)[1]], "no shared rank"),
        ({}, [(pair()[0][0], NAN), pair()[1]], "NaN"),
        ({}, pair(rank=5000), "has rank 5000, allowed 4096"),
        ({}, [], "corrects no matrix"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(
    make_model: MakeModel,
    tmp_path: Path,
    changes: dict[str, Any],
    tensors: list[tuple[str, StoredTensor]],
    says: str,
) -> None:
    path = written(tmp_path / "a.gguf", keys(**changes), tensors)
    with pytest.raises(ModelFileError, match=says):
        read_gguf_adapter(path, make_model().config)


def test_a_name_that_stands_twice_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", keys(), [*pair(), pair()[0]])
    with pytest.raises(ModelFileError, match="twice"):
        read_gguf_adapter(path, make_model().config)


def test_every_cut_of_a_file_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", keys(), pair())
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for size in range(0, len(whole) - 32, 37):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_gguf_adapter(cut, make_model().config)


@settings(max_examples=60)
@given(st.data())
def test_damaged_bytes_are_refused_or_mean_an_adapter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("damage") / "a.gguf", keys(), pair())
    raw = bytearray(path.read_bytes())
    for _ in range(3):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        read_gguf_adapter(path, SMALL)
    except ModelFileError:
        return


def test_models_and_adapters_are_told_apart(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_gguf(tmp_path / "model.gguf", model)
    write_gguf_adapter(tmp_path / "a.gguf", model.config, made(model.config))
    (tmp_path / "folder").mkdir()
    assert is_adapter(tmp_path / "a.gguf")
    assert not is_adapter(tmp_path / "model.gguf")
    assert not is_adapter(tmp_path / "folder")
    (tmp_path / "folder" / "adapter_config.json").write_text("{}")
    assert is_adapter(tmp_path / "folder")
    with pytest.raises(ModelFileError, match="is an adapter, not a model"):
        open_model(tmp_path / "a.gguf")
    with pytest.raises(ModelFileError, match=r"general\.type: is 'model'"):
        open_adapter(tmp_path / "model.gguf", model.config)
    with pytest.raises(MissingError):
        open_adapter(tmp_path / "absent.gguf", model.config)
    with pytest.raises(ModelFileError, match=r"has no adapter_config\.json"):
        open_adapter(tmp_path, model.config)
