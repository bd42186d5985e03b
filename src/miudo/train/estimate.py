"""What a run would take in memory and time, before it is begun; nothing is written.

For: `miudo finetune --dry-run`. Weights, gradients and moments are counted; activations are
counted too, by a forward pass over shapes alone; time is that of a few steps, taken back.
Not for: a budget: the parts' sum is an estimate, and the measured peak stands beside it.
Read next: `miudo.train.finetune`.

Shapes: N positions of a batch, D d_model, V vocab_size.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from miudo.decoder.decoder import Decoder
from miudo.meter import peak_memory
from miudo.report import Table, text_table
from miudo.train.finetune import open_base
from miudo.train.lesson import FinetuneJob, open_lesson
from miudo.train.loss import chunk_rows, cross_entropy
from miudo.train.plan import Plan, make_plan, wants_compile
from miudo.train.progress import Progress, Silent
from miudo.train.settings import FitSettings, Precision
from miudo.train.speed import run_conditions, short_attention
from miudo.train.stepper import MarkedTokens, Stepper
from miudo.train.timing import trial_step_s

__all__ = ["Activations", "Estimate", "Part", "activations", "estimate", "memory_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the memory and where its number comes from."""

    name: str
    size_bytes: int
    basis: str


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that a forward pass keeps: in each block, between blocks, and outside of them."""

    blocks: tuple[int, ...]
    block_input: int
    rest: int

    @property
    def whole(self) -> int:
        """All of them kept."""
        return sum(self.blocks) + self.rest

    @property
    def checkpointed(self) -> int:
        """Every block's input kept, and one block's own at a time."""
        return len(self.blocks) * self.block_input + max(self.blocks) + self.rest


@dataclass(frozen=True, slots=True)
class Estimate:
    """The parts, with and without checkpoints, what a few steps measured, and the whole run.

    `other_bytes` is the sum with the other choice of checkpoint_activations.
    """

    parts: tuple[Part, ...]
    other_bytes: int
    peak_bytes: int
    free_bytes: int
    step_s: float
    plan: Plan
    fit: FitSettings

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def run_s(self) -> float:
        """The run's steps at the measured speed; saving and evaluation are not in it."""
        return self.step_s * self.plan.steps

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "schema": 1,
            "memory": [
                {"part": p.name, "size_bytes": p.size_bytes, "basis": p.basis} for p in self.parts
            ],
            "predicted_bytes": self.total_bytes,
            "predicted_bytes_other_checkpointing": self.other_bytes,
            "measured_peak_bytes": self.peak_bytes,
            "free_bytes": self.free_bytes,
            "steps": self.plan.steps,
            "step_s": self.step_s,
            "run_s": self.run_s,
            "precision": str(self.plan.precision),
            "compiled": self.plan.compiled,
            "checkpoint_activations": self.fit.checkpoint_activations,
        }

    def text(self) -> str:
        """Returns the table for a terminal."""
        rows = [[p.name, _mb(p.size_bytes), p.basis] for p in self.parts]
        other = "without" if self.fit.checkpoint_activations else "with"
        rows += [
            ["in all", _mb(self.total_bytes), "the sum: an estimate, without what malloc wastes"],
            [f"{other} checkpointing", _mb(self.other_bytes), "the same sum, the other choice"],
            ["peak of the trial", _mb(self.peak_bytes), "measured, largest resident size"],
            ["free on this machine", _mb(self.free_bytes), "measured before the trial"],
        ]
        table = text_table(Table(("memory", "MB", "basis"), rows, text_columns=frozenset({0, 2})))
        kind = "compiled" if self.plan.compiled else "eager"
        warning = ""
        if self.total_bytes > self.free_bytes:
            warning = "\nThat is more than is free: halve --batch-size and double accumulate"
        return (
            f"{table}\n\n{self.plan.steps:,} steps of {self.step_s:.2f} s ({kind}, "
            f"{self.plan.precision.value}, measured): {self.run_s / 60:.1f} minutes, "
            f"without evaluation and saving{warning}"
        )


