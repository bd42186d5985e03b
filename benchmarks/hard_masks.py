"""How long a mask takes at the worst: languages that are meant to be hard, answers at random.

For: the bound that docs/serving.md names; a step of everybody waits while a mask is found.
Not for: what clients send (`guided.py`).
Read next: `miudo.engine.grammars`, which sets the limits.

    python benchmarks/hard_masks.py [MODEL] [--answers 6] [--masks 60]

Without MODEL the vocabulary is that of the model inside the package. Seconds are processor time
of the one thread: on a busy machine they are longer than on a quiet one all the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import numpy as np

from miudo.engine.grammars import Grammars, Language, json_of, lark
from miudo.errors import RequestError
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import model_path
from miudo.records import environment


def languages() -> dict[str, Language]:
    """Returns languages by name: of many states, of many ways to read a text, of many words."""
    patterns = [
        "(.*a.{400}|.*b.{300}c)", ".*a.{12}", ".*a.{30}", ".*a.{100}", ".*[a-m].{60}",
        "((a|b|ab|ba|aba)*c){20}", ".*(x.{1,50}){1,20}y", "(.{0,100}a){20}", "(.*e.*t.*){8}",
    ]  # fmt: skip
    found = {
        f"/{pattern}/": json_of({"type": "string", "pattern": f"^{pattern}$"})
        for pattern in patterns
    }
    kinds = ["string", "number", "object"]
    objects = [
        {
            "type": "object",
            "properties": {f"k{i}": {"type": "string"}, "same": {"type": "integer"}},
            "required": [f"k{i}"],
            "additionalProperties": False,
        }
        for i in range(60)
    ]
    schemas = {
        "9,000 characters at least": {"type": "string", "minLength": 9000, "maxLength": 10_000},
        "any JSON": {},
        "4,096 values": {"enum": [f"value {i * 7919 % 100_003} {i}" for i in range(4096)]},
        "80 names": {"type": "object", "properties": {f"n{i}": {"type": kinds} for i in range(80)}},
        "60 objects, one of": {"anyOf": objects},
    }
    found |= {name: json_of(schema) for name, schema in schemas.items()}
    words = [f"/[a-z]{{{i % 9 + 1},{i % 9 + 30}}}[0-9 ]{{0,{i + 1}}}/" for i in range(120)]
    grammars = {
        "s: s s": 'start: s\ns: s s | "a" | "b" | "e" | " "\n',
        "s: ( s* )": 'start: s+\ns: "(" s* ")" | s s | w\nw: /[a-z ]{1,30}/ | /[a-z]+ [a-z]+/\n',
        "120 words": f"start: w*\nw: {' | '.join(words)}\n",
    }
    return found | {name: lark(source) for name, source in grammars.items()}


def main() -> None:
    """Prints for each language its masks' median and slowest, and what ended an answer early."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--answers", type=int, default=6)
    parser.add_argument("--masks", type=int, default=60, help="of each answer, at most")
    options = parser.parse_args()
    print(environment())
    loaded = load_model(options.model or model_path(None), threads=1)
    config = loaded.model.config
    grammars = Grammars(loaded.tokenizer, config.vocab_size, config.eos_ids)
    slowest = 0.0
    for name, language in languages().items():
        seconds, end = drawn(grammars, language, options.answers, options.masks)
        slowest = max(slowest, *seconds)
        middle = float(np.median(seconds))
        print(f"{name:26} {1e3 * middle:7.3f} ms, slowest {1e3 * max(seconds):7.3f} {end:.60}")
    print(f"the slowest of all masks took {1e3 * slowest:.1f} ms")


def drawn(
    grammars: Grammars, language: Language, answers: int, masks: int
) -> tuple[list[float], str]:
    """Returns seconds of each mask, the refused last one of an answer included."""
    seconds, end = list[float](), ""
    for seed in range(answers):
        random = Random(seed)  # noqa: S311 - no secrets
        try:
            grammar = grammars.begin(language)
        except RequestError:
            return [0.0], "refused when it was compiled"
        for _ in range(masks):
            start = time.thread_time()
            try:
                mask = grammar.mask()
            except RequestError as error:
                end = str(error).partition("(")[2]
                break
            finally:
                seconds.append(time.thread_time() - start)
            if grammar.take(random.choice(np.flatnonzero(mask).tolist())):
                break
    return seconds, end


if __name__ == "__main__":
    main()
