"""What only a whole process can tell: how soon it has a first token, and how much memory it took.

For: `engine.py`, by `seconds_to_token` and `most_memory`, which start this file:

    engine_once.py start miudo MODEL 2      writes a line as soon as there is a token
    engine_once.py memory miudo MODEL 2     writes {"idle": bytes, "peak": bytes}

The start counts the interpreter, imports, the file and its tokenizer. The memory is that of a
prompt of 512 and 64 tokens more; "idle" is an interpreter that has imported what it needs.
Read next: `engine.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine_pairs import NotMeasured

TEXT = "hello"
PROMPT, TOKENS = 512, 64


def main() -> None:
    task, runtime, path, threads = sys.argv[1:]
    if task == "memory":
        memory(path, int(threads))
        return
    {"miudo": start_miudo, "llama.cpp": start_llama_cpp}[runtime](path, int(threads))
    os.write(1, b"token\n")
    os._exit(0)  # the end is not measured


def start_miudo(path: str, threads: int) -> None:
    """As `miudo run` loads: the tokenizer is read while weights are packed."""
    from miudo.evaluate.loading import load_model
    from miudo.protocol import SeqWork

    loaded = load_model(Path(path), threads=threads)
    engine = loaded.engine
    engine.step([SeqWork(engine.open(), loaded.tokenizer.encode(TEXT))])


def start_llama_cpp(path: str, threads: int) -> None:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval(model.tokenize(TEXT.encode(), add_bos=False))
    model.sample(temp=0)


def memory(path: str, threads: int) -> None:
    from miudo.engine.native import NativeEngine
    from miudo.formats import open_model
    from miudo.protocol import SeqWork

    idle = status_bytes("VmRSS")
    engine = NativeEngine(open_model(Path(path)), threads=threads)
    conversation = engine.open()
    (out,) = engine.step([SeqWork(conversation, [1] * PROMPT)])
    for _ in range(TOKENS):
        (out,) = engine.step([SeqWork(conversation, (out.token or 0,))])
    print(json.dumps({"idle": idle, "peak": status_bytes("VmHWM")}))


def status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"no {name} in /proc/self/status")
    return 1024 * int(found[1])


def seconds_to_token(python: Path, runtime: str, path: Path, threads: int) -> float:
    """Returns seconds from the start of a process to its first token."""
    command = [str(python), __file__, "start", runtime, str(path), str(threads)]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - begin
        said = process.communicate()[1]
    if not line:
        raise NotMeasured(f"no token: {said.strip()[-200:]}")
    return seconds


def most_memory(path: Path, threads: int, runs: int = 3) -> tuple[int, int]:
    """Returns bytes of the file without its tokenizer, and the most of `runs` above idle.

    The same tensors in a file of their own: reading 150,000 tokens is not the engine's memory.
    """
    import dataclasses

    from miudo.formats import open_model
    from miudo.formats.gguf import write_gguf

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        bare = Path(folder) / path.name
        write_gguf(bare, dataclasses.replace(open_model(path), tokenizer=None))
        command = [sys.executable, __file__, "memory", "miudo", str(bare), str(threads)]
        most = 0
        for _ in range(runs):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise NotMeasured(f"ended with {done.returncode}: {done.stderr.strip()[-200:]}")
            found = json.loads(done.stdout)
            most = max(most, found["peak"] - found["idle"])
        return bare.stat().st_size, most


if __name__ == "__main__":
    main()
