"""The one training loop: pretraining, distillation, recovery and fine-tuning run through it.

For: `fit`, which takes a decoder, tokens and settings, and differs between them in its loss.
A resumed run equals the unbroken one to the bit: every step is a function of the saved state.
Not for: reading text or writing the model's folder (`miudo.train.pretrain`).
Read next: `miudo.train.stepper`, then `miudo.train.checkpoint`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import TrainingError, UsageError
from miudo.records import Measurement
from miudo.report import loss_plot
from miudo.train.checkpoint import load_checkpoint, prune, save_checkpoint
from miudo.train.evaluation import as_it_runs, held_out_loss
from miudo.train.loss import Loss, cross_entropy
from miudo.train.metrics import append_metrics, read_metrics, truncate_metrics
from miudo.train.plan import Plan, device_of, lr_scale
from miudo.train.progress import Progress, Silent, StepReport
from miudo.train.run_folder import RunFolder, locked_run_folder
from miudo.train.settings import LOWER_RATE, FitSettings
from miudo.train.signals import StoppedError, StopRequest, stop_request
from miudo.train.speed import kept_threads, planned_steps, run_conditions
from miudo.train.state import Counters, capture_state, check_same_run, restore_state
from miudo.train.stepper import StandIn, Stepper, StepResult, Tokens, check_trainable
from miudo.train.timing import decide

__all__ = ["FitResult", "Sampler", "fit"]

Sampler = Callable[[Decoder], str]
"""Writes a little text with the decoder as it is, to be read by a person."""

_SPEED_WINDOW = 20


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a run ended. Losses are nats a token; `held_out_loss` None without held-out text.

    `elapsed_s` counts all sittings; `bad_steps` were skipped for NaN or infinity. `zeros` are
    those that were kept, by matrix.
    """

    steps: int
    tokens: int
    loss: float
    held_out_loss: float | None
    elapsed_s: float
    bad_steps: int
    plan: Plan
    zeros: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Tokens learned from a second, compilation, evaluation and saving included."""
        return self.tokens / self.elapsed_s if self.elapsed_s else 0.0

    def measurements(self, settings: FitSettings) -> list[Measurement]:
        """Returns the run as a record keeps it."""
        found = [
            Measurement("steps", self.steps, "1", "counted"),
            Measurement("training_tokens", self.tokens, "1", "counted"),
            Measurement("skipped_steps", self.bad_steps, "1", "counted"),
            Measurement("training_time", self.elapsed_s, "s", "monotonic clock, all sittings"),
            Measurement("training_speed", self.tokens_per_s, "tokens/s", "tokens by training time"),
        ]
        if math.isfinite(self.loss):
            method = "mean since the log line before"
            found.append(Measurement("training_loss", self.loss, "nats/token", method))
        if self.held_out_loss is not None:
            method = f"float32, up to {settings.eval_tokens} held-out tokens, evenly spaced"
            found.append(Measurement("held_out_loss", self.held_out_loss, "nats/token", method))
        return found


def fit(  # noqa: PLR0913 - what to train on, how, and who watches; each has a default
    decoder: Decoder,
    data: Tokens,
    settings: FitSettings,
    out: Path | RunFolder,
    *,
    loss: Loss = cross_entropy,
    masks: Masks | None = None,
    held_out: Tokens | None = None,
    progress: Progress | None = None,
    sampler: Sampler | None = None,
    stand_in: StandIn | None = None,
    resume: bool = False,
    from_step: int | None = None,
    end: bool = False,
) -> FitResult:
    """Trains `decoder` in place, writing checkpoints, metrics and a loss plot into `out`.

    It is trained on the device that `settings` say, and lies afterwards where it lay before.

    A RunFolder is one whose lock the caller holds already. Where `masks` say that a weight is
    zero, it is zero after every step; a resumed run takes them from its checkpoint.

    With a `stand_in` steps and evaluation see its values, and the weights themselves are trained.

    With `resume` it goes on from the newest checkpoint (or `from_step`) and ends with the
    same weights as a run that was never broken; a run that had ended returns at once. With
    `end` as well it takes no more steps: the checkpoint is what the run came to.

    Raises ConfigError, UsageError and DataError for what cannot be trained, TrainingError if
    another process trains into `out` or the run diverges, CheckpointError for a damaged
    checkpoint, ResourceError for too little memory or disk, StoppedError (a
    KeyboardInterrupt) after SIGINT or SIGTERM, with the state saved.
    """
    check_trainable(decoder, data, settings)
    home = decoder.embed.weight.device
    with ExitStack() as stack:
        stack.callback(decoder.to, home)
        if stand_in is not None:
            stack.callback(stand_in.to, home)
        decoder.to(device_of(settings))
        folder = out if isinstance(out, RunFolder) else stack.enter_context(locked_run_folder(out))
        stack.enter_context(run_conditions(decoder, settings))
        stepper = Stepper(decoder, data, settings, loss, masks, stand_in)
        run = _Run(folder, stepper, held_out, sampler)
        run.progress = progress or Silent()
        start = folder.step_to_resume(resume=resume, step=from_step)
        plan = run.begin() if start is None else run.go_on(start)
        if end:
            plan = run.cut_short(plan)
        stack.enter_context(kept_threads(plan.threads))
        request = stack.enter_context(stop_request())
        decoder.train()
        if run.counters.step < plan.steps:
            stack.enter_context(planned_steps(run.stepper, plan))
        run.take_steps(plan, request)
        return run.end(plan)


class _Run:
    """One sitting of a run: what it holds between steps."""

    def __init__(
        self,
        folder: RunFolder,
        stepper: Stepper,
        held_out: Tokens | None,
        sampler: Sampler | None,
    ) -> None:
        self.folder, self.stepper, self.held_out, self.sampler = folder, stepper, held_out, sampler
        self.settings = stepper.settings
        self.progress: Progress = Silent()
        self.counters = Counters()
        self._ended: dict[str, Any] = {}
        self._before_s = 0.0
        self._started = time.perf_counter()
        self._times: deque[float] = deque(maxlen=_SPEED_WINDOW + 1)

    def begin(self) -> Plan:
        """Plans a new run; its first checkpoint is step 0."""
        # Weights, two moments at most, all float32.
        size = 12 * sum(p.numel() for p in self.stepper.optimizers.parameters)
        self.folder.check_room(size, self.settings.keep)
        self.folder.metrics.unlink(missing_ok=True)
        torch.manual_seed(self.settings.seed)
        plan = decide(self.stepper)
        torch.manual_seed(self.settings.seed)
        self.progress.note(
            f"{plan.steps:,} steps of {self.settings.step_tokens:,} tokens, "
            f"{plan.precision.value}, {'compiled' if plan.compiled else 'eager'}, "
            f"{plan.threads} threads"
        )
        self._save(plan)
        return plan

    def go_on(self, step: int) -> Plan:
        """Restores the state after `step`."""
        at = self.folder.checkpoints
        saved = load_checkpoint(at, step)
        check_same_run(self.stepper, saved.state, where=self.folder.path)
        plan, self.counters = restore_state(self.stepper, saved, where=at)
        self._before_s = self.counters.elapsed_s
        truncate_metrics(self.folder.metrics, step)
        self.progress.note(f"resumed after step {step:,} of {plan.steps:,}")
        if plan.torch != torch.__version__:
            self.progress.note(
                f"the run began with PyTorch {plan.torch}, this is {torch.__version__}: "
                "weights may differ in the last bits from an unbroken run's"
            )
        return plan

    def cut_short(self, plan: Plan) -> Plan:
        """Returns the plan of the steps that were taken, measured as a last step is.

        Raises UsageError before the first one.
        """
        c = self.counters
        if c.step == 0:
            raise UsageError("no step has been taken, so there is nothing to end with")
        if c.step < plan.steps:
            self.progress.note(f"ended after step {c.step:,} of {plan.steps:,}")
            # Not into the log: a run that is gone on with all the same has no such line.
            since = {"loss": sum(c.losses) / len(c.losses)} if c.losses else {}
            self._ended = since | self._evaluate()
        return dataclasses.replace(plan, steps=c.step)

    def take_steps(self, plan: Plan, request: StopRequest) -> None:
        """Steps to the plan's end, logging, evaluating and saving on the way."""
        s, c = self.settings, self.counters
        self._times.append(time.perf_counter())
        while c.step < plan.steps:
            result = self.stepper.take(c.step, plan)
            c.step += 1
            self._times.append(time.perf_counter())
            self._count(result)
            last = c.step == plan.steps
            evaluate = last or (s.eval_every > 0 and c.step % s.eval_every == 0)
            if evaluate or c.step % s.log_every == 0:
                self._log(plan, result, evaluate=evaluate)
            stop = request.signal_number
            if last or stop is not None or (s.save_every > 0 and c.step % s.save_every == 0):
                self._save(plan)
            if stop is not None:
                raise StoppedError(
                    f"stopped after step {c.step} of {plan.steps}, saved in "
                    f"{self.folder.path}; go on with --resume",
                    stop,
                )

    def end(self, plan: Plan) -> FitResult:
        """Draws the plot and returns the result, from the log where the run had ended before."""
        rows = read_metrics(self.folder.metrics)
        loss_plot(rows, self.folder.plot)
        self.stepper.decoder.eval()
        final: dict[str, Any] = (rows[-1] if rows else {}) | self._ended
        # A last line all of whose steps were skipped has no loss of its own.
        losses = [row["loss"] for row in [*rows, self._ended] if row.get("loss") is not None]
        return FitResult(
            steps=plan.steps,
            tokens=plan.steps * self.settings.step_tokens,
            loss=losses[-1] if losses else math.nan,
            held_out_loss=final.get("held_out_loss"),
            elapsed_s=self.counters.elapsed_s,
            bad_steps=self.counters.bad_steps,
            plan=plan,
            zeros=self.stepper.zeros,
        )

    def _count(self, result: StepResult) -> None:
        c = self.counters
        if result.applied:
            c.bad_in_row = 0
            c.losses.append(result.loss)
            return
        c.bad_steps, c.bad_in_row = c.bad_steps + 1, c.bad_in_row + 1
        what = f"loss {result.loss}, gradient norm {result.norm}"
        self.progress.note(f"step {c.step} not applied: {what}")
        if c.bad_in_row >= self.settings.max_bad_steps:
            raise TrainingError(
                f"{c.bad_in_row} steps in a row were not finite ({what})",
                where=f"step {c.step}",
                remedy=LOWER_RATE,
            )

    def _log(self, plan: Plan, result: StepResult, *, evaluate: bool) -> None:
        c, s = self.counters, self.settings
        row: dict[str, Any] = {
            "step": c.step,
            "tokens": c.step * s.step_tokens,
            "loss": sum(c.losses) / len(c.losses) if c.losses else None,
            "lr_scale": lr_scale(s, plan.steps, c.step - 1),
            "gradient_norm": result.norm if result.applied else None,
            "bad_steps": c.bad_steps,
            **(result.parts if result.applied else {}),
        }
        c.losses.clear()
        speed = (len(self._times) - 1) / max(1e-9, self._times[-1] - self._times[0])
        if evaluate:
            row |= self._evaluate()
            self._times.clear()
            self._times.append(time.perf_counter())
        row["tokens_per_s"] = round(speed * s.step_tokens, 1)
        row["elapsed_s"] = round(self._elapsed(), 2)
        append_metrics(self.folder.metrics, row)
        self.progress.report(
            StepReport(
                step=c.step,
                steps=plan.steps,
                tokens=row["tokens"],
                loss=float("nan") if row["loss"] is None else row["loss"],
                tokens_per_s=row["tokens_per_s"],
                left_s=(plan.steps - c.step) / speed,
                parts=result.parts,
                held_out_loss=row.get("held_out_loss"),
            )
        )

    def _evaluate(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        decoder = self.stepper.decoder
        with self.stepper.shown():
            if self.held_out is not None:
                found["held_out_loss"] = held_out_loss(decoder, self.held_out, self.settings)
            if self.sampler is not None:
                with as_it_runs(decoder):
                    found["sample"] = self.sampler(decoder)
                self.progress.note(found["sample"])
        return found

    def _save(self, plan: Plan) -> None:
        self.counters.elapsed_s = self._elapsed()
        state = capture_state(self.stepper, plan, self.counters)
        save_checkpoint(self.folder.checkpoints, self.counters.step, state)
        prune(self.folder.checkpoints, self.settings.keep, self.counters.step)

    def _elapsed(self) -> float:
        return self._before_s + time.perf_counter() - self._started
