"""A candidate's file: written, read again, and held against the decoder that it came from.

For: GGUF files of candidates, and the self-checks on each of them.
Not for: making the decoder (`miudo.shrink.making`) or measuring the file
(`miudo.shrink.measure`).
Read next: `miudo.shrink.measure`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from miudo.compress.method import Report
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.engine.native import NativeEngine
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import to_f32
from miudo.formats.gguf import write_gguf
from miudo.protocol import SeqWork, Want
from miudo.records import Record
from miudo.shrink.selfcheck import Checks
from miudo.tensors import Role, Weights, tensor_table
from miudo.train.artefact import Opened

__all__ = ["REFERENCE_PATH", "check_file", "model_file", "write_candidate"]

REFERENCE_PATH = 1e-4
"""Largest difference of a logit between engine and decoder, relative where logits exceed 1."""

_CHECKED_IDS = 32


def model_file(
    teacher: Opened, config: ModelConfig, weights: Weights, record: Record | None
) -> ModelFile:
    """Returns the teacher's file with another shape and weights: tokenizer, template, card stay."""
    return dataclasses.replace(
        teacher.file, config=config, weights=weights, record=record, path=None
    )


def write_candidate(
    path: Path,
    teacher: Opened,
    decoder: Decoder,
    stored: tuple[Weights, Report],
    record: Record,
    checks: Checks,
    *,
    masks: Masks | None = None,
) -> None:
    """Writes `decoder`, stored by a quantiser, as one GGUF file, and checks it.

    What `masks` say is zero must be zero in the file.

    Raises CheckFailedError naming what does not hold, and what `write_gguf` raises.
    """
    weights, report = stored
    config = decoder.config
    counted = sum(weights[s.name].dtype.size_bytes(s.shape) for s in tensor_table(config))
    checks.holds(
        "the report's bytes are the tensors'",
        counted == report.bytes_after,
        f"{counted:,} and {report.bytes_after:,}",
    )
    checks.holds(
        "tied embeddings stay tied",
        config.tie_embeddings == teacher.file.config.tie_embeddings
        and any(s.role is Role.HEAD for s in tensor_table(config)) != config.tie_embeddings,
    )
    if masks is not None:
        checks.holds("zeros of pruned matrices stay zeros", _zeros_kept(masks, weights))
    write_gguf(path, model_file(teacher, config, weights, record))
    check_file(path, teacher, Decoder.from_weights(config, weights), checks)


def check_file(path: Path, teacher: Opened, decoder: Decoder, checks: Checks) -> None:
    """Reads the file again; raises CheckFailedError unless it says and does the same."""
    made = open_model(path)
    same = made.tokenizer is not None and teacher.file.tokenizer is not None
    same = same and made.tokenizer == teacher.file.tokenizer
    checks.holds("the file's tokenizer is the teacher's", same)
    ids = [(7919 * i + 1) % decoder.config.vocab_size for i in range(_CHECKED_IDS)]
    ids = ids[: decoder.config.max_positions]
    engine = NativeEngine(made, threads=1, activations="float")
    conversation = engine.open()
    found = engine.step([SeqWork(conversation, ids, Want.ALL_LOGITS)])[0].logits
    with torch.no_grad():
        wanted = decoder.logits(decoder(torch.tensor([ids])))[0].float().numpy()
    assert found is not None  # noqa: S101 - it was asked for
    scale = max(1.0, float(np.abs(wanted).max()))
    difference = float(np.abs(found - wanted).max()) / scale
    checks.holds(
        "the file's logits on the engine equal the decoder's",
        difference <= REFERENCE_PATH,
        f"they differ by {difference:.2e}, allowed {REFERENCE_PATH:g}",
    )


def _zeros_kept(masks: Masks, weights: Weights) -> bool:
    """Whether the file has zeros wherever a matrix was pruned."""
    return not any(
        np.any(to_f32(weights[name])[~live.numpy()] != 0) for name, live in masks.live.items()
    )
