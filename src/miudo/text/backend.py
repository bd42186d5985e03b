"""The `tokenizers` library: its objects out of a checked tokenizer, its failures as ours.

For: `miudo.text.tokenizer`.
Not for: checking, which the library leaves half undone (`miudo.text.tokenizer_json`).
Read next: `miudo.text.tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from miudo.errors import RequestError, TokenizerError
from miudo.text.tokenizer_json import TokenizerSpec
from miudo.text.vocabulary import Pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["build_backend", "build_bpe", "byte_alphabet", "translated", "written"]

_OURS = frozenset(("model", "added_tokens", "truncation", "padding"))
_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}
_BPE_OPTIONS = frozenset(
    ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
     "ignore_merges")
)  # fmt: skip


def build_backend(spec: TokenizerSpec, model: Any = None) -> Backend:
    """Returns the library's object, around a `model` of its or one that is made.

    Raises TokenizerError for what it refuses.
    """
    from tokenizers import AddedToken, Tokenizer

    values = spec.values
    if model is None and values["model"].get("type", "BPE") == "BPE":
        model = build_bpe(spec, values["model"]["vocab"], spec.merges)
    with translated(TokenizerError, "the tokenizers library refuses it", spec.where):
        if model is None:
            backend: Backend = Tokenizer.from_buffer(spec.to_json())
            backend.no_truncation()
            backend.no_padding()
            return backend
        backend = Tokenizer.from_str(json.dumps(_bare(spec)))
        backend.model = model
        listed = sorted(values.get("added_tokens") or [], key=lambda token: int(token["id"]))
        backend.add_tokens(
            [AddedToken(**{k: v for k, v in t.items() if k != "id"}) for t in listed]
        )
    return backend


def written(spec: TokenizerSpec) -> dict[str, Any]:
    """Returns what the library writes of a BPE tokenizer, without vocabulary and added tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    with translated(TokenizerError, "the tokenizers library refuses it", spec.where):
        bare: Backend = Tokenizer.from_str(json.dumps(_bare(spec)))
        bare.model = BPE(vocab={}, merges=[], **_options(spec))
        values: dict[str, Any] = json.loads(bare.to_str())
    return values


def _bare(spec: TokenizerSpec) -> dict[str, Any]:
    kept = {k: v for k, v in spec.values.items() if k not in _OURS}
    return kept | {"version": "1.0", "model": _NO_MODEL, "added_tokens": []}


def _options(spec: TokenizerSpec) -> dict[str, Any]:
    given = spec.values["model"]
    return {k: v for k, v in given.items() if k in _BPE_OPTIONS and v is not None}


def build_bpe(spec: TokenizerSpec, vocab: dict[str, int], merges: Sequence[Pair]) -> Any:
    """Returns the library's BPE model of tokens and merges, with the options of `spec`.

    Python objects go in in half the time that the same takes as JSON.
    """
    from tokenizers.models import BPE

    try:
        with translated(TokenizerError, "the tokenizers library refuses it", spec.where):
            return BPE(vocab=vocab, merges=list(merges), **_options(spec))
    except TokenizerError:
        spec.check_merges()  # says which merge it was, if it was one
        raise


@contextmanager
def translated(
    error: type[RequestError] | type[TokenizerError], what: str, where: object = None
) -> Iterator[None]:
    """Turns what the library raises into `error`, which says `what`.

    A panic in Rust arrives as a BaseException of a class that cannot be imported.
    """
    try:
        yield
    except BaseException as cause:
        if type(cause).__name__ != "PanicException" and type(cause) not in (
            Exception,
            TypeError,
            ValueError,
            UnicodeEncodeError,
        ):
            raise
        raise error(f"{what} ({str(cause)[:200]})", where=where) from cause


def byte_alphabet() -> list[str]:
    """Returns GPT-2's character for each of the 256 bytes (Radford et al. 2019)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]
