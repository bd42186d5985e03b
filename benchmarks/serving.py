"""What a server adds to its engine, and what it makes of many clients, beside llama.cpp's.

For: tokens a second of 1, 8 and 32 clients, gaps between tokens, the first token, CPU time of a
streamed token, a shared beginning, a full queue, a client that goes, the end of a process.
Not for: the engine's own speed (`engine.py`), or what is answered (`tests/serve`).
Read next: `serving_client.py`.

    python benchmarks/serving.py model.gguf --clients 1 8 32 --pairs 3

The peer is llama.cpp's server as `xllamacpp` carries it (AVX2, prebuilt), on the same file, with
as many slots and threads; without that package its columns are missing. Runs alternate. A token
is an event of the stream; greedy, and the end is forbidden, so that all streams are equally long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from serving_client import Load, body, stream, together

from miudo.evaluate.loading import load_model
from miudo.protocol import Engine, SamplingSettings, SeqWork

PEER = """
import sys, time, xllamacpp
path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = path, slots, slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.port, params.warmup, params.ui = 0, True, False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""


@dataclass
class Server:
    """A server that is running."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    ready_s: float

    def cpu_s(self) -> float:
        """Returns CPU seconds since its start."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Returns bytes of memory in use."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def running(command: Sequence[str]) -> Iterator[Server]:
    """Starts a server that prints its address, and kills it in the end."""
    begun = time.perf_counter()
    quiet = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
    )
    try:
        line = process.stdout.readline().strip() if process.stdout else ""
        url = json.loads(line)["url"] if line.startswith("{") else line
        parts = urlsplit(url)
        address = parts.hostname or "", parts.port or 0
        yield Server(process, address, time.perf_counter() - begun)
    finally:
        process.kill()
        process.wait()


def ours(given: argparse.Namespace, *more: str) -> list[str]:
    numbers = ["--parallel", str(max(given.clients)), "--threads", str(given.threads)]
    command = [sys.executable, "-m", "miudo", "serve", str(given.model), "--port", "0", "--json"]
    return [*command, *numbers, *more]


def theirs(given: argparse.Namespace) -> list[str]:
    numbers = (max(given.clients), given.prompt + given.tokens + 8, given.threads)
    return [sys.executable, "-c", PEER, str(given.model), *map(str, numbers)]


@dataclass(frozen=True)
class Bench:
    """What is asked of every server: the options, and prompts that no one has seen."""

    options: argparse.Namespace
    vocab_size: int
    eos: tuple[int, ...]
    draw: np.random.Generator

    def prompt(self, length: int | None = None) -> list[int]:
        """Returns ids that are no special ones."""
        high = min(self.vocab_size, 30_000)
        return self.draw.integers(300, high, length or self.options.prompt).tolist()

    def asked(self, tokens: int | None = None, prompt: Sequence[int] | None = None) -> bytes:
        """Returns a request's body."""
        ids = self.prompt() if prompt is None else prompt
        return body(ids, tokens or self.options.tokens, self.eos)


def main() -> None:
    given = arguments()
    config = load_model(given.model, threads=given.threads).model.config
    bench = Bench(given, config.vocab_size, config.eos_ids, np.random.default_rng(0))
    for name in given.parts:
        PARTS[name](bench)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=tuple(PARTS))
    return parser.parse_args()


def many(bench: Bench) -> None:
    """Every number of clients, on both servers in turns; other prompts each time."""
    given = bench.options
    sides = {"miudo": ours(given)} | ({} if given.no_peer else {"llama.cpp": theirs(given)})
    found: dict[tuple[str, int], list[Load]] = {}
    for _ in range(given.pairs):
        for name, command in sides.items():  # one at a time: a server that waits still polls
            with running(command) as server:
                asyncio.run(together(server.address, [bench.asked(8)]))
                for clients in given.clients:
                    contents = [bench.asked() for _ in range(clients)]
                    load = asyncio.run(together(server.address, contents))
                    check(load, clients, given.tokens)
                    found.setdefault((name, clients), []).append(load)
    print(f"{'clients':>7} {'server':10} {'tokens/s':>9} {'first ms':>9} {'gap ms':>7} {'p99':>7}")
    for clients in given.clients:
        for name in sides:
            loads = found[name, clients]
            print(
                f"{clients:7} {name:10} {middle(x.tokens_per_s for x in loads):9.1f} "
                f"{1e3 * middle(x.first_s for x in loads):9.1f} "
                f"{1e3 * middle(x.gap_s(0.5) for x in loads):7.2f} "
                f"{1e3 * middle(x.gap_s(0.99) for x in loads):7.2f}"
            )
        if len(sides) == 2:
            ratio = middle(x.tokens_per_s for x in found["miudo", clients]) / middle(
                x.tokens_per_s for x in found["llama.cpp", clients]
            )
            print(f"{clients:7} ratio      {ratio:9.2f}")


def check(load: Load, clients: int, tokens: int) -> None:
    """Raises SystemExit where a stream is not whole: its speed would be that of another work."""
    short = [s for s in load.streams if s.status != 200 or len(s.times) < 0.9 * tokens]
    if short:
        raise SystemExit(
            f"{len(short)} of {clients} streams are short: status {short[0].status}, "
            f"{len(short[0].times)} of {tokens} tokens"
        )


