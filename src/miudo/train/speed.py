"""How steps run on a processor; each is a context that is undone when the run ends.

For: compiled blocks, attention of short rows as plain products, memory kept between steps; and
what makes them small: activations computed again.
Not for: what a step computes (`miudo.train.stepper`). `docs/log.md` has what each is worth.
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from miudo.decoder.decoder import Decoder
from miudo.train.plan import Plan
from miudo.train.settings import FitSettings, Precision
from miudo.train.stepper import Stepper

__all__ = [
    "checkpointed_blocks",
    "compiled_blocks",
    "compiled_steps",
    "kept_memory",
    "kept_threads",
    "planned_steps",
    "run_conditions",
    "short_attention",
]

_RECOMPILE_LIMIT = 512
"""Shapes of block one process may compile: every pruned layer may have its own."""

_SHORT = 512
_SCORES = 1 << 24
"""Positions, and attention scores a layer (32 MB of bf16), up to which they are kept whole."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 64 << 20, 32 << 20
"""What glibc's own thresholds grow to in a process that has freed large blocks."""
_KEPT_BYTES = (1 << 31) - 1


@contextmanager
def run_conditions(decoder: Decoder, settings: FitSettings) -> Iterator[None]:
    """Everything that a run's steps, or a trial of them, run under from first to last."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(kept_memory())
        if settings.checkpoint_activations:
            stack.enter_context(checkpointed_blocks(decoder))
        yield


@contextmanager
def checkpointed_blocks(decoder: Decoder) -> Iterator[None]:
    """Keeps each block's input alone for the backward pass, for as long as the `with` lasts.

    Inside the block, so that a compiled block computes again what it chose to forget.
    """
    for block in decoder.layers:
        block.forward = _checkpointed(block.forward)
    try:
        yield
    finally:
        for block in decoder.layers:
            del block.forward  # the class's own shows again


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # A function of this file: one of PyTorch's own in its place would not be compiled.
    def run(*arguments: Any) -> Tensor:
        out: Tensor = checkpoint(forward, *arguments, use_reentrant=False)
        return out

    return run


@contextmanager
def compiled_blocks(decoder: Decoder) -> Iterator[None]:
    """Compiles each block for as long as the `with` lasts.

    One block is compiled and the others, being alike, use its code: seconds, where the whole
    decoder takes a minute, at the same speed. Table and head stay eager: the compiled table
    gradient adds in an order that hangs on threads, and a run must resume to the bit.
    """
    import torch._dynamo.config as dynamo  # takes a second: only where one compiles
    import torch._functorch.config as functorch

    limits = {"recompile_limit": _RECOMPILE_LIMIT, "accumulated_recompile_limit": 4096}
    # PyTorch keys this cache by the graph before attention is taken apart: it would give the
    # code of the other kind of attention (`short_attention`).
    one_cache = functorch.patch(enable_autograd_cache=False)
    with dynamo.patch(limits), one_cache:
        for block in decoder.layers:
            block.compile(dynamic=False)
        try:
            yield
        finally:
            for block in decoder.layers:
                # What Module.compile sets; it has no inverse. Left on, every generation step
                # with a cache would compile again.
                block._compiled_call_impl = None


@contextmanager
def compiled_steps(stepper: Stepper, plan: Plan) -> Iterator[None]:
    """Compiles what `stepper` runs, by one step that is rehearsed and not taken.

    A run killed while it compiled leaves half a file in PyTorch's cache, on which the next one
    would fail for ever: this sitting then compiles into a new cache of its own.
    """
    from torch._inductor.exc import InductorError
    from torch._inductor.utils import fresh_cache

    with compiled_blocks(stepper.decoder), ExitStack() as stack:
        try:
            stepper.rehearse(plan)
        except InductorError:
            torch._dynamo.reset()
            stack.enter_context(fresh_cache())
            stepper.rehearse(plan)
        yield


@contextmanager
def planned_steps(stepper: Stepper, plan: Plan) -> Iterator[None]:
    """Lets `stepper` take its steps as `plan` says: attention, and compilation where chosen."""
    with ExitStack() as stack:
        stack.enter_context(short_attention(stepper.decoder, stepper.settings, plan))
        if plan.compiled:
            stack.enter_context(compiled_steps(stepper, plan))
        yield


@contextmanager
def short_attention(decoder: Decoder, settings: FitSettings, plan: Plan) -> Iterator[None]:
    """Lets attention over short rows run as plain matrix products, if its scores fit.

    PyTorch's fused kernel for processors saves memory at twice the time of its backward pass in
    bf16. In eager float32 it is the faster one: a softmax that is not compiled takes its gain.
    """
    heads = max(layer.n_heads for layer in decoder.config.layers)
    scores = settings.batch_size * heads * settings.length**2
    on_cpu = decoder.embed.weight.device.type == "cpu"
    fused = plan.precision is Precision.F32 and not plan.compiled
    if fused or not on_cpu or settings.length > _SHORT or scores > _SCORES:
        yield
        return
    # Named for CUDA, read on every device: without it bf16 would be widened to float32.
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps freed memory in the process: each step allocates the same blocks again.

    Otherwise glibc gives large blocks back and the kernel clears their pages anew, step after
    step. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def kept_threads(count: int) -> Iterator[None]:
    """Computes with `count` threads: sums are cut by thread, and so are their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
