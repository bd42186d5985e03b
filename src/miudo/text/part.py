"""A tokenizer for one text: the part of a vocabulary that the text can become.

For: a first answer. The `tokenizers` library takes 0.2 s to build a model of 150,000 tokens; a
prompt can become some hundred of them, and these are found in milliseconds.
Not for: many texts, which the whole model encodes faster (`miudo.text.tokenizer` changes over).
Read next: `miudo.text.backend`.

Why the ids are the same: byte-level BPE joins neighbours inside a word, so every token that can
arise is a run of the word's characters that the vocabulary has, and every merge that can be
applied joins two such runs into a third. All of these go into the part, with their own ids and
in their own order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from miudo.text.backend import build_backend, build_bpe, byte_alphabet
from miudo.text.tokenizer_json import TokenizerSpec
from miudo.text.vocabulary import WrittenMerges

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["PartTokenizer"]

_CHANGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


class PartTokenizer:
    """Builds a library's object for each text. `spec` must be one that it `fits`."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._vocab: dict[str, int] = spec.values["model"]["vocab"]
        self._longest = max(map(len, self._vocab))
        ids = self._vocab
        self._single = {c: ids[c] for c in byte_alphabet()} | dict(spec.added)
        self.characters = build_backend(spec, build_bpe(spec, self._single, []))

    @staticmethod
    def fits(spec: TokenizerSpec) -> bool:
        """Whether every text becomes characters that the vocabulary has, and merges join them."""
        model = spec.values["model"]
        if not isinstance(spec.merges, WrittenMerges) or any(model.get(k) for k in _CHANGES):
            return False
        # The library has added tokens outside of the model; here they lie in it.
        inside = not model.get("ignore_merges") or spec.added.keys() <= model["vocab"].keys()
        by_bytes = "ByteLevel" in _kinds(spec.values.get("pre_tokenizer"))
        return by_bytes and inside and all(c in model["vocab"] for c in byte_alphabet())

    def backend_for(self, text: str, *, plain: bool) -> Backend:
        """Returns a tokenizer that encodes `text` as the whole one does.

        `plain`: special tokens written in it are characters.
        """
        words = self._words(text, plain=plain)
        runs = {run for word in words for run in self._runs(word)}
        merges = sorted(
            (rank, written)
            for run in runs
            for cut in range(1, len(run))
            if (rank := self._ranks.get(written := f"{run[:cut]} {run[cut:]}")) is not None
        )
        vocab = self._single | {run: self._vocab[run] for run in runs}
        model = build_bpe(self._spec, vocab, WrittenMerges([written for _, written in merges]))
        backend = build_backend(self._spec, model)
        backend.encode_special_tokens = plain
        return backend

    def _words(self, text: str, *, plain: bool) -> set[str]:
        """The words of the text in the byte alphabet, as the library cuts it."""
        backend = self.characters
        if plain:
            backend = build_backend(self._spec, self.characters.model)
            backend.encode_special_tokens = True
        found = backend.encode(text, add_special_tokens=False)
        cut = zip(found.word_ids, found.tokens, strict=True)
        return {
            "".join(token for _, token in word if len(token) == 1)
            for _, word in groupby(cut, key=lambda pair: pair[0])
        }

    def _runs(self, word: str) -> Iterator[str]:
        for begin in range(len(word)):
            for end in range(begin + 1, min(begin + self._longest, len(word)) + 1):
                if (run := word[begin:end]) in self._vocab:
                    yield run

    @cached_property
    def _ranks(self) -> dict[str, int]:
        merges = self._spec.merges
        assert isinstance(merges, WrittenMerges)  # noqa: S101 - `fits` said so
        return dict(zip(merges.written, range(len(merges)), strict=True))


def _kinds(step: Any) -> Iterable[str]:
    """The types of a step and of all inside it."""
    if not isinstance(step, dict):
        return []
    inner = [kind for part in step.get("pretokenizers") or [] for kind in _kinds(part)]
    return [str(step.get("type")), *inner]
