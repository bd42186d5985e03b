"""PEFT folders: round trips, fused matrices, and every refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.adapter import Adapter, LowRank
from miudo.config import Activation, LayerConfig, Mlp, ModelConfig, Norm, Position
from miudo.errors import MissingError, ModelFileError
from miudo.formats.peft import read_peft, write_peft
from miudo.formats.safetensors import read_safetensors
from miudo.records import Record
from miudo.tensors import Role, tensor_table

LLAMA = ModelConfig.uniform(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=48, max_positions=16
)
GPT2 = ModelConfig.uniform(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, d_ff=48, max_positions=16, norm=Norm.LAYER,
    norm_bias=True, position=Position.LEARNED, mlp=Mlp.PLAIN, activation=Activation.GELU_TANH,
    qkv_bias=True, o_bias=True, mlp_bias=True,
)  # fmt: skip
RECORD = Record(verb="finetune", name="a", settings={"x": 1})


def make(config: ModelConfig, *names: str, scales: tuple[float, ...] = (2.0,)) -> Adapter:
    generator = np.random.Generator(np.random.Philox(7))
    parts = {}
    for spec in tensor_table(config):
        key = spec.name.split(".")[-2]
        if spec.role in (Role.ATTENTION, Role.MLP) and (not names or key in names):
            rank = 2 + len(parts) % 2 if len(scales) > 1 else 3
            parts[spec.name] = LowRank(
                generator.normal(size=(rank, spec.shape[1])).astype(np.float32),
                generator.normal(size=(spec.shape[0], rank)).astype(np.float32),
                scales[len(parts) % len(scales)],
            )
    return Adapter(parts, base="b" * 64, tokenizer="t" * 64)


def delta(part: LowRank) -> Any:
    return part.scale * part.up.astype(float) @ part.down.astype(float)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("names", [(), ("q", "down"), ("k",)], ids=["all", "q-down", "k"])
@pytest.mark.parametrize("scales", [(2.0,), (0.5, 3.0, 1.0)], ids=["one-scale", "scales"])
def test_what_is_written_comes_back(
    tmp_path: Path, config: ModelConfig, names: tuple[str, ...], scales: tuple[float, ...]
) -> None:
    adapter = make(config, *names, scales=scales)
    write_peft(tmp_path / "a", adapter, config, record=RECORD)
    again = read_peft(tmp_path / "a", config)
    assert list(again.parts) == list(adapter.parts)
    assert (again.base, again.tokenizer) == (adapter.base, adapter.tokenizer)
    for name, part in adapter.parts.items():
        assert again.parts[name].rank == part.rank
        np.testing.assert_allclose(delta(again.parts[name]), delta(part), atol=1e-5)
    record = Record.read(tmp_path / "a")
    assert record is not None
    assert record.settings["x"] == 1
    assert set(record.outputs) == {"adapter_config.json", "adapter_model.safetensors"}


def test_fresh_fused_factors_are_kept(tmp_path: Path) -> None:
    adapter = make(GPT2, "q", "k", "v")
    zero = {n: LowRank(p.down, p.up * 0, p.scale) for n, p in adapter.parts.items()}
    write_peft(tmp_path / "a", Adapter(zero), GPT2, record=RECORD)
    again = read_peft(tmp_path / "a", GPT2)
    assert set(again.parts) == set(zero)
    assert not any(part.up.any() for part in again.parts.values())


def test_names_are_those_of_the_hugging_face_folder(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", make(LLAMA, "q"), LLAMA, record=RECORD)
    stored = read_safetensors(tmp_path / "a" / "adapter_model.safetensors")
    assert sorted(stored) == [
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{x}.weight"
        for i in (0, 1)
        for x in "AB"
    ]
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["fan_in_fan_out"]) == (3, 6, False)
    write_peft(tmp_path / "g", make(GPT2, "q", "k"), GPT2, record=RECORD)
    values = json.loads((tmp_path / "g" / "adapter_config.json").read_text())
    assert (values["r"], values["fan_in_fan_out"]) == (6, True)  # two ranks of 3, side by side
    assert values["target_modules"] == [f"transformer.h.{i}.attn.c_attn" for i in (0, 1)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_peft(tmp_path / "a", make(LLAMA), LLAMA, record=RECORD)
    return tmp_path / "a"


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all': biases were trained"),
        ({"use_dora": True}, "keys that change what the adapter computes: use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"invented_in_2030": {"a": 1}}, "invented_in_2030"),
        ({"init_lora_weights": "pissa_niter_4"}, "begins in the base model's own weights"),
        ({"r": 5}, "is 5, its tensors have 3"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"rank_pattern": {".*(a+)+": 3}}, "holds the expression"),
        ({"alpha_pattern": {"layers.\\\\d.self_attn.q_proj": 64}}, "holds the expression"),
        ({"alpha_pattern": {"q_pro.": 64}}, "holds the expression"),
        ({"alpha_pattern": {"q.proj": 64}}, "holds the expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no map"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused(
    written: Path, values: dict[str, Any], message: str
) -> None:
    change(written, **values)
    with pytest.raises(ModelFileError, match=message.replace("(a+)+", "")):
        read_peft(written, LLAMA)


def test_ranks_by_the_end_of_a_name(written: Path) -> None:
    change(written, alpha_pattern={"q_proj": 9, "self_attn.k_proj": 12})
    parts = read_peft(written, LLAMA).parts
    assert parts["layers.0.attn.q.weight"].scale == 3.0
    assert parts["layers.1.attn.k.weight"].scale == 4.0
    assert parts["layers.1.attn.v.weight"].scale == 2.0
    change(written, alpha_pattern={"of_another_model": 9})
    assert read_peft(written, LLAMA).parts["layers.0.attn.q.weight"].scale == 2.0


def test_another_model_is_refused(written: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no matrix of this gpt2 model's blocks"):
        read_peft(written, GPT2)
    narrow = ModelConfig.uniform(
        vocab_size=64, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=40, max_positions=16
    )
    with pytest.raises(ModelFileError, match=r"mlp\.gate\.weight corrects"):
        read_peft(written, narrow)


def test_absent_and_damaged_files(written: Path) -> None:
    with pytest.raises(MissingError, match=r"has no adapter_config.json"):
        read_peft(written.parent, LLAMA)
    weights = written / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4])
    with pytest.raises(ModelFileError, match=r"adapter_model.safetensors"):
        read_peft(written, LLAMA)
    weights.unlink()
    (written / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(MissingError, match="only a pickle"):
        read_peft(written, LLAMA)


def test_a_shape_that_no_folder_has_is_refused(tmp_path: Path) -> None:
    layers = tuple(LayerConfig(2, 2, 16, 16, width) for width in (48, 40))
    uneven = ModelConfig(vocab_size=64, d_model=32, max_positions=16, layers=layers)
    with pytest.raises(ModelFileError, match="no Hugging Face folder holds such a base"):
        write_peft(tmp_path / "a", make(uneven), uneven, record=RECORD)
    assert not (tmp_path / "a").exists()
