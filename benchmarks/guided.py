"""Whether guided answers are valid, and what a guided token costs more than a free one.

For: the claims of docs/serving.md, on random schemas and on a model of the 15M shape.
Not for: schemas that are meant to harm (`tests/serve/test_guided.py`).
Read next: `miudo.engine.grammars`.

    python benchmarks/guided.py [--schemas 10000] [--pairs 20] [--tokens 96]

Validity: for each random schema an answer is drawn at random among what its grammar allows, and
held against the schema by the package `jsonschema`. Cost: the same prompt, seed and number of
tokens on one engine, free and guided in turns; the guided text is a JSON string without end, so
that both draw every token. The model has the preset's shape, F32 and random weights, and the
tokenizer of the model inside the package. Seconds are processor time of the one thread that
draws and computes: the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from random import Random

import numpy as np
from jsonschema import Draft202012Validator
from random_schemas import random_schema

from miudo.config import ModelConfig
from miudo.engine.generate import GenerateSettings, generate
from miudo.engine.grammars import Grammars, json_of
from miudo.engine.guides import Guided
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import model_path
from miudo.presets import load_preset
from miudo.protocol import SamplingSettings
from miudo.records import environment
from miudo.tensors import StoredTensor, tensor_table
from miudo.text.tokenizer import TextTokenizer

MOST = 200


def main() -> None:
    """Prints counts, then microseconds a token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--preset", default="15m")
    options = parser.parse_args()
    print(environment())
    tokenizer = load_model(model_path(None), threads=1).tokenizer
    config = load_preset(options.preset, vocab_size=tokenizer.vocab_size)
    end = tokenizer.special_ids["<|end|>"]
    grammars = Grammars(tokenizer, config.vocab_size, (end,))
    counts, seconds = Counter[str](), list[float]()
    for seed in range(options.schemas):
        counts[answered(grammars, tokenizer, end, seed, seconds)] += 1
    micros = sorted(1e6 * s for s in seconds)
    print(f"{options.schemas} schemas: {dict(counts)}")
    if micros:
        p50, p99 = (micros[int(len(micros) * share)] for share in (0.5, 0.99))
        print(f"a mask: median {p50:.1f} us, 99 of 100 within {p99:.1f} us, {len(micros)} masks")
    print(options.preset, end=": ")
    pairs(
        NativeEngine(Noise(config), threads=1), tokenizer, grammars, options.pairs, options.tokens
    )


class Noise:
    """A model of random weights."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        draw = np.random.default_rng(0)
        self.weights = {
            spec.name: StoredTensor.from_f32(
                np.float32(0.02) * draw.standard_normal(spec.shape, dtype=np.float32)
            )
            for spec in tensor_table(config)
        }


def answered(
    grammars: Grammars, tokenizer: TextTokenizer, end: int, seed: int, seconds: list[float]
) -> str:
    random = Random(seed)  # noqa: S311 - schemas, not secrets
    schema = random_schema(random)
    try:
        grammar = grammars.begin(json_of(schema))
    except RequestError:
        return "refused"
    ids: list[int] = []
    for _ in range(MOST):
        start = time.thread_time()
        try:
            mask = grammar.mask()
        except RequestError:
            return "refused on the way"
        seconds.append(time.thread_time() - start)
        allowed = np.flatnonzero(mask).tolist()
        closing = [i for i in allowed if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]")]
        token = random.choice((closing if random.random() < 0.5 else None) or allowed)
        token = end if end in allowed and random.random() < 0.7 else token
        ids.append(token)
        if grammar.take(token):
            value = json.loads(tokenizer.decode(ids))
            return "valid" if Draft202012Validator(schema).is_valid(value) else "INVALID"
    return "length"


def pairs(
    engine: NativeEngine, tokenizer: TextTokenizer, grammars: Grammars, n: int, tokens: int
) -> None:
    prompt = tokenizer.encode("The little robot went out and")
    language = json_of({"type": "string", "minLength": 5000})
    free, held = list[float](), list[float]()
    for seed in range(n):
        sampling = SamplingSettings(temperature=1.0, seed=seed)
        settings = GenerateSettings(tokens, sampling)
        for times, guide in (
            (free, None),
            (held, Guided(sampling, grammar=grammars.begin(language))),
        ):
            start = time.thread_time()
            events = generate(engine, tokenizer, prompt, settings, guide=guide)
            made = list(events)[-1].usage["completion_tokens"]
            times.append(1e6 * (time.thread_time() - start) / made)
    more = statistics.median(h - f for h, f in zip(held, free, strict=True))
    print(
        f"one thread, {n} pairs of {tokens} tokens: free "
        f"{statistics.median(free):.0f} us a token, guided {statistics.median(held):.0f}, "
        f"in pairs {more:+.0f} us"
    )


if __name__ == "__main__":
    main()
