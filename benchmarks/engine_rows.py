"""The rows of `engine.py`: what is measured side by side, and what is asked of the ratios.

For: every figure that the engine must reach and aims at, as data.
Not for: measuring (`engine_pairs.py`), or memory (`engine_once.py`).
Read next: `engine.py`.

A check divides miudo's rate by another side's, the best of several, pair by pair. Rates are
tokens, bytes, operations or starts a second; a factor makes them comparable:

    weights    bytes of the file's matrices that a token reads: what is left is a share of reading
    ops        operations that a prompt's token needs: a share of the 8-bit peak
    cache      what more keys and values cost if they are read as fast as the weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Order = Mapping[str, Any]

OURS = "miudo"
LLAMA, ONNX, OPENVINO, AVX2 = "llama.cpp", "ONNX Runtime", "OpenVINO", "llama.cpp AVX2"
READ, MULTIPLY = "stream", "int8 peak"
QWEN, TINY, M15 = "qwen2-0.5b", "tinyllama-1.1b", "llama-15m"
TITLES = {QWEN: "Qwen2-0.5B", TINY: "TinyLlama-1.1B", M15: "15M"}
FOLDERS = {ONNX: ("ort", "int4"), OPENVINO: ("ov", "int8")}
KINDS = {"q4": "q4_0", "q8": "q8_0"}
BRIEF_TOKENS = 4
MEMORY_FILES = {
    f"{shape}-{kind}-memory": (shape, kind)
    for shape, kind in ((QWEN, "q4"), (TINY, "q4"), (TINY, "q8"), (M15, "q8"), (M15, "q4"))
}


@dataclass(frozen=True)
class Side:
    """One runtime with one order. `model` is a path below the folder of models."""

    runtime: str
    model: str
    order: Order
    isa: str = ""
    busy: bool = False


@dataclass(frozen=True)
class Check:
    """`OURS` over the best of `over`, times a factor: at least `must`, better `aim`."""

    figure: str
    must: float
    aim: float
    over: tuple[str, ...]
    factor: Literal["", "weights", "ops", "cache"] = ""


@dataclass(frozen=True)
class Row:
    """Sides that are measured in turns. `name` is what --only takes."""

    name: str
    title: str
    sides: Mapping[str, Side]
    checks: tuple[Check, ...] = field(default=())


def decode(context: int, tokens: int, sequences: int = 1) -> Order:
    return {"do": "decode", "context": context, "tokens": tokens, "sequences": sequences}


def prompt(tokens: int) -> Order:
    return {"do": "prompt", "tokens": tokens}


def file_of(shape: str, kind: str, runtime: str = OURS) -> str:
    if runtime in FOLDERS:
        folder, suffix = FOLDERS[runtime]
        return f"{folder}/{shape}-{suffix}"
    return f"gguf/{shape}-{KINDS[kind]}.gguf"


def sides(shape: str, kind: str, order: Order, *runtimes: str) -> dict[str, Side]:
    """Returns miudo and `runtimes` with one order; the machine's own rates have theirs."""
    machine = {
        READ: Side("machine", "", {"do": "read"}),
        MULTIPLY: Side("machine", "", {"do": "multiply"}),
    }
    return {
        name: machine.get(name) or Side(name, file_of(shape, kind, name), order)
        for name in (OURS, *runtimes)
    }


def title(shape: str, kind: str, what: str) -> str:
    return f"{TITLES[shape]} {KINDS[kind].upper()}, {what}"


def large(
    shape: str, kind: str, context: int, stream: tuple[float, float], times: tuple[float, float]
) -> Row:
    """Decoding of a model that comes from memory: a share of reading, and over llama.cpp."""
    return Row(
        f"{shape}-{kind}-decode-{context}",
        title(shape, kind, f"decode from {context}"),
        sides(shape, kind, decode(context, 64), LLAMA, READ),
        (
            Check("share of stream", *stream, (READ,), "weights"),
            Check("x llama.cpp", *times, (LLAMA,)),
        ),
    )


def small(kind: str, context: int, times: tuple[float, float]) -> Row:
    """Decoding of a model that stays in a cache."""
    peers = (ONNX, LLAMA)
    return Row(
        f"{M15}-{kind}-decode-{context}",
        title(M15, kind, f"decode from {context}"),
        sides(M15, kind, decode(context, 128), *peers),
        (Check("x best peer", *times, peers),),
    )


