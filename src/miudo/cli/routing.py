"""`miudo route`: which of several models answers a prompt, and why.

For: observing, training, calibrating and explaining a route table.
Not for: answering (`miudo serve --route`).
Read next: `miudo.route.jobs`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from miudo.cli.options import Verb, emit, printable
from miudo.cli.settings import make_settings, read_toml
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.evaluate.accuracy import Accuracy
    from miudo.route.jobs import Ask
    from miudo.route.targets import Decision, RouteTable, Target

__all__ = ["calibrate", "explain", "observe", "read_table", "route", "train"]

_PATH = click.Path(path_type=Path)
_SHOWN_EVERY = 50


@click.group("route")
def route() -> None:
    """Choose between models by a route table.

    A table lists targets from the cheapest to the dearest. `observe` asks them your examples,
    `train` learns when the cheapest is wrong, `calibrate` finds a threshold, `explain` tells what
    would be decided. `miudo serve --route TABLE.toml` answers by it, as the model auto.
    """


@route.command("observe", cls=Verb)
@click.argument("table", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="JSONL of prompt and answer.")
@click.option("--out", type=_PATH, required=True, help="File to write: NAME.jsonl.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
def observe(
    table: Path, *, data: Path, out: Path, max_tokens: int, threads: int | None, as_json: bool
) -> None:
    """Ask every target of TABLE the prompts of --data; keep answers and confidences.

    Remote targets are asked too, which sends them the prompts.
    """
    from miudo.evaluate.accuracy import accuracy
    from miudo.files import check_output, refuse_inputs
    from miudo.route import jobs
    from miudo.route.observing import read_examples, write_observations

    refuse_inputs(out, data, table)
    check_output(out)
    examples, found = read_examples(data), []
    askers = {t.name: _asker(t, max_tokens, threads) for t in read_table(table).targets}
    for each in jobs.observe(examples, askers):
        found.append(each)
        if len(found) % _SHOWN_EVERY == 0:
            click.echo(f"{len(found):,} of {len(examples):,} prompts", err=True)
    write_observations(out, found)
    rows = {}
    for name in askers:
        known = [r for e in found if (r := e.answered[name].right) is not None]
        rows[name] = accuracy(known) if known else None
    told = [f"observations  {out}"]
    told += [f"{n:<14}right {_share(row)}" for n, row in rows.items() if row is not None]
    values = {n: None if row is None else _plain(row) for n, row in rows.items()}
    emit({"schema": 1, "out": str(out), "right": values}, "\n".join(told), as_json=as_json)


@route.command("train", cls=Verb)
@click.argument("observations", type=_PATH)
@click.option("--target", required=True, help="Whose wrong answers are learned: the cheapest.")
@click.option("--beside", help="And only where this target is right: the dearer one.")
@click.option("--out", type=_PATH, required=True, help="Folder to write.")
@click.option("--bits", type=click.IntRange(4, 16), default=12, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def train(
    observations: Path,
    *,
    target: str,
    beside: str | None,
    out: Path,
    bits: int,
    seed: int,
    as_json: bool,
) -> None:
    """Train the classifier that tells from a prompt alone whether --target will be wrong."""
    from miudo.files import refuse_inputs
    from miudo.route import jobs
    from miudo.route.fitting import FitSettings

    refuse_inputs(out, observations)
    fitted = jobs.train(observations, target, FitSettings(bits=bits, seed=seed), out, beside=beside)
    numbers = {
        "penalty": fitted.penalty,
        "log_loss": fitted.log_loss,
        "log_loss_of_guessing": fitted.guess_loss,
        "auroc": fitted.ranked,
    }
    lines = [f"classifier            {out}", *(f"{n:<22}{v:.4g}" for n, v in numbers.items())]
    emit({"schema": 1, "classifier": str(out), **numbers}, "\n".join(lines), as_json=as_json)


@route.command("calibrate", cls=Verb)
@click.argument("table", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="Observations, or JSONL of prompts.")
@click.option(
    "--signal",
    type=click.Choice(["complexity", "confidence"]),
    default="complexity",
    show_default=True,
    help="Read before the target answers, or from its answer.",
)
@click.option("--target", help="Whose threshold; default: the first target's.")
@click.option("--share", type=float, help="Pass on at most this share of prompts.")
@click.option("--quality", type=float, help="Or pass on as few as keep this share right.")
def calibrate(
    table: Path,
    *,
    data: Path,
    signal: Literal["complexity", "confidence"],
    target: str | None,
    share: float | None,
    quality: float | None,
    as_json: bool,
) -> None:
    """Find the threshold of a target of TABLE that gives a --share or a --quality on --data."""
    from miudo.route import jobs

    read = read_table(table)
    aim = jobs.Aim(signal, target or read.targets[0].name, share, quality)
    made = jobs.calibrate(read, table.parent, data, aim)
    lines = [
        f"{made.setting} = {made.value!r}    # in the table of {made.target}",
        f"passed on   {_share(made.found.passed_on)}",
    ]
    if made.found.quality is not None:
        lines.append(f"right       {_share(made.found.quality)}")
    emit({"schema": 1, **made.to_json()}, "\n".join(lines), as_json=as_json)


@route.command("explain", cls=Verb)
@click.argument("table", type=_PATH)
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1), help="Length of the answer, at most.")
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(0), help="Seconds that it may take."
)
@click.option("--offline", is_flag=True, help="Without the network.")
@click.option("--stays", is_flag=True, help="The data may not leave this machine.")
@click.option("--use", help="What the answer is for, where licences ask.")
def explain(table: Path, prompt: str, *, as_json: bool, **demands: Any) -> None:
    """Tell who would be asked PROMPT by TABLE, in which order, and why nobody else. Asks nobody."""
    import psutil

    from miudo.errors import UsageError
    from miudo.route.decide import decide
    from miudo.route.jobs import complexity_of
    from miudo.route.targets import Facts, World

    if demands["deadline_s"] is not None and demands["max_tokens"] is None:
        raise UsageError("needs --max-tokens", where="--deadline", remedy="Say how long at most")
    read = read_table(table)
    facts = Facts(prompt, needs=frozenset({"chat"}), **demands)
    known = None if read.complexity == "none" else complexity_of(read, table.parent)(prompt)
    world = World(int(psutil.virtual_memory().available))
    decision = decide(read, facts, world, known)
    text = _told(read, decision)
    emit({"schema": 1, **decision.to_json()}, printable(text), as_json=as_json)
    if not decision.order:
        raise click.exceptions.Exit(3)


def read_table(path: Path) -> RouteTable:
    """Returns the route table in a file; local models that state no size have their files'."""
    from miudo.route.targets import RouteTable

    table = make_settings(RouteTable, read_toml(path), where=str(path))
    return replace(table, targets=tuple(map(_sized, table.targets)))


