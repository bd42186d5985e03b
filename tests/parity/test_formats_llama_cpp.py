"""llama.cpp and its `gguf` package read what miudo writes, and mean the same by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo.llama_cpp import continued, prompt_length, server, words

from miudo.adapter import Adapter, LowRank, base_fingerprint
from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.decoder.decoder import Decoder
from miudo.engine.native import NativeEngine
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import WRITABLE, to_f32
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from miudo.protocol import SeqWork
from miudo.records import Record
from miudo.tensors import DType, Role, StoredTensor, tensor_table
from miudo.text.tokenizer import TextTokenizer, train_bpe

xllamacpp = pytest.importorskip("xllamacpp")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.parity

# llama.cpp computes in float32 here; its GELU is a table of float16 values.
LOGPROB, LOGPROB_GELU = 1e-3, 2e-2
# Beside blocks it rounds activations to 8 bits, which we do only if asked.
LOGPROB_INT8 = 0.1
# Our bound on equal most-probable ids at 8 bits.
SAME_TOP = 0.995
TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    "  two  spaces and\n\n newlines\t tabs  ",
    "numbers 12345 and 3.14; don't stop, they'll see",
    "São João: coração, ação! naïve café — “quoted”",
    "emoji 👩‍👩‍👧 and 漢字 mixed",
)


def expected(model: ModelFile, prompt: list[int], n: int) -> list[tuple[int, float]]:
    """What `continued` must give: the end is never chosen."""
    torch.set_num_threads(1)
    decoder, ids, out = Decoder.from_weights(model.config, model.weights), list(prompt), []
    for _ in range(n):
        with torch.no_grad():
            logits = decoder.logits(decoder(torch.tensor([ids]))[0, -1])
        logprobs = torch.log_softmax(logits.double(), 0)
        logits[list(model.config.eos_ids)] = -torch.inf
        ids.append(int(logits.argmax()))
        out.append((ids[-1], float(logprobs[ids[-1]])))
    return out


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe([" ".join(TEXTS) * 3], vocab_size=320)


SHAPE: dict[str, Any] = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "d_ff": 96, "vocab_size": 320,
    "max_positions": 512, "bos_id": 0, "eos_ids": (0,),
}  # fmt: skip
PLAIN = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"n_kv_heads": 2},
    "llama-biases": SHAPE | {"qkv_bias": True, "o_bias": True, "head_dim": 32},
    "qwen2": SHAPE | {"n_kv_heads": 2, "qkv_bias": True},
    "qwen3": SHAPE | {"n_kv_heads": 2, "qk_norm": QkNorm.HEAD, "head_dim": 32},
    "gpt2": SHAPE | PLAIN,
}


@pytest.fixture
def noisy() -> Callable[[str], ModelFile]:
    def make(name: str) -> ModelFile:
        config = ModelConfig.uniform(**CONFIGS[name])
        decoder, generator = Decoder(config), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for key, value in decoder.named_parameters():
                is_norm = "norm" in key and key.endswith("weight")
                spread = 0.25 if value.ndim > 1 else 0.3
                value.normal_(1.0 if is_norm else 0.0, spread, generator=generator)
        weights = decoder.to_weights()
        return ModelFile(config, weights, words(320), None, None, name, None)

    return make


def noise_beside(model: ModelFile) -> Adapter:
    """An adapter on every matrix, each of its own rank, strong enough to change the text."""
    rng = np.random.default_rng(9)
    parts = {}
    for i, spec in enumerate(tensor_table(model.config)):
        if spec.role in (Role.ATTENTION, Role.MLP):
            rank = 4 + i % 3
            down = rng.standard_normal((rank, spec.shape[1])).astype(np.float32) * np.float32(0.2)
            up = rng.standard_normal((spec.shape[0], rank)).astype(np.float32) * np.float32(0.3)
            parts[spec.name] = LowRank(down, up, 6.0 / rank)
    return Adapter(parts, base_fingerprint(model.config, model.weights))


def continued_by_us(
    model: ModelFile, adapter: Adapter | None, prompt: list[int], n: int
) -> list[tuple[int, float]]:
    """What `continued` must give, of the native engine with the adapter beside the model."""
    engine = NativeEngine(model, threads=1, activations="float")
    if adapter is not None:
        engine.add_adapter("beside", adapter)
    conversation, pending, out = engine.open(), list(prompt), []
    mask = np.ones(model.config.vocab_size, dtype=np.bool_)
    mask[list(model.config.eos_ids)] = False
    for _ in range(n):
        name = None if adapter is None else "beside"
        (step,) = engine.step([SeqWork(conversation, pending, mask=mask, adapter=name)])
        assert step.token is not None
        assert step.logprob is not None
        pending = [step.token]
        out.append((step.token, step.logprob))
    return out


@pytest.mark.parametrize("name", ["llama", "llama-biases", "qwen2", "qwen3", "gpt2"])
def test_an_adapter_means_the_same_to_llama_cpp(
    name: str, noisy: Callable[[str], ModelFile], tmp_path: Path
) -> None:
    model = noisy(name)
    given = noise_beside(model)
    write_gguf(tmp_path / "model.gguf", model)
    # Keys of ours that they pass over.
    own = {"record": Record(verb="finetune", name="noise"), "chat_template": "{{ messages }}"}
    write_gguf_adapter(tmp_path / "adapter.gguf", model.config, given, **own)  # type: ignore[arg-type]
    prompt = [0, 17, 200, 5, 81, 300]
    theirs = continued(server(tmp_path / "model.gguf", tmp_path / "adapter.gguf"), prompt, 30)
    back = read_gguf_adapter(tmp_path / "adapter.gguf", model.config)
    bound = LOGPROB_GELU if name == "gpt2" else LOGPROB
    for adapter in (given, back):
        ours = continued_by_us(model, adapter, prompt, 30)
        assert [t for t, _ in theirs] == [t for t, _ in ours]
        np.testing.assert_allclose([p for _, p in theirs], [p for _, p in ours], atol=bound)
    plain = continued_by_us(model, None, prompt, 30)
    assert [t for t, _ in theirs] != [t for t, _ in plain]


def test_an_adapter_s_keys_are_those_of_their_package(
    noisy: Callable[[str], ModelFile], tmp_path: Path
) -> None:
    model = noisy("qwen3")
    adapter = noise_beside(model)
    write_gguf_adapter(tmp_path / "adapter.gguf", model.config, adapter)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    keys = gguf.Keys
    assert reader.get_field(keys.General.TYPE).contents() == gguf.GGUFType.ADAPTER
    assert reader.get_field(keys.General.ARCHITECTURE).contents() == "qwen3"
    assert reader.get_field(keys.Adapter.TYPE).contents() == "lora"
    assert reader.get_field(keys.Adapter.LORA_ALPHA).contents() == 6.0
    theirs = {t.name: t.data for t in reader.tensors}
    part = adapter.parts["layers.1.mlp.down.weight"]
    np.testing.assert_array_equal(theirs["blk.1.ffn_down.weight.lora_a"], part.down)
    np.testing.assert_array_equal(theirs["blk.1.ffn_down.weight.lora_b"], part.up)


def test_text_is_cut_alike(
    noisy: Callable[[str], ModelFile], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    model = dataclasses.replace(noisy("llama"), tokenizer=tokenizer.spec)
    write_gguf(tmp_path / "model.gguf", model)
    running = server(tmp_path / "model.gguf")
    for text in TEXTS:
        assert prompt_length(running, text) == 1 + len(tokenizer.encode(text))


def test_what_only_miudo_can_say_is_refused(
    noisy: Callable[[str], ModelFile], tmp_path: Path
) -> None:
    model = noisy("llama")
    model = dataclasses.replace(
        model, config=dataclasses.replace(model.config, activation=Activation.RELU)
    )
    assert write_gguf(tmp_path / "own.gguf", model).architecture == "miudo"
    with pytest.raises(RuntimeError):
        server(tmp_path / "own.gguf")


def test_stories260k_tells_its_story(shared: Path, tmp_path: Path) -> None:
    model = open_model(shared / "data" / "weights" / "stories260k")
    write_gguf(tmp_path / "f32.gguf", model)
    running = server(tmp_path / "f32.gguf")
    theirs = continued(running, [1], 200)
    assert [t for t, _ in theirs] == [t for t, _ in expected(model, [1], 200)]
    assert model.tokenizer is not None
    tokenizer = TextTokenizer(model.tokenizer)
    text = tokenizer.decode([t for t, _ in theirs])
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to")
    # Not the text with "they'll": its pieces can be joined in two ways, of which tokenizer.json
    # lists one, and SentencePiece's way, which llama.cpp follows, takes the other.
    for given in (TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[4]):
        assert prompt_length(running, given) == 1 + len(tokenizer.encode(given))


def test_stories260k_at_8_bits_has_the_same_top_id(shared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = open_model(shared / "data" / "weights" / "stories260k")
    report = write_gguf(tmp_path / "q8.gguf", model, dtype=DType.Q8_0)
    assert report.fallbacks == tuple(f"layers.{i}.mlp.down.weight" for i in range(5))
    running, small = server(tmp_path / "q8.gguf"), open_model(tmp_path / "q8.gguf")
    ids = [1, *(t for t, _ in expected(small, [1], 200))]
    theirs = [continued(running, ids[:n], 1)[0][0] for n in range(1, len(ids))]
    assert np.mean(np.array(theirs) == np.array(ids[1:])) >= SAME_TOP


def test_their_reader_sees_the_same_keys_and_tensors(
    noisy: Callable[[str], ModelFile], tmp_path: Path
) -> None:
    model = noisy("qwen3")
    write_gguf(tmp_path / "model.gguf", model, dtype=DType.Q8_0, languages=("en", "pt"))
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.get_field("general.architecture").contents() == "qwen3"
    assert reader.get_field("general.languages").contents() == ["en", "pt"]
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    assert reader.get_field("qwen3.attention.key_length").contents() == 32
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 320
    ours = open_model(tmp_path / "model.gguf")
    theirs = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for name, theirs_name in (("embed", "token_embd"), ("layers.2.attn.q", "blk.2.attn_q")):
        values = to_f32(ours.weights[f"{name}.weight"])
        np.testing.assert_array_equal(theirs[f"{theirs_name}.weight"], values)


@pytest.mark.parametrize("dtype", [t for t in DType if t.block > 1 and not t.sparse])
def test_every_type_of_blocks_gives_their_logits(
    dtype: DType, ggml_quantize: Callable[..., Any], tmp_path: Path
) -> None:
    """Along their own greedy text, of a model whose every matrix is of this type.

    What we do not write, they have quantised.
    """
    config = ModelConfig.uniform(**SHAPE | {"n_kv_heads": 2, "d_model": 256, "d_ff": 512})
    rng = np.random.default_rng(4)
    weights = {}
    for spec in tensor_table(config):
        values = rng.standard_normal(spec.shape).astype(np.float32)
        if spec.role is Role.NORM:
            weights[spec.name] = StoredTensor.from_f32(1 + values * np.float32(0.2))
            continue
        values *= np.float32(1.5 * spec.shape[-1] ** -0.5)
        weights[spec.name] = StoredTensor.from_f32(values)
        if dtype not in WRITABLE:
            data = ggml_quantize(values, dtype)
            weights[spec.name] = StoredTensor(dtype, spec.shape, data)
    model = ModelFile(config, weights, words(320), None, None, "llama", None)
    wanted = dtype if dtype in WRITABLE else None
    report = write_gguf(tmp_path / "model.gguf", model, dtype=wanted)
    assert {report.dtypes[s.name] for s in tensor_table(config) if len(s.shape) == 2} == {dtype}
    prompt = [0, 17, 200, 5, 81, 300]
    theirs = continued(server(tmp_path / "model.gguf"), prompt, 24)
    engine = NativeEngine(open_model(tmp_path / "model.gguf"), threads=1, activations="float")
    scores = engine.score([*prompt, *(t for t, _ in theirs)])
    ours = scores.logprobs[len(prompt) - 1 :]
    off = np.abs(ours - [p for _, p in theirs])
    # The tail of 24 rounded steps: up to 0.42 with Q4_K over four models, means 0.03 to 0.08.
    assert off.max() < 5 * LOGPROB_INT8
    assert off.mean() < LOGPROB_INT8
    assert ours.std() > 2 * LOGPROB_INT8  # so that another text's would not pass
