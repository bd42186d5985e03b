"""Held-out loss and samples on the way.

For: seeing a run learn, in float32, the same number whatever the training precision.
Not for: perplexity of a finished model through the engine (`miudo.evaluate.perplexity`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from miudo.decoder.decoder import Decoder
from miudo.errors import DataError
from miudo.train.loss import cross_entropy
from miudo.train.settings import FitSettings
from miudo.train.stepper import Tokens

__all__ = ["as_it_runs", "held_out_loss"]


def held_out_loss(decoder: Decoder, data: Tokens, settings: FitSettings) -> float:
    """Returns the mean cross-entropy in nats a token over `eval_tokens` of `data`.

    Always the same blocks, evenly spaced, so that every part of a mixture is among them.
    Raises DataError if there is not one.
    """
    wanted = -(-settings.eval_tokens // settings.length)
    known = data.n_blocks(settings.length)
    count = min(wanted, known)
    if count < 1:
        raise DataError(
            f"held-out text has no block of {settings.length} tokens",
            remedy="Hold out more, or train with a smaller --length",
        )
    total = 0.0
    with as_it_runs(decoder):
        for at in range(0, count, settings.batch_size):
            rows = range(at, min(at + settings.batch_size, count))
            blocks = np.stack(  # B T+1
                [data.block(i * known // count, settings.length) for i in rows]
            )
            ids = torch.from_numpy(blocks).to(decoder.embed.weight.device)
            total += float(cross_entropy(decoder, ids)[0]) * len(rows)
    return total / count


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
