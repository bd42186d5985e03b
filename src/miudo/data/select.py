"""Text from which a student has most to learn: what a big model tells from a small one.

For: difference sampling (MiniPLM, Gu et al. 2024): documents are ranked by log p_T(x) - log
p_ref(x) and the best share is kept. Common patterns, that any small model has, and noise, that no
model has, both score low. Tokenizers may be any three.
Not for: cleaning (`miudo.data.clean`), or losses with a teacher (`miudo.compress.distill`).
Read next: `miudo.data.pipeline`, which packs what is kept.

Scores are nats a byte: documents of all lengths and tokens of all sizes compare.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miudo.data.ledger import Ledger
from miudo.data.sources import RECORD_SUFFIX, ReadSettings, find_files, read_documents
from miudo.errors import CheckFailedError, ConfigError, DataError, UsageError
from miudo.files import atomic_write, sha256_file
from miudo.plain_json import write_json
from miudo.protocol import Engine, Tokenizer
from miudo.records import Artefact, Measurement, Record

__all__ = ["Scorer", "SelectReport", "select", "text_score"]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model that scores text, and what a record says of it."""

    engine: Engine
    tokenizer: Tokenizer
    artefact: Artefact
    parents: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class SelectReport:
    """Counts of documents, and the mean score [nats/byte] of all and of those kept."""

    documents: int
    kept: int
    mean_score: float
    mean_score_kept: float

    def measurements(self) -> tuple[Measurement, ...]:
        """Returns the report as a record keeps it."""
        method = "log p of the teacher less that of the reference, mean over documents"
        return (
            Measurement("documents", self.documents, "1", "counted"),
            Measurement("kept", self.kept, "1", "counted"),
            Measurement("mean_score", self.mean_score, "nats/byte", method),
            Measurement("mean_score_kept", self.mean_score_kept, "nats/byte", method),
        )


def select(  # noqa: PLR0913 - two models, text, and how much of it
    teacher: Scorer,
    reference: Scorer,
    inputs: Sequence[str],
    out: Path,
    *,
    keep: float = 0.5,
    read: ReadSettings | None = None,
    resume: bool = False,
    note: Callable[[int], None] = lambda scored: None,
) -> SelectReport:
    """Writes the share `keep` of the documents that score highest into `out`, JSONL, in order.

    Scores are kept in OUT.scores while they are made, and a broken run goes on there with
    `resume`. The record lies beside `out`. Raises ConfigError for a share out of range, UsageError
    where `out` is there already, DataError for text that cannot be read or too little of it.
    """
    if not 0.0 < keep < 1.0:
        raise ConfigError(f"keep is {keep}, allowed are shares between 0 and 1")
    if out.suffix != ".jsonl":
        raise UsageError("is no JSONL file's name", where=out, remedy="Write --out NAME.jsonl")
    if out.exists():
        raise UsageError("is there already", where=out, remedy="Choose another name")
    files = find_files(inputs)
    asked = [Artefact("source", path.name, sha256_file(path)) for path in files]
    models = (teacher.artefact, reference.artefact)
    plan = {"schema": 1, "teacher": models[0].sha256, "reference": models[1].sha256}
    notes = out.with_name(out.name + ".scores")
    known = _known(notes, plan, resume=resume)
    texts: list[str] = []
    scores: list[float] = []
    with Ledger(notes) as ledger:
        if not notes.stat().st_size:
            ledger.append(plan)
        for document in read_documents(files, read):
            if document.messages:
                raise DataError(
                    "is a conversation, running text is chosen from",
                    where=f"{document.source}, document {document.index}",
                    remedy="Leave it out",
                )
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            if digest not in known:
                known[digest] = _difference(teacher, reference, document.text)
                ledger.append({"sha256": digest, "score": known[digest]})
            texts.append(document.text)
            scores.append(known[digest])
            note(len(scores))
    kept = _best(scores, keep)
    lines = [json.dumps({"text": texts[i]}, ensure_ascii=False) + "\n" for i in kept]
    atomic_write(out, lambda file: file.writelines(line.encode() for line in lines))
    means = float(np.mean(scores)), float(np.mean([scores[i] for i in kept]))
    report = SelectReport(len(scores), len(kept), *means)
    record = Record(
        verb="select",
        name=out.name,
        settings={"keep": keep},
        inputs=(*models, *asked),
        outputs={out.name: sha256_file(out)},
        measurements=report.measurements(),
        parents=(*teacher.parents, *reference.parents),
    )
    write_json(out.with_name(out.name + RECORD_SUFFIX), record.to_json())
    notes.unlink()
    return report


def text_score(scorer: Scorer, text: str) -> float:
    """Returns log p(text) in nats, in windows of as many tokens as the model has positions.

    The first token counts where the model has one to begin with. Raises CheckFailedError for a
    model whose log-probabilities are not finite.
    """
    config = scorer.engine.config
    ids = scorer.tokenizer.encode(text)
    first = config.bos_id if config.bos_id is not None else next(iter(config.eos_ids), None)
    room = config.max_positions - 1
    total = 0.0
    for at in range(0, len(ids), room):
        window = ids[at : at + room]
        begun = window if first is None else [first, *window]
        if len(begun) > 1:
            total += float(scorer.engine.score(begun).logprobs.astype(np.float64).sum())
    if not math.isfinite(total):
        raise CheckFailedError(
            "gives log-probabilities that are not finite",
            where=scorer.artefact.name,
            remedy="Choose another model: this one is broken",
        )
    return total


def _difference(teacher: Scorer, reference: Scorer, text: str) -> float:
    size = len(text.encode())
    return (text_score(teacher, text) - text_score(reference, text)) / size


def _best(scores: Sequence[float], keep: float) -> list[int]:
    """Returns the places of the highest share, rising; of equal scores the earlier."""
    count = round(keep * len(scores))
    if not 0 < count < len(scores):
        raise DataError(
            f"a share of {keep:g} of {len(scores)} documents is {count}",
            remedy="Give more documents: lines, or split by read.split",
        )
    order = np.argsort(-np.asarray(scores), kind="stable")
    return sorted(int(i) for i in order[:count])


def _known(notes: Path, plan: Mapping[str, Any], *, resume: bool) -> dict[str, float]:
    """Returns the scores that an earlier sitting made, by the text's hash."""
    if not resume:
        notes.unlink(missing_ok=True)
    lines = Ledger.read(notes)
    if not lines:
        return {}
    if lines[0] != plan:
        raise UsageError(
            "was begun with other models", where=notes, remedy="Start again without --resume"
        )
    try:
        return {str(line["sha256"]): float(line["score"]) for line in lines[1:]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"holds a line that is no score ({error})", where=notes) from error
