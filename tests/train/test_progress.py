"""What a person sees, and the log that stays."""

from __future__ import annotations

import io
from pathlib import Path

from miudo.train.metrics import append_metrics, read_metrics, truncate_metrics
from miudo.train.progress import Lines, StepReport


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(step: int, held_out: float | None = None) -> StepReport:
    return StepReport(step, 20, step * 16, 2.5, 1234.5, 3725.0, held_out_loss=held_out)


def test_plain_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.report(report(10))
    lines.note("a note")
    assert stream.getvalue() == ("step 10/20  loss 2.5000  1,234 tokens/s  1:02:05 left\na note\n")


def test_one_line_is_rewritten_on_a_terminal() -> None:
    stream = Terminal()
    lines = Lines(stream)
    lines.report(report(1))
    lines.report(report(2))
    lines.note("a note")
    lines.report(report(3, held_out=2.0))
    shown = stream.getvalue()
    assert shown.count("\r\x1b[K") == 3
    assert "left\na note\n" in shown
    assert shown.endswith("held-out 2.0000\n")


def test_a_torn_line_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n'
    assert read_metrics(tmp_path / "absent") == []
