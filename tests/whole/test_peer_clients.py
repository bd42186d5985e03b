"""Larger programs that others wrote, unmodified, on the real server: llm, LangChain, lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.evaluate.loading import LoadedModel, load_model
from miudo.formats.hf import write_folder
from miudo.hub.resolve import embedded_path

pytestmark = pytest.mark.parity

KEY = "a-key-for-tests"
MODEL = "miudo-6m"
# Sums of some float32 log-probabilities, here and there in another order.
LOGPROB = 1e-5

KINDS = {"chat": {}, "completion": {"completion": True}, "responses": {"responses": True}}

QUESTIONS = [
    ("The cat sat on the", [" mat", " moon", " idea"], 0),
    ("Birds can", [" fly", " read books", " cook soup"], 0),
    ("The sky is", [" made of bread", " blue"], 1),
    ("At night we see the", [" stars", " lunch"], 0),
]
TASK = """\
task: tiny_local
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: gold
doc_to_choice: "{{{{texts}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.mark.parametrize("kind", KINDS)
def test_llm_prompts_whole_and_streamed(locked: Any, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llm")
    entry = {
        "model_id": "ours", "model_name": MODEL, "api_base": f"{locked.url}/v1",
        "api_key_name": "ours", **KINDS[kind],
    }  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # YAML holds JSON
    (tmp_path / "keys.json").write_text(json.dumps({"ours": KEY}))

    def prompt(*more: str) -> str:
        command = [sys.executable, "-m", "llm", "prompt", "-m", "ours", "The little robot", *more]
        options = ["-o", "temperature", "0", "-o", "max_tokens", "8"]
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    streamed = prompt()
    assert streamed
    assert prompt("--no-stream") == streamed


@pytest.fixture
def wire() -> Iterator[Any]:
    """Connections of this test's own: LangChain keeps those that it makes, open, for good."""
    pytest.importorskip("langchain_openai")
    with pytest.importorskip("openai").DefaultHttpxClient() as client:
        yield client


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_invokes_and_streams(locked: Any, wire: Any, responses: bool) -> None:
    from langchain_openai import ChatOpenAI

    made = ChatOpenAI(
        base_url=f"{locked.url}/v1",
        api_key=KEY,
        model=MODEL,
        temperature=0,
        max_tokens=8,
        max_retries=0,
        use_responses_api=responses,
        http_client=wire,
    )
    turns = [("system", "Be kind."), ("human", "Hello")]
    whole = made.invoke(turns)
    assert whole.text
    parts = list(made.stream(turns))
    assert "".join(part.text for part in parts) == whole.text
    assert whole.usage_metadata["output_tokens"] > 0


def test_langchain_embeds(locked: Any, wire: Any) -> None:
    from langchain_openai import OpenAIEmbeddings

    made = OpenAIEmbeddings(
        base_url=f"{locked.url}/v1",
        api_key=KEY,
        model=MODEL,
        check_embedding_ctx_length=False,  # or it asks the network for a tokenizer of OpenAI's
        http_client=wire,
    )
    one, two = made.embed_documents(["The little robot", "Rain fell."])
    assert len(one) == len(two) > 100
    assert made.embed_query("Rain fell.") == pytest.approx(two, abs=1e-6)


def test_lm_eval_scores_what_the_engine_scores(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    loaded = load_model(embedded_path(), threads=1)
    write_folder(tmp_path / "model", loaded.model)  # its tokenizer is what they read
    data, tasks = tmp_path / "tiny.jsonl", tmp_path / "tasks"
    rows = [{"question": q, "texts": texts, "gold": gold} for q, texts, gold in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.mkdir()
    (tasks / "tiny_local.yaml").write_text(TASK.format(file=data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their imports warn of much that is no business of ours
        pytest.importorskip("lm_eval")
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        found = simple_evaluate(
            model="local-completions",
            model_args={
                "model": MODEL,
                "base_url": f"{server.url}/v1/completions",
                "tokenizer": str(tmp_path / "model"),
                "tokenizer_backend": "huggingface",
                "max_retries": 1,
                "max_length": 256,
            },
            tasks=["tiny_local"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
    samples = sorted(found["samples"]["tiny_local"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    right = 0
    for sample, (question, texts, gold) in zip(samples, QUESTIONS, strict=True):
        expected = [scored(loaded, question, text) for text in texts]
        theirs = [(float(logprob), greedy) for logprob, greedy in sample["filtered_resps"]]
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in expected]
        np.testing.assert_allclose(
            [logprob for logprob, _ in theirs], [logprob for logprob, _ in expected], atol=LOGPROB
        )
        right += int(np.argmax([logprob for logprob, _ in expected])) == gold
    assert found["results"]["tiny_local"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def scored(loaded: LoadedModel, question: str, text: str) -> tuple[float, bool]:
    """The log-probability of `text` after `question`, and whether it is the greedy way on."""
    before, ids = loaded.tokenizer.encode(question), loaded.tokenizer.encode(question + text)
    scores = loaded.engine.score(ids)
    rest = slice(len(before) - 1, None)
    return float(scores.logprobs[rest].sum()), list(scores.argmax[rest]) == ids[len(before) :]
