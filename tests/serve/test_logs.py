"""The log: what it could not write is counted."""

from __future__ import annotations

import io
import json
import time

from miudo.serve.logs import Log


class Stubborn(io.StringIO):
    """Takes nothing while it is stubborn."""

    stubborn, refused = True, 0

    def write(self, text: str) -> int:
        if self.stubborn:
            self.refused += text.count("\n")
            raise BlockingIOError
        return super().write(text)


def test_lines_that_the_reader_did_not_take_are_counted_each() -> None:
    out = Stubborn()
    log = Log("json", out)
    for i in range(7):
        log("lost", number=i)
    deadline = time.monotonic() + 10
    while out.refused < 7:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)  # it was told so, and counts
    out.stubborn = False
    log("heard")
    log.close()
    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (line["event"], line["lines_lost"]) == ("heard", 7)
