"""Held-out loss and samples on the way.

For: seeing a run learn, in float32, the same number whatever the training precision.
Not for: perplexity of a finished model through the engine (`miudo.evaluate.perplexity`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from miudo.decoder.decoder import Decoder
from miudo.errors import DataError
from miudo.train.loss import Marks, cross_entropy
from miudo.train.settings import FitSettings
from miudo.train.stepper import MarkedTokens, Tokens

__all__ = ["as_it_runs", "held_out_loss"]


def held_out_loss(decoder: Decoder, data: Tokens, settings: FitSettings) -> float:
    """Returns the mean cross-entropy in nats a token over `eval_tokens` of `data`.

    Of samples the counted tokens alone. Always the same blocks, evenly spaced. Raises DataError
    if there is not one.
    """
    wanted = -(-settings.eval_tokens // settings.length)
    known = data.n_blocks(settings.length)
    count = min(wanted, known)
    if count < 1:
        raise DataError(
            f"held-out text has no block of {settings.length} tokens",
            remedy="Hold out more, or train with a smaller --length",
        )
    total = tokens = 0.0
    with as_it_runs(decoder):
        for at in range(0, count, settings.batch_size):
            places = range(at, min(at + settings.batch_size, count))
            rows = [place * known // count for place in places]
            blocks = np.stack([data.block(row, settings.length) for row in rows])  # B T+1
            ids = torch.from_numpy(blocks).to(decoder.embed.weight.device)
            marks = _marks(data, rows, settings.length, ids.device)
            here = ids[:, 1:].numel() if marks is None else int(marks.counted.sum())
            if here:
                total += float(cross_entropy(decoder, ids, marks)[0]) * here
                tokens += here
    return total / tokens


def _marks(data: Tokens, rows: Iterable[int], length: int, device: torch.device) -> Marks | None:
    if not isinstance(data, MarkedTokens):
        return None
    pairs = [data.block_marks(i, length) for i in rows]
    counted, segments = (
        torch.from_numpy(np.stack(column)).to(device) for column in zip(*pairs, strict=True)
    )
    return Marks(counted, segments)


@contextmanager
def as_it_runs(decoder: Decoder) -> Iterator[None]:
    """Without gradients or compilation: other shapes than training's would compile anew."""
    training = decoder.training
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        decoder.eval()
        try:
            yield
        finally:
            decoder.train(training)
