from functools import partial
from pathlib import Path

import pytest

from miudo.errors import DataError, UsageError
from miudo.shrink.stages import STATE_FILE, Stage, run_stages


class Work:
    """Stages that write their product and keep a list of what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.said: list[str] = []
        self.broken: str | None = None

    def __call__(self, **settings: int) -> dict[str, float]:
        stages = [
            Stage(n, f"make {n}", self.folder / n, partial(self._make, n)) for n in ("a", "b")
        ]
        return run_stages(stages, self.folder, settings, self.said.append)

    def _make(self, name: str) -> None:
        self.ran.append(name)
        if name == self.broken:
            raise RuntimeError("stopped")
        (self.folder / name).touch()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "out")


def test_every_stage_runs_once(work: Work) -> None:
    assert set(work(seed=1)) == {"a", "b"}
    work(seed=1)
    assert work.ran == ["a", "b"]
    assert any("[1/2] make a: done before" in line for line in work.said)


def test_after_an_interruption_the_rest_runs(work: Work) -> None:
    work.broken = "b"
    with pytest.raises(RuntimeError):
        work()
    work.broken = None
    work()
    assert work.ran == ["a", "b", "b"]


def test_a_product_that_is_gone_is_made_again(work: Work) -> None:
    work()
    (work.folder / "a").unlink()
    work()
    assert work.ran == ["a", "b", "a"]


def test_a_product_without_its_entry_is_not_trusted(work: Work) -> None:
    work.folder.mkdir()
    (work.folder / "a").touch()
    work()
    assert work.ran == ["a", "b"]


def test_other_settings_are_refused(work: Work) -> None:
    work(seed=1)
    with pytest.raises(UsageError, match="other settings"):
        work(seed=2)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": 3, "settings": {}}'])
def test_a_damaged_state_is_told(work: Work, content: str) -> None:
    work.folder.mkdir()
    (work.folder / STATE_FILE).write_text(content)
    with pytest.raises(DataError, match="Delete the folder"):
        work()
