"""Tables of vectors: one a token, or one a position.

For: `Decoder`, whose tables cost nothing where only their sizes are wanted.
Not for: what is done with the vectors (`miudo.decoder.decoder`).
Read next: `miudo.decoder.decoder`.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["table"]


def table(rows: int, width: int) -> nn.Embedding:
    """Returns a table [rows, width] drawn as `nn.Embedding` draws it, empty on the meta device.

    That would draw there too, by torch._dynamo: seconds of importing it, and 80 MB.
    """
    values = torch.empty(rows, width)
    if not values.is_meta:
        nn.init.normal_(values)
    made: nn.Embedding = nn.Embedding.from_pretrained(values, freeze=False)  # type: ignore[no-untyped-call]
    return made