def estimate(job: FinetuneJob, progress: Progress | None = None) -> Estimate:
    """Returns what `job` would take, having taken a few of its steps in memory.

    Raises what `miudo.train.finetune.finetune` raises before its first step.
    """
    progress = progress or Silent()
    process = psutil.Process()
    free = psutil.virtual_memory().available
    base = open_base(job)
    with tempfile.TemporaryDirectory() as folder:
        lesson = open_lesson(job, base, Path(folder) / "data", progress)
        fit = lesson.fit
        stepper = Stepper(base.decoder, lesson.train, fit, cross_entropy)
        held = sum(p.numel() * p.element_size() for p in base.decoder.parameters())
        device = stepper.device.type
        steps = fit.steps or -(-(fit.tokens or 0) // fit.step_tokens)  # 0: so many minutes
        compiled = wants_compile(fit.compile, steps * fit.step_tokens, device)
        plan = make_plan(fit, steps=steps, compiled=compiled, device=device)
        segments = isinstance(lesson.train, MarkedTokens)
        kept = activations(base.decoder, fit, plan, segments=segments)
        idle = max(0, process.memory_info().rss - held)
        parts = memory_parts(stepper, kept, plan.precision, idle_bytes=idle)
        change = kept.whole - kept.checkpointed
        total = sum(part.size_bytes for part in parts)
        other = total + (change if fit.checkpoint_activations else -change)
        started = time.perf_counter()
        with run_conditions(base.decoder, fit):
            base.decoder.train()
            step_s = trial_step_s(stepper, compiled=compiled)
            if fit.minutes is not None:
                left = fit.minutes * 60.0 - (time.perf_counter() - started)
                plan = replace(plan, steps=max(1, int(left / step_s)))
        peak = int(peak_memory().value)
    return Estimate(parts, other, peak, free, step_s, plan, fit)


def memory_parts(
    stepper: Stepper, kept: Activations, precision: Precision, *, idle_bytes: int
) -> tuple[Part, ...]:
    """Returns the parts of a run's memory; `idle_bytes` is the process without its weights."""
    decoder, fit = stepper.decoder, stepper.settings
    weights = sum(p.numel() for p in decoder.parameters())
    trained = sum(p.numel() for p in stepper.optimizers.parameters)
    moments = stepper.optimizers.moment_count()
    chosen = fit.checkpoint_activations
    how = "each block's input and one block's own" if chosen else "all blocks"
    positions = fit.batch_size * fit.length
    return (
        Part("program", idle_bytes, "measured: resident size, weights taken off"),
        Part("weights", 4 * weights, f"{weights:,} x 4 B, float32"),
        Part("gradients", 4 * trained, f"{trained:,} trained x 4 B"),
        Part("moments", 4 * moments, f"{moments:,} x 4 B, {fit.optimizer.value}"),
        Part(
            "activations",
            kept.checkpointed if chosen else kept.whole,
            f"counted by shape, {precision.value}: {how}",
        ),
        Part("backward", max(kept.blocks), "assumed: as much again as one block keeps"),
        Part(
            "head", _head_bytes(decoder, positions, precision), f"{positions:,} positions at most"
        ),
    )


def activations(
    decoder: Decoder, settings: FitSettings, plan: Plan, *, segments: bool
) -> Activations:
    """Returns what a forward pass of one batch keeps for the backward pass.

    The pass is computed over shapes alone: no memory is taken. Weights are not counted, their
    bfloat16 copies are. Blocks must not be checkpointed: what they forget could not be seen.
    """
    seen: dict[int, Tensor] = {}  # kept alive, so that no address comes twice
    marks: list[int] = []
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        if isinstance(tensor, FakeTensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen[storage._cdata] = tensor
                total += storage.nbytes()
        return tensor

    hooks = [
        block.register_forward_pre_hook(lambda *_: marks.append(total)) for block in decoder.layers
    ]
    hooks.append(decoder.norm.register_forward_pre_hook(lambda *_: marks.append(total)))
    kind = decoder.embed.weight.device.type
    shape = (settings.batch_size, settings.length)
    try:
        with (
            short_attention(decoder, settings, plan),
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(kind, torch.bfloat16, enabled=plan.precision is Precision.BF16),
        ):
            ids = torch.zeros(shape, dtype=torch.int64, device=kind)
            decoder(ids, segments=torch.zeros_like(ids) if segments else None)
    finally:
        for hook in hooks:
            hook.remove()
    width = 4 * decoder.config.d_model * settings.batch_size * settings.length
    blocks = tuple(b - a for a, b in itertools.pairwise(marks))
    return Activations(blocks, width, marks[0] + total - marks[-1])


def _head_bytes(decoder: Decoder, positions: int, precision: Precision) -> int:
    """Chunked logits and what is made of them, the head's gradient, that of hidden."""
    vocabulary, d_model = decoder.config.vocab_size, decoder.config.d_model
    weight = decoder.embed.weight if decoder.head is None else decoder.head.weight
    size = 2 if precision is Precision.BF16 else 4
    rows = min(positions, chunk_rows(vocabulary))
    # Logits and what they become in float32, which is the gradient where that is float32 too.
    chunk = rows * vocabulary * (8 if size == 4 else 2 * size + 2 * 4)
    cast = vocabulary * d_model * size if precision is Precision.BF16 else 0
    learned = 4 * vocabulary * d_model if weight.requires_grad else 0
    return chunk + cast + learned + positions * d_model * size


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"
