"""Formal languages over tokens: what a model may say next, so that the whole is well-formed.

For: answers that are JSON of a schema, match an expression, or follow a grammar of the caller's.
The matching is `llguidance`'s (derivatives of expressions and an Earley parser over a trie of
the vocabulary); here are its limits, a bounded cache, and the way from our tokenizer into it.
Not for: which schemas are taken (`miudo.engine.schemas`), penalties (`miudo.engine.guides`).
Read next: `miudo.engine.guides`.

Shapes: V vocab_size.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miudo.engine.guides import Grammar
from miudo.engine.schemas import check_schema
from miudo.errors import MissingError, RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from miudo.text.tokenizer import TextTokenizer

__all__ = [
    "Grammars",
    "Language",
    "any_of",
    "expression",
    "json_of",
    "json_rule",
    "lark",
]

# White space between two parts of JSON: one at most, or a weak model writes it without end.
_BLANK = r"( |\n[ \t]{0,20})"
# Texts that can only go on one way are drawn like others: what is forced would come in tokens
# that the model may not have chosen, by a call into Python that holds the engine's thread.
_HEAD = '%llguidance {"no_forcing": true}\n'
_MOST_CHARS = 1 << 16
_SHOWN = 400
_DEAD_END = "NoExtension"
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")


@dataclass(frozen=True, slots=True)
class Language:
    """A language as llguidance's dialect of Lark writes it; `where` names it in errors."""

    source: str
    where: str = "grammar"


def json_of(schema: Any, where: str = "schema") -> Language:
    """Returns the language of all JSON that `schema` takes.

    Raises RequestError for one that cannot be enforced.
    """
    return Language(f"start: {json_rule(schema, where)}\n", where)


def json_rule(schema: Any, where: str = "schema") -> str:
    """Returns the same as a part of a rule, for languages that have more around it."""
    check_schema(schema, where)
    held = schema if isinstance(schema, dict) else ({} if schema else {"enum": []})
    options = {"whitespace_pattern": _BLANK, "coerce_one_of": False, "lenient": False}
    return "%json " + json.dumps({**_anonymous(held), "x-guidance": options})


def expression(pattern: str, where: str = "regex") -> Language:
    """Returns the language of a regular expression, which the whole answer matches."""
    _check_size(pattern, where)
    shown = {"/": r"\/", "\n": r"\n"}
    body = re.sub(r"\\[\s\S]|[/\n]", lambda m: shown.get(m[0], m[0]), pattern)
    return Language(f"start: /{body}/\n", where)


def any_of(texts: Sequence[str], where: str = "choice") -> Language:
    """Returns the language of these texts alone."""
    _check_size("".join(texts), where)
    return Language("start: " + " | ".join(map(json.dumps, texts)) + "\n", where)


def lark(source: str, where: str = "grammar") -> Language:
    """Returns the language of a grammar in Lark, whose first rule is called start."""
    _check_size(source, where)
    if "%llguidance" in source:
        raise RequestError("holds %llguidance", where=where, remedy="Leave the options out")
    return Language(source, where)


