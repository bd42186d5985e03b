"""Every family on the conformance list: read, run, written back, and run by llama.cpp."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")

import transformers
from zoo import measure
from zoo.case import VOCAB, Case, ids, noised
from zoo.gemma import LARGEST
from zoo.llama_cpp import continued, server, words
from zoo.registry import CASES

from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import round_activations
from miudo.errors import RequestError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder
from miudo.tensors import DType

pytestmark = pytest.mark.parity

Note = Callable[[str, str, float | str], None]
RENAMED = ("MiniCPMForCausalLM is written as GraniteForCausalLM, which says the same",)
PROMPT, CONTINUED = 6, 30
# Our bounds at 8 bits. A rounding that falls the other way moves a random model much further
# than a trained one.
SAME_TOP_Q8_0, LOGPROB_Q8_0 = 0.8, 0.05


@dataclasses.dataclass(frozen=True)
class Saved:
    name: str
    case: Case
    model: Any
    folder: Path
    ours: ModelFile


_SAVED: dict[str, Saved] = {}


@pytest.fixture(params=sorted(CASES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A case's noisy model, its folder and what miudo reads there; made once a session."""
    name = request.param
    torch.set_num_threads(1)
    if name not in _SAVED:
        model = noised(CASES[name].make())
        folder = tmp_path_factory.mktemp(name)
        CASES[name].save(model, folder)
        _SAVED[name] = Saved(name, CASES[name], model, folder, open_model(folder))
    return _SAVED[name]


@pytest.mark.parametrize("runtime", ["decoder", "native", "native avx2", "native portable"])
def test_logits_are_the_reference_s(
    saved: Saved, runtime: str, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the best path of this machine and on those below it; the table has the worst of them."""
    runtime, _, isa = runtime.partition(" ")
    if isa:
        monkeypatch.setenv("MIUDO_ISA", isa)
    for length in saved.case.lengths:
        try:
            engine = getattr(measure, runtime)(saved.ours, length)
        except RequestError as absent:
            if not isa or "MIUDO_ISA" not in str(absent):
                raise  # another refusal is no missing instruction set
            pytest.skip(str(absent))
        expected = measure.reference(saved.model, ids(length))
        for way, found in measure.logits(engine, ids(length)).items():
            note(saved.name, f"{runtime} {way}", measure.check_close(found, expected))
        note(saved.name, "largest logit", float(np.abs(expected).max()))


def test_transformers_loads_what_we_write(saved: Saved, tmp_path: Path, note: Note) -> None:
    note(saved.name, "family", saved.case.family)
    if not saved.case.returns:
        pytest.skip("transformers has no such class")
    notes = write_folder(tmp_path / "ours", saved.ours)
    assert notes == (RENAMED if saved.name == "minicpm" else ())
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="float32", attn_implementation="eager"
    ).eval()
    for length in saved.case.lengths:
        expected = measure.reference(saved.model, ids(length))
        found = measure.reference(again, ids(length))
        note(saved.name, "written back", measure.check_close(found, expected))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(again.config, key, None) == getattr(saved.model.config, key, None)


def test_a_folder_and_back_is_the_same_model(saved: Saved, tmp_path: Path) -> None:
    write_folder(tmp_path / "ours", saved.ours)
    back = open_model(tmp_path / "ours")
    assert near(dataclasses.asdict(back.config), dataclasses.asdict(saved.ours.config))
    for name, tensor in saved.ours.weights.items():
        np.testing.assert_array_equal(back.weights[name].data, tensor.data)


def test_gguf_and_back_is_the_same_model(saved: Saved, tmp_path: Path) -> None:
    report = write_gguf(tmp_path / "a.gguf", saved.ours)
    assert report.architecture == (saved.case.llama_cpp or "miudo")
    back = open_model(tmp_path / "a.gguf")
    assert near(dataclasses.asdict(back.config), dataclasses.asdict(saved.ours.config))
    for name, tensor in saved.ours.weights.items():
        np.testing.assert_array_equal(back.weights[name].data, tensor.data)


def near(a: Any, b: Any) -> bool:
    """Equal, float for float as float32: GGUF holds no others."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=2e-7)
    return bool(a == b)


@pytest.mark.parametrize("dtype", [DType.F32, DType.Q8_0])
def test_llama_cpp_goes_on_alike(saved: Saved, dtype: DType, tmp_path: Path, note: Note) -> None:
    if not saved.case.llama_cpp:
        pytest.skip("llama.cpp knows no such model")
    model = dataclasses.replace(saved.ours, tokenizer=words(VOCAB))
    write_gguf(tmp_path / "m.gguf", model, dtype=dtype)
    theirs = continued(server(tmp_path / "m.gguf"), ids(PROMPT), CONTINUED)
    differences, same = beside(open_model(tmp_path / "m.gguf"), theirs)
    note(saved.name, f"llama.cpp {dtype}", float(differences.max()))
    if dtype is DType.F32:
        assert same.all()
        assert differences.max() <= saved.case.logprob
    else:
        note(saved.name, "same top at Q8_0", float(same.mean()))
        assert same.mean() >= SAME_TOP_Q8_0
        assert np.median(differences) <= LOGPROB_Q8_0


def test_llama_cpp_knows_the_largest_gemma_by_its_depth(tmp_path: Path) -> None:
    LARGEST.save(noised(LARGEST.make()), tmp_path / "theirs")
    model = open_model(tmp_path / "theirs")
    assert model.config.attn_scale == 16**-0.5
    named = dataclasses.replace(model, tokenizer=words(VOCAB))
    assert write_gguf(tmp_path / "m.gguf", named).architecture == "gemma2"
    theirs = continued(server(tmp_path / "m.gguf"), ids(PROMPT), CONTINUED)
    differences, same = beside(open_model(tmp_path / "m.gguf"), theirs)
    assert same.all()
    assert differences.max() <= LARGEST.logprob


def beside(
    model: ModelFile, theirs: list[tuple[int, float]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of every id that llama.cpp chose: how far its log-probability is off, and whether we would.

    What meets 8-bit matrices is rounded as there. The end is never chosen, and llama.cpp's
    context is beyond every original length.
    """
    text = ids(PROMPT) + [token for token, _ in theirs]
    context = min(512, model.config.max_positions)
    decoder = Decoder.from_weights(model.config, model.weights, context=context)
    quantised = {name for name, tensor in model.weights.items() if tensor.dtype is DType.Q8_0}
    round_activations(decoder, quantised)
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.tensor([text]))[0, PROMPT - 1 : -1])
    chosen = torch.tensor(text[PROMPT:])
    logprobs = torch.log_softmax(logits.double(), -1).gather(1, chosen[:, None])[:, 0]
    logits[:, list(model.config.eos_ids)] = -torch.inf
    off = np.abs(logprobs.numpy() - np.array([p for _, p in theirs]))
    return off, (logits.argmax(-1) == chosen).numpy()
