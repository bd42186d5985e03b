"""lm-evaluation-harness over our engine and `run_tasks` agree on ARC-Easy, sample by sample."""

from __future__ import annotations

import contextlib
import json
import lzma
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.engine.native import NativeEngine
from miudo.evaluate.harness import SampleResult, TaskScore, run_tasks
from miudo.evaluate.loading import LoadedModel, load_model
from miudo.evaluate.perplexity import start_id
from miudo.evaluate.prepared import prepare_tasks
from miudo.evaluate.tasks.catalogue import TASKS
from miudo.evaluate.tasks.task import Source, TaskSettings
from miudo.hub.resolve import embedded_path

pytestmark = pytest.mark.parity

# Theirs is a sum of float32 log-probabilities from `score`, ours of float64 ones from logits.
LOGPROB = 1e-4

TASK = """\
task: arc_easy_local
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: "{{{{texts}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Their imports warn of much that is no business of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(embedded_path(), threads=1)


@pytest.fixture
def theirs(
    loaded: LoadedModel, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What lm-eval gives for the local file, with a thin model of its own over our engine."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with quiet():
        pytest.importorskip("lm_eval")
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        data, folder = tmp_path / "arc.jsonl", tmp_path / "tasks"
        with lzma.open(shared / "data/eval/arc_easy_dev.jsonl.xz", "rt", encoding="utf-8") as file:
            data.write_text("".join(_converted(line) for line in file), encoding="utf-8")
        folder.mkdir()
        (folder / "arc_easy_local.yaml").write_text(TASK.format(file=data), encoding="utf-8")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        found: dict[str, Any] = simple_evaluate(
            model=_adapter(loaded),
            tasks=["arc_easy_local"],
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    return found


@pytest.fixture
def ours(loaded: LoadedModel, shared: Path) -> tuple[TaskScore, list[SampleResult]]:
    source = Source((shared / "data/eval",))
    model = (loaded.engine, loaded.tokenizer)
    (found,) = run_tasks(prepare_tasks([TASKS["arc_easy"]], source, model, TaskSettings()), model)
    return found


def test_accuracies_and_log_probabilities_agree(
    theirs: dict[str, Any], ours: tuple[TaskScore, list[SampleResult]]
) -> None:
    score, results = ours
    figures = theirs["results"]["arc_easy_local"]
    samples = sorted(theirs["samples"]["arc_easy_local"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(results) == 570
    for sample, result in zip(samples, results, strict=True):
        assert sample["arguments"][0][0] == result.prompt
        assert sample["target"] == result.sample.gold
        their_logprobs = [response[0] for response in sample["filtered_resps"]]
        assert np.allclose(their_logprobs, result.logprobs, rtol=0, atol=LOGPROB)
    assert score.ties == 0  # where there are some, they may count one as right
    assert figures["acc,none"] == pytest.approx(score.acc.value, abs=1e-12)
    assert figures["acc_bytes,none"] == pytest.approx(score.score.value, abs=1e-12)
    # Theirs divides by characters; the few letters beyond ASCII of this file change no answer.
    assert figures["acc_norm,none"] == pytest.approx(score.score.value, abs=1e-12)
    print(f"acc {score.acc.value:.4f}, acc_norm {score.score.value:.4f} of {len(results)}")


def _converted(line: str) -> str:
    """Returns a record with its choices as a list: their loader wants one shape for all."""
    record = json.loads(line)
    choices = record["choices"]
    values = {
        "question": record["question"],
        "texts": list(choices.values()),
        "gold": list(choices).index(record["answer"]),
    }
    return json.dumps(values) + "\n"


def _adapter(loaded: LoadedModel) -> Any:
    from lm_eval.api.model import TemplateLM

    engine, tokenizer = loaded.engine, loaded.tokenizer
    assert isinstance(engine, NativeEngine)
    start = start_id(engine.config)
    assert start is not None

    class OverEngine(TemplateLM):  # type: ignore[misc]
        backend = "causal"

        @property
        def eot_token_id(self) -> int:
            return start

        def tok_encode(self, string: str, **kwargs: Any) -> list[int]:
            return [start, *tokenizer.encode(string)]

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            found = []
            for _, context, continuation in requests:
                ids = [*context, *continuation][-engine.config.max_positions :]
                scores = engine.score(ids)
                wanted = np.asarray(continuation)
                logprobs = scores.logprobs[-len(wanted) :].astype(np.float64)
                greedy = bool((scores.argmax[-len(wanted) :] == wanted).all())
                found.append((float(logprobs.sum()), greedy))
            return found

        def loglikelihood_rolling(self, requests: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    return OverEngine()
