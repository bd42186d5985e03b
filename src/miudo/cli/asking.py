"""`miudo ask`: a teacher's answers to a file of prompts.

For: text to learn from, of a model here or behind an address.
Not for: asking (`miudo.data.asked`) or the protocol (`miudo.engine.remote`).
Read next: `miudo.data.asked`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, verb
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.data.asked import Teacher

__all__ = ["ask"]

_SHOWN_EVERY = 20


@verb("ask")
@click.argument("teacher")
@click.option(
    "--prompts",
    multiple=True,
    required=True,
    help="What to ask: JSONL of prompt or messages, or text, a prompt a line.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write: NAME.jsonl."
)
@click.option("--model", help="The model's name at the address TEACHER.")
@click.option(
    "--key-variable",
    metavar="NAME",
    help="Environment variable that holds the address's key; default MIUDO_API_KEY.",
)
@click.option("--key-file", type=click.Path(path_type=Path), help="Or the file that holds it.")
@click.option("--system", help="System message of prompts without their own.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, help="Prompts asked at a time.")
@click.option("--keep-cut", is_flag=True, help="Keep answers that --max-tokens cut off.")
@click.option("--resume", is_flag=True, help="Go on with the file --out.")
def ask(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    prompts: tuple[str, ...],
    out: Path,
    system: str | None,
    max_tokens: int,
    workers: int,
    keep_cut: bool,
    resume: bool,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Have TEACHER answer --prompts and write conversations to learn from.

    TEACHER is a model of this machine, or the address of a server that speaks the OpenAI chat
    protocol (http://127.0.0.1:8080/v1, with --model). `miudo finetune` learns from what is
    written.
    """
    from miudo.data.asked import AskSettings
    from miudo.data.asked import ask as run

    settings = AskSettings(max_tokens, system, workers, keep_cut=keep_cut)

    def note(kept: int, asked: int) -> None:
        if asked % _SHOWN_EVERY < workers:
            click.echo(f"{asked:,} prompts, {kept:,} answers", err=True)

    with _opened(teacher, workers, **drawing) as asked:
        report = run(asked, prompts, out, settings, resume=resume, note=note)
    counts = dataclasses.asdict(report)
    lines = [f"answers  {out}", *(f"{name:<18}{value:,}" for name, value in counts.items())]
    emit({"schema": 1, "answers": str(out), **counts}, "\n".join(lines), as_json=as_json)


@contextmanager
def _opened(teacher: str, workers: int, **drawing: Any) -> Iterator[Teacher]:
    if teacher.startswith(("http://", "https://")):
        with _remote(teacher, **drawing) as found:
            yield found
        return
    for name in ("model", "key_variable", "key_file"):
        if drawing.pop(name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError("is for an address", where=flag, remedy="Leave it out")
    if workers > 1:
        raise UsageError("a model of this machine answers one at a time", where="--workers")
    yield _local(teacher, **drawing)


@contextmanager
def _remote(
    url: str, model: str | None, key_variable: str | None, key_file: Path | None, **drawing: Any
) -> Iterator[Teacher]:
    from miudo.data.asked import Teacher
    from miudo.engine.remote import RemoteGenerator, RemoteSettings, read_key

    if key_variable is not None and key_file is not None:
        raise UsageError("name one key", where="--key-variable, --key-file")
    settings = RemoteSettings(url, model or "", **drawing)
    generator = RemoteGenerator(settings, key=read_key(key_variable, key_file))
    try:
        yield Teacher(generator, {"server": settings.server, "model": settings.model, **drawing})
    finally:
        generator.close()


def _local(reference: str, temperature: float, top_p: float, seed: int) -> Teacher:
    from miudo.cli.licensing import state_licence_of_model
    from miudo.data.asked import Teacher
    from miudo.engine.answers import EngineGenerator
    from miudo.engine.generate import GenerateSettings
    from miudo.evaluate.loading import load_model
    from miudo.formats.export import weights_sha256
    from miudo.protocol import SamplingSettings
    from miudo.records import Artefact

    path = model_path(reference)
    loaded = load_model(path)
    record = loaded.model.record
    state_licence_of_model(reference, path, record)
    drawing = {"temperature": temperature, "top_p": top_p, "seed": seed}
    generator = EngineGenerator(
        loaded.engine,
        loaded.tokenizer,
        loaded.model.config,
        GenerateSettings(sampling=SamplingSettings(**drawing)),  # type: ignore[arg-type]
        template=loaded.model.chat_template,
    )
    artefact = Artefact("teacher", path.name, weights_sha256(path))
    parents = () if record is None else (record,)
    return Teacher(generator, {"model": path.name, **drawing}, artefact, parents)