def prompts(
    shape: str, kind: str, length: int, peers: tuple[str, ...], times: tuple[float, float]
) -> Row:
    figure = f"x {peers[0]}" if len(peers) == 1 else "x best peer"
    checks: tuple[Check, ...] = (Check(figure, *times, peers),)
    machine: tuple[str, ...] = ()
    if shape == QWEN and length == 512:
        checks += (Check("share of int8 peak", 0.60, 0.70, (MULTIPLY,), "ops"),)
        machine = (MULTIPLY,)
    return Row(
        f"{shape}-{kind}-prompt-{length}",
        title(shape, kind, f"prompt {length}"),
        sides(shape, kind, prompt(length), *peers, *machine),
        checks,
    )


def long(shape: str, context: int, tokens: int) -> Row:
    """Decoding far into a text, against what its keys and values cost."""
    model = file_of(shape, "q4")
    return Row(
        f"{shape}-q4-long",
        title(shape, "q4", f"decode from {context} over from 512"),
        {
            OURS: Side(OURS, model, decode(context, tokens)),
            "from 512": Side(OURS, model, decode(512, tokens)),
        },
        (Check("share of what the cache's bytes predict", 0.85, 0.95, ("from 512",), "cache"),),
    )


def avx2(shape: str, kind: str) -> list[Row]:
    wanted = {
        "decode-16": ("decode from 16", decode(16, 64), 1.15, 1.3),
        "prompt-512": ("prompt 512", prompt(512), 1.5, 2.5),
    }
    return [
        Row(
            f"{shape}-{kind}-avx2-{name}",
            title(shape, kind, f"{what}, AVX2"),
            {
                OURS: Side(OURS, file_of(shape, kind), order, isa="avx2"),
                AVX2: Side(AVX2, file_of(shape, kind), order),
            },
            (Check("x llama.cpp AVX2", must, aim, (AVX2,)),),
        )
        for name, (what, order, must, aim) in wanted.items()
    ]


def start(kind: str) -> Row:
    return Row(
        f"{QWEN}-{kind}-start",
        title(QWEN, kind, "process start to first token"),
        sides(QWEN, kind, {"do": "start"}, LLAMA),
        (Check("x as soon as llama.cpp", 1.0, 2.0, (LLAMA,)),),
    )


def beside_another() -> Row:
    model = file_of(QWEN, "q4")
    return Row(
        f"{QWEN}-q4-busy",
        title(QWEN, "q4", "decode beside one busy process"),
        {
            OURS: Side(OURS, model, decode(16, 32), busy=True),
            "quiet": Side(OURS, model, decode(16, 32)),
        },
        (Check("share of the quiet figure", 0.45, 0.50, ("quiet",)),),
    )


def rows(*, brief: bool = False) -> list[Row]:
    """Returns all rows; those of one model stand together, so that it is loaded once.

    `brief` rows decode a few tokens only.
    """
    peers = (OPENVINO, LLAMA, ONNX)
    found = [
        large(QWEN, "q4", 16, (0.88, 0.95), (1.35, 2.0)),
        large(QWEN, "q4", 512, (0.83, 0.92), (1.35, 2.0)),
        prompts(QWEN, "q4", 512, peers, (1.3, 1.6)),
        prompts(QWEN, "q4", 32, peers, (1.5, 2.0)),
        Row(
            f"{QWEN}-q4-batch-8",
            title(QWEN, "q4", "8 sequences decoding"),
            sides(QWEN, "q4", decode(16, 32, 8), *peers),
            (Check("x best peer", 1.8, 2.3, peers),),
        ),
        long(QWEN, 4096, 32),
        beside_another(),
        *avx2(QWEN, "q4"),
        start("q4"),
        start("q8"),
        large(TINY, "q4", 16, (0.83, 0.93), (1.0, 1.3)),
        prompts(TINY, "q4", 512, (LLAMA,), (2.2, 2.8)),
        long(TINY, 2048 - 32, 32),
        *avx2(TINY, "q4"),
        large(TINY, "q8", 16, (0.83, 0.93), (1.1, 1.3)),
        prompts(TINY, "q8", 512, (LLAMA,), (2.2, 2.8)),
        small("q8", 16, (2.5, 3.0)),
        small("q8", 512, (4.0, 5.0)),
        prompts(M15, "q8", 512, (OPENVINO,), (1.4, 1.9)),
        *avx2(M15, "q8"),
        small("q4", 16, (2.5, 4.0)),
        small("q4", 512, (4.0, 7.0)),
        prompts(M15, "q4", 512, (OPENVINO,), (1.4, 1.9)),
        *avx2(M15, "q4"),
    ]
    return [replace(row, sides=shorter(row.sides)) for row in found] if brief else found


def shorter(sides: Mapping[str, Side]) -> dict[str, Side]:
    return {
        name: replace(side, order=dict(side.order) | {"tokens": BRIEF_TOKENS})
        if side.order["do"] == "decode"
        else side
        for name, side in sides.items()
    }