class Grammars:
    """Compiles languages for one vocabulary; methods may be called from any thread.

    `vocab_size` is V, the engine's. A compiled language is kept for the next request, `kept` of
    them, in memory alone: what was used last goes last.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        vocab_size: int,
        eos_ids: Sequence[int],
        *,
        kept: int = 64,
    ) -> None:
        self._tokenizer, self._size = tokenizer, vocab_size
        self._eos_ids = [i for i in eos_ids if i < vocab_size]
        self._most = kept
        self._kept: OrderedDict[Language, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def __len__(self) -> int:
        """How many compiled languages are kept."""
        return len(self._kept)

    def begin(self, language: Language) -> Grammar:
        """Returns the language at its start.

        Takes milliseconds the first time, and 5 µs a token of the vocabulary before the first of
        all. Raises RequestError for a language that is malformed, empty or too complex, and
        MissingError where `llguidance` is not installed.
        """
        with self._lock:
            found = self._kept.get(language)
            if found is not None:
                self._kept.move_to_end(language)
        if found is None:
            found = self._compiled(language)
            with self._lock:
                self._kept[language] = found
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        return _Matching(found.deep_copy(), self._sizes, language.where)

    def _compiled(self, language: Language) -> LLMatcher:
        with self._opening:
            vocabulary, limits = self._vocabulary
        source = _HEAD + language.source
        matcher: LLMatcher = _llguidance().LLMatcher(vocabulary, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(matcher.get_error(), language.where)
        # A language of no text shows when its first token is asked for.
        _Matching(matcher.deep_copy(), self._sizes, language.where).mask()
        return matcher

    @property
    def _sizes(self) -> _Sizes:
        end = 0 if self._eos_ids else 1
        return _Sizes(self._size, (self._size + end + 31) // 32)

    @cached_property
    def _vocabulary(self) -> tuple[LLTokenizer, LLParserLimits]:
        llguidance = _llguidance()
        words = _Vocabulary(self._tokenizer, self._size, self._eos_ids)
        limits = llguidance.LLParserLimits(
            # Of a step, while others wait for their tokens: see benchmarks/hard_masks.py.
            step_lexer_fuel=50_000,
            step_max_items=20_000,
            max_lexer_states=20_000,
            # Of compiling: some 100 ms.
            initial_lexer_fuel=200_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        tokenizer = llguidance.LLTokenizer(words, n_vocab=len(words.tokens), eos_token=words.ends)
        return tokenizer, limits


@dataclass(frozen=True, slots=True)
class _Sizes:
    vocab: int
    words: int  # of 32 bits, for all of llguidance's vocabulary


class _Vocabulary:
    """What `LLTokenizer` asks of a tokenizer. Without an end token one is made up behind V."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, size: int, eos_ids: Sequence[int]) -> None:
        special = {number: text for text, number in tokenizer.special_ids.items()}
        self.tokens = [
            b"\xff" + special.get(i, f"<unused {i}>").encode()
            if i in special or i >= tokenizer.vocab_size
            else tokenizer.token_bytes(i)
            for i in range(size if eos_ids else size + 1)
        ]
        self.ends = list(eos_ids) or [size]
        self.eos_token_id = self.ends[0]
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if text[:1] == b"\xff"]

    def __call__(self, text: Any) -> list[int]:
        raise AssertionError("nothing is forced, so nothing is encoded")


class _Matching:
    """One answer on its way through a language; implements `Grammar`."""

    def __init__(self, matcher: LLMatcher, sizes: _Sizes, where: str) -> None:
        self._matcher, self._sizes, self._where = matcher, sizes, where
        self._words = np.zeros(sizes.words, np.dtype("<u4"))

    def mask(self) -> npt.NDArray[np.bool_]:
        """Returns bool [V], True for ids that may be drawn.

        Raises RequestError where nothing can follow, or to find it out takes too much.
        """
        words = self._words
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error(), self._where)
        bits = np.unpackbits(words.view(np.uint8), count=self._sizes.vocab, bitorder="little")
        if not bits.any():
            raise _refused(_DEAD_END, self._where)
        return bits.view(np.bool_)

    def take(self, token: int) -> bool:
        """Takes in a token; returns whether nothing can follow it."""
        # What went wrong here is told by the next `mask`.
        return self._matcher.consume_token(token) and self._matcher.is_stopped()


def _check_size(text: str, where: str) -> None:
    if not text or len(text) > _MOST_CHARS:
        raise RequestError(
            f"has {len(text)} characters", where=where, remedy=f"Give 1 to {_MOST_CHARS}"
        )


def _anonymous(schema: dict[str, Any]) -> dict[str, Any]:
    return {keyword: value for keyword, value in schema.items() if keyword != "$id"}


def _refused(said: str, where: str) -> RequestError:
    """What llguidance says, without its picture of the source, which is not the caller's."""
    text = _PLACE.sub("", said.partition("\n   1 |")[0].partition("<non-verbose")[0]).strip()
    text = text.removeprefix("failed to compile JSON schema: ")
    if _DEAD_END in text:
        text = "leads to where nothing can follow"
    return RequestError(
        f"cannot be followed ({text[:_SHOWN]})", where=where, remedy="Give a simpler one"
    )


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingError(
            "guided answers need the package llguidance",
            remedy="Install it: pip install llguidance",
        ) from error
    return llguidance
