"""One class a runtime: `decode` and `prompt` in token ids, each returning tokens and their time.

For: `engine_worker.py`. What prepares a measurement (a prompt before decoding) is not timed.
Not for: text, or quality: weights and ids are random, and a dense decoder takes the same time
for any of them.
Read next: `engine_rows.py`.

Every runtime is imported where it is used: each lives in a Python of its own.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from engine_worker import LEAST_S, Timed, timed

Done = tuple[int, Timed]
READ_BYTES = 1 << 30  # no cache holds a part worth counting
LOWEST_ID = 300  # below are the special tokens and the bytes


def random_ids(vocab_size: int, count: int, seed: int = 0) -> list[int]:
    """Returns ids by a fixed rule; row `seed` of a batch has its own."""
    draw = random.Random(seed)  # noqa: S311 - the same ids for every runtime
    return [draw.randrange(LOWEST_ID, vocab_size) for _ in range(count)]


class Miudo:
    """The native engine, as `miudo run` makes it; a step chooses the ids itself."""

    def __init__(self, path: str, threads: int) -> None:
        import miudo
        from miudo.engine.native import NativeEngine
        from miudo.formats import open_model
        from miudo.protocol import SeqWork, Want

        self.engine = NativeEngine(open_model(Path(path)), threads=threads)
        self.version = f"{miudo.__version__} ({self.engine.isa})"
        self.work, self.nothing = SeqWork, Want.NOTHING
        self.vocab_size = self.engine.config.vocab_size
        self.kept: dict[tuple[int, int], list[int]] = {}
        self.cache: dict[tuple[int, int], int] = {}
        self.facts: dict[str, int] = {}
        self.prompts = 0

    def decode(self, context: int, tokens: int, sequences: int = 1) -> Done:
        """Returns tokens and the time of greedy steps after `context` positions."""
        key = (context, sequences)
        before = self.engine.cache_bytes_used
        kept = self._kept(key)
        ids: list[Any] = [LOWEST_ID] * sequences

        def steps() -> None:
            nonlocal ids
            for _ in range(tokens):
                batch = [self.work(c, (i,)) for c, i in zip(kept, ids, strict=True)]
                ids = [out.token for out in self.engine.step(batch)]

        span = timed(steps)
        # Measured once, when nothing else of the cache changed.
        self.cache.setdefault(key, self.engine.cache_bytes_used - before)
        self.facts = {"cache_bytes": self.cache[key]}
        return tokens * sequences, span

    def prompt(self, tokens: int) -> Done:
        """Returns tokens and the time until the next one is known."""
        self.prompts += 1  # no two begin alike: there is nothing to remember
        conversation = self.engine.open()
        ids = random_ids(self.vocab_size, tokens, seed=self.prompts)
        span = timed(lambda: self.engine.step([self.work(conversation, ids)]))
        self.engine.close(conversation)
        return tokens, span

    def _kept(self, key: tuple[int, int]) -> list[int]:
        """Returns (positions, number of) conversations: made once, then cut back."""
        context, sequences = key
        for conversation in self.kept.get(key, ()):
            self.engine.truncate(conversation, context)
        if key in self.kept:
            return self.kept[key]
        self.kept[key] = [self.engine.open() for _ in range(sequences)]
        for row, conversation in enumerate(self.kept[key]):
            ids = random_ids(self.vocab_size, context, seed=row)
            self.engine.step([self.work(conversation, ids, self.nothing)])
        return self.kept[key]


class LlamaCpp:
    """llama.cpp through its C interface; the most probable id is chosen by NumPy."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.lib, self.version, self.threads = llama_cpp, llama_cpp.__version__, threads
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp did not load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.shape = (0, 0)
        self.context: Any = None
        self.batch = llama_cpp.llama_batch_init(512, 0, 8)
        self.ids = [random_ids(self.vocab_size, 8192, row) for row in range(8)]

    def _open(self, positions: int, sequences: int) -> None:
        if self.shape == (positions, sequences):
            return
        if self.context:
            self.lib.llama_free(self.context)
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.no_perf = positions * sequences, sequences, True
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self.threads
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp made no context of {positions} x {sequences}")
        self.shape = (positions, sequences)

    def _put(self, sequence: int, begin: int, ids: list[int]) -> None:
        """Takes in ids of one sequence; the last one's logits are kept."""
        if self.shape[1] == 1:  # the arrays need not be filled one by one
            array = (self.lib.llama_token * len(ids))(*ids)
            self._take(self.lib.llama_batch_get_one(array, len(ids)))
            return
        self._take(self._filled([(t, begin + i, sequence) for i, t in enumerate(ids)]))

    def _filled(self, rows: list[tuple[int, int, int]]) -> Any:
        """Returns a batch of (id, position, sequence), with logits for each row."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        return batch

    def _take(self, batch: Any) -> None:
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self.lib.llama_synchronize(self.context)

    def _chosen(self, row: int) -> int:
        logits = self.lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())

    def _restart(self, positions: int, sequences: int) -> None:
        self._open(positions, sequences)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def _read(self, sequence: int, tokens: int) -> None:
        for begin in range(0, tokens, 512):
            self._put(sequence, begin, self.ids[sequence][begin : min(tokens, begin + 512)])

    def decode(self, context: int, tokens: int, sequences: int = 1) -> Done:
        """Returns tokens and the time of greedy steps after `context` positions."""
        self._restart(-(-(context + tokens) // 256) * 256, sequences)
        for sequence in range(sequences):
            self._read(sequence, context)
        ids = [row[context] for row in self.ids[:sequences]]

        def steps() -> None:
            for step in range(context, context + tokens):
                if sequences == 1:
                    self._put(0, step, ids)
                else:
                    self._take(self._filled([(t, step, s) for s, t in enumerate(ids)]))
                ids[:] = [self._chosen(row - sequences) for row in range(sequences)]

        return tokens * sequences, timed(steps)

    def prompt(self, tokens: int) -> Done:
        """Returns tokens and the time until the next one is known."""
        self._restart(1024, 1)

        def once() -> None:
            self._read(0, tokens)
            self._chosen(-1)

        return tokens, timed(once)


class LlamaCppServer:
    """llama.cpp's prebuilt AVX2 build: its server inside the process, by its own clock."""

    def __init__(self, path: str, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 1024, 1, True, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.version = xllamacpp.__version__
        self.server = xllamacpp.Server(params)
        self.ids = random_ids(32000, 1024)

    def _ask(self, prompt: int, tokens: int) -> tuple[dict[str, float], Timed]:
        answers: list[Any] = []
        order = {
            "prompt": self.ids[:prompt],
            "n_predict": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        }
        span = timed(lambda: answers.append(self.server.handle_completions(order)))
        return answers[0]["timings"], span

    def decode(self, context: int, tokens: int, sequences: int = 1) -> Done:
        """Returns tokens and the time of greedy steps after `context` positions."""
        if sequences != 1:
            raise RuntimeError("its server is asked for one sequence at a time")
        timings, span = self._ask(context, tokens + 1)
        # Its clock of generation starts when the first id has been chosen.
        return tokens, part(span, timings["predicted_ms"] / 1e3)

    def prompt(self, tokens: int) -> Done:
        """Returns tokens and the time until the next one is known."""
        timings, span = self._ask(tokens, 1)
        return tokens, part(span, timings["prompt_ms"] / 1e3)


class OnnxRuntime:
    """onnxruntime-genai on a folder of its model builder."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai

        self.lib, self.version = onnxruntime_genai, onnxruntime_genai.__version__
        config = onnxruntime_genai.Config(path)
        options = f'{{"intra_op_num_threads": {threads}}}'
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {options}}}}}}}')
        self.model = onnxruntime_genai.Model(config)
        self.ids = [random_ids(32000, 8192, row) for row in range(8)]

    def _start(self, context: int, length: int, sequences: int) -> Any:
        params = self.lib.GeneratorParams(self.model)
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=sequences
        )
        return self.lib.Generator(self.model, params)

    def _rows(self, tokens: int, sequences: int) -> Any:
        return np.array([row[:tokens] for row in self.ids[:sequences]], dtype=np.int32)

    def decode(self, context: int, tokens: int, sequences: int = 1) -> Done:
        """Returns tokens and the time of greedy steps after `context` positions."""
        running = self._start(context, context + tokens + 2, sequences)
        running.append_tokens(self._rows(context, sequences))
        running.generate_next_token()  # chooses from the prompt's logits alone

        def steps() -> None:
            for _ in range(tokens):
                running.generate_next_token()

        return tokens * sequences, timed(steps)

    def prompt(self, tokens: int) -> Done:
        """Returns tokens and the time until the next one is known."""
        running = self._start(0, tokens + 2, 1)

        def once() -> None:
            running.append_tokens(self._rows(tokens, 1))
            running.generate_next_token()

        return tokens, timed(once)


class OpenVino:
    """openvino-genai on a folder of optimum-cli, by its own time stamps of tokens."""

    def __init__(self, path: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self.lib, self.version = openvino_genai, openvino_genai.__version__
        self.tensor = openvino.Tensor
        # Its other backend, paged attention, is made for servers.
        how = {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": "SDPA"}
        self.pipeline = openvino_genai.LLMPipeline(path, "CPU", how)
        self.ids = [random_ids(32000, 8192, row) for row in range(8)]

    def _ask(self, prompt: int, tokens: int, sequences: int) -> tuple[list[float], Timed]:
        """Returns seconds from the start to each token, and the whole."""
        config = self.lib.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        rows = np.array([row[:prompt] for row in self.ids[:sequences]], dtype=np.int64)
        inputs = self.lib.TokenizedInputs(self.tensor(rows), self.tensor(np.ones_like(rows)))
        results: list[Any] = []
        span = timed(lambda: results.append(self.pipeline.generate(inputs, config)))
        if any(len(row) != tokens for row in results[0].tokens):
            raise RuntimeError(f"{len(results[0].tokens[0])} tokens came, {tokens} were wanted")
        raw = results[0].perf_metrics.raw_metrics
        first = raw.m_times_to_first_token[0] / 1e6  # microseconds; the stamps are milliseconds
        stamps = raw.m_new_token_times
        begin = stamps[0]
        return [first + (stamp - begin) / 1e3 for stamp in stamps], span

    def decode(self, context: int, tokens: int, sequences: int = 1) -> Done:
        """Returns tokens and the time of greedy steps after `context` positions."""
        times, span = self._ask(context, tokens + 1, sequences)
        return tokens * sequences, part(span, times[-1] - times[0])

    def prompt(self, tokens: int) -> Done:
        """Returns tokens and the time until the next one is known."""
        times, span = self._ask(tokens, 1, 1)
        return tokens, part(span, times[0])


class Machine:
    """No model: plain reading of memory and 8-bit products on registers, by the core's probe."""

    def __init__(self, path: str, threads: int) -> None:
        from miudo.engine.native_door import call, load_native
        from miudo.engine.probe import probe_isa

        self.version, self.threads = probe_isa(), threads
        self.call, self.native = call, load_native()

    def read(self) -> tuple[float, Timed]:
        """Returns bytes and their time."""
        return self._probe(0, READ_BYTES)

    def multiply(self) -> tuple[float, Timed]:
        """Returns operations and their time: a product and its sum are two."""
        return self._probe(1, 0)

    def _probe(self, kind: int, size: int) -> tuple[float, Timed]:
        rates: list[float] = []

        def work() -> None:
            repeats, seconds = 5, LEAST_S / 5
            found = self.call(self.native.probe, kind, None, self.threads, size, seconds, repeats)
            rates.extend(found)

        span = timed(work)
        # Filling the memory before is in the span, not in the rates.
        return float(np.median(rates)) * span.seconds, span


def part(span: Timed, seconds: float) -> Timed:
    """Returns `seconds` of `span`, with their share of all that was taken."""
    share = seconds / span.seconds
    return Timed(seconds, *(share * s for s in (span.cpu_s, span.foreign_s, span.stolen_s)))


RUNTIMES: dict[str, Callable[[str, int], Any]] = {
    "machine": Machine,
    "miudo": Miudo,
    "llama.cpp": LlamaCpp,
    "llama.cpp AVX2": LlamaCppServer,
    "ONNX Runtime": OnnxRuntime,
    "OpenVINO": OpenVino,
}
