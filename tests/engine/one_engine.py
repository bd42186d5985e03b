"""A program with one engine, for tests of what would hang or end the process that runs them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

import numpy as np

from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.protocol import SeqWork, Want
from miudo.tensors import StoredTensor, Weights, tensor_table


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    weights: Weights


def model(config: ModelConfig) -> Model:
    waves = {}
    for spec in tensor_table(config):
        values = np.sin(np.arange(np.prod(spec.shape), dtype=np.float32)) / 8
        waves[spec.name] = StoredTensor.from_f32(values.reshape(spec.shape))
    return Model(config, waves)


def fork(threads: int) -> None:
    config = ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=2, d_ff=64, vocab_size=50, max_positions=64
    )
    made = model(config)
    engine = NativeEngine(made, threads=threads)
    k = engine.open()
    right = engine.score(range(40)).logprobs
    engine.step([SeqWork(k, [1, 2, 3])])
    child = os.fork()
    if child == 0:
        for call in (
            lambda: engine.step([SeqWork(k, [1])]),
            lambda: engine.score([1, 2]),
            lambda: engine.length(k),
            engine.open,
            lambda: engine.close(k),
        ):
            try:
                call()
                print("not refused")
            except RequestError as refused:
                if "fork" not in str(refused):
                    print(refused)
        del engine
        print("refused")
        own = NativeEngine(made, threads=threads)
        print("own engine:", "equal" if (own.score(range(40)).logprobs == right).all() else "not")
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print("the child failed")
    same = (engine.score(range(40)).logprobs == right).all() and engine.length(k) == 3
    print("parent:", "equal" if same else "not")


def prompt() -> None:
    """Some 0.2 T operations in one step: seconds."""
    config = ModelConfig.uniform(
        n_layers=8, d_model=512, n_heads=8, d_ff=2048, vocab_size=64, max_positions=8192
    )
    engine = NativeEngine(model(config))
    k = engine.open()
    engine.step([SeqWork(k, [1])])
    engine.truncate(k, 0)
    print("begins", flush=True)
    try:
        engine.step([SeqWork(k, np.arange(8192) % 64, Want.NOTHING)])
        print("was not stopped")
    except KeyboardInterrupt:
        print(time.monotonic())
    print(engine.length(k))
    engine.step([SeqWork(k, [1, 2])])
    print(engine.length(k))


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        fork(int(sys.argv[2]))
    else:
        prompt()