def _sized(target: Target) -> Target:
    if target.remote or target.memory_bytes:
        return target
    path = model_path(target.model)
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
    return replace(target, memory_bytes=sum(file.stat().st_size for file in files))


def _asker(target: Target, max_tokens: int, threads: int | None) -> Ask:
    from miudo.route.observing import ask_local, ask_remote

    if target.url is not None:
        from miudo.engine.remote import RemoteGenerator, RemoteSettings, read_key

        key = None if target.key_variable is None else read_key(target.key_variable)
        settings = RemoteSettings(target.url, target.model, temperature=0.0, top_p=1.0)
        generator = RemoteGenerator(settings, key=key)
        return lambda example: ask_remote(generator, example, max_tokens)
    from miudo.evaluate.loading import load_model

    loaded = load_model(model_path(target.model), threads=threads)
    return lambda example: ask_local(loaded, example, max_tokens)


def _told(table: RouteTable, decision: Decision) -> str:
    lines = []
    if decision.complexity is not None:
        signals = ", ".join(f"{name} {weight:+.2f}" for name, weight in decision.complexity.signals)
        told = decision.complexity
        lines.append(f"complexity {told.value:.3f} by {told.method} ({signals})")
    for target in (t for name in decision.order for t in table.targets if t.name == name):
        sure = target.accept_above
        last = target.name == decision.order[-1]
        final = "its answer is final"
        unsure = f"answers if its confidence ({table.confidence}) is at least {sure}"
        lines.append(f"{target.name}: {final if last or sure is None else unsure}")
    lines += [f"{no.target}: not asked, {no.rule}: {no.reason}" for no in decision.refused]
    return "\n".join(lines if decision.order else [*lines, "nobody may answer"])


def _share(found: Accuracy) -> str:
    interval = f"95% interval {found.low:.1%} to {found.high:.1%}"
    return f"{found.value:.1%} of {found.samples:,} ({interval})"


def _plain(found: Accuracy) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "samples": found.samples}