def alone(bench: Bench) -> None:
    """One client against the engine in a process of its own, in turns."""
    given = bench.options
    loaded = load_model(given.model, threads=given.threads)
    engine, ids = loaded.engine, bench.prompt()
    speeds: dict[str, list[float]] = {"engine": [], "server": []}
    firsts: dict[str, list[float]] = {"engine": [], "server": []}
    cpu: dict[str, list[float]] = {"engine": [], "server": []}
    with running(ours(given)) as server:
        for _ in range(2 * given.pairs + 1):  # the first of each warms
            begun, spent = time.perf_counter(), time.process_time()
            first, count = run_engine(engine, ids, bench)
            speeds["engine"].append(count / (time.perf_counter() - begun - first))
            cpu["engine"].append((time.process_time() - spent) / count)
            firsts["engine"].append(first)
            before = server.cpu_s()
            # Another first token each time: what is cached would begin sooner.
            ids = bench.prompt()
            load = asyncio.run(together(server.address, [bench.asked(prompt=ids)]))
            check(load, 1, given.tokens)
            (one,) = load.streams
            speeds["server"].append(len(one.gaps) / (one.times[-1] - one.times[0]))
            firsts["server"].append(one.first_s)
            cpu["server"].append((server.cpu_s() - before) / len(one.times))
    kept = {k: middle(v[1:]) for k, v in speeds.items()}
    head = {k: 1e3 * middle(v[1:]) for k, v in firsts.items()}
    used = {k: 1e6 * middle(v[1:]) for k, v in cpu.items()}
    print("\none client       tokens/s   first ms   CPU us a token")
    for name in kept:
        print(f"{name:14} {kept[name]:10.1f} {head[name]:10.2f} {used[name]:14.1f}")
    print(
        f"the server costs {1 - kept['server'] / kept['engine']:.1%} of the speed, "
        f"{used['server'] - used['engine']:.0f} us of CPU a token, "
        f"{head['server'] - head['engine']:.2f} ms of the first"
    )


def run_engine(engine: Engine, ids: Sequence[int], bench: Bench) -> tuple[float, int]:
    """Draws greedy tokens with the engine alone; returns seconds to the first, and the count."""
    # As the server draws: greedy, the end forbidden by a bias.
    sampling = SamplingSettings(temperature=0.0, logit_bias=tuple((t, -100.0) for t in bench.eos))
    conversation = engine.open()
    begun, first, tokens = time.perf_counter(), 0.0, bench.options.tokens
    given: Sequence[int] = ids
    for count in range(tokens):
        (out,) = engine.step([SeqWork(conversation, given, sampling=sampling)])
        given = out.tokens
        if count == 0:
            first = time.perf_counter() - begun
    engine.close(conversation)
    return first, tokens


def prefix(bench: Bench) -> None:
    """The first token of a prompt of 1,000 tokens, and of the same with another end."""
    given = bench.options
    cold, warm = [], []
    with running(ours(given)) as server:
        for _ in range(given.pairs):
            shared = bench.prompt(1000)
            for times in (cold, warm):
                load = asyncio.run(
                    together(server.address, [bench.asked(4, shared + bench.prompt(8))])
                )
                check(load, 1, 4)
                times.append(load.streams[0].first_s)
    print(
        f"\na beginning of 1,000 tokens: first token {1e3 * middle(cold):.1f} ms, again "
        f"{1e3 * middle(warm):.1f} ms, {middle(cold) / middle(warm):.1f} x sooner"
    )


def crowd(bench: Bench) -> None:
    """200 clients at once where 8 run and 16 wait; then a client that goes."""
    given = bench.options
    with running([*ours(given), "--parallel", "8", "--queue", "16"]) as server:
        contents = [bench.asked() for _ in range(200)]
        load = asyncio.run(together(server.address, contents))
        refused = [s.head_s for s in load.streams if s.status == 429]
        broken = sum(s.reset for s in load.streams)
        served = sum(s.status == 200 for s in load.streams)
        print(
            f"\n200 clients: {served} served, {len(refused)} refused (429) after "
            f"{1e3 * middle(refused):.1f} ms (median), {1e3 * max(refused):.1f} ms (last), "
            f"{broken} broken"
        )
    with running([*ours(given), "--parallel", "1", "--queue", "4"]) as server:
        freed = [asyncio.run(gone(server, bench)) for _ in range(given.pairs)]
        print(f"a client that goes frees its place after {1e3 * middle(freed):.1f} ms")


async def gone(server: Server, bench: Bench) -> float:
    """Seconds by which one that waited for a place begins later than one that did not."""
    ids = bench.prompt()
    plain = await stream(server.address, bench.asked(2, ids))
    first = asyncio.create_task(stream(server.address, bench.asked(900), stop_after=16))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(stream(server.address, bench.asked(2)))
    left = (await first).times[-1]
    return (await waiting).times[0] - left - plain.first_s


def ends(bench: Bench) -> None:
    """Start, memory at rest, and SIGTERM while a stream runs."""
    given = bench.options
    readies, rests, stops = [], [], []
    for _ in range(given.pairs):
        with running(ours(given)) as server:
            readies.append(server.ready_s)
            rests.append(server.memory() - given.model.stat().st_size)

            async def leave(server: Server = server) -> float:
                task = asyncio.create_task(stream(server.address, bench.asked()))
                await asyncio.sleep(0.2)
                server.process.send_signal(signal.SIGTERM)
                done = (await task).times[-1]
                await asyncio.to_thread(server.process.wait)
                return time.perf_counter() - done

            stops.append(asyncio.run(leave()))
    print(
        f"\nready after {middle(readies):.2f} s; memory beside the file's "
        f"{given.model.stat().st_size / 1e6:.1f} MB: {middle(rests) / 1e6:.1f} MB; "
        f"after SIGTERM it ended {middle(stops):.2f} s after its last stream"
    )


def middle(values: Iterable[float]) -> float:
    return statistics.median(values)


PARTS = {"load": many, "one": alone, "prefix": prefix, "crowd": crowd, "end": ends}


if __name__ == "__main__":
    main()
