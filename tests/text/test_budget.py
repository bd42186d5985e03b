"""What a rendering may use: a pause of the process is forgiven once, endless work never."""

from __future__ import annotations

import pytest

from miudo.errors import RequestError
from miudo.text.budget import Budget


def test_one_pause_is_forgiven_and_a_second_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.thread_time", lambda: now[0])
    budget = Budget(steps=100, seconds=0.2, chars=10)
    now[0] = 5.0
    budget.step()
    now[0] = 5.1
    budget.step()
    now[0] = 5.3
    with pytest.raises(RequestError, match="runs too long"):
        budget.step()


def test_steps_are_never_forgiven() -> None:
    budget = Budget(steps=2, seconds=10.0, chars=10)
    budget.step()
    budget.step()
    with pytest.raises(RequestError, match="runs too long"):
        budget.step()
