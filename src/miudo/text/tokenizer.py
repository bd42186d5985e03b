"""Text to token ids and back, over the `tokenizers` library.

For: byte-level BPE (ours, GPT-2's, Llama 3's, Qwen's) and SentencePiece-like tokenizers with byte
fallback. What a user typed never becomes a special token.
Not for: chat turns (`miudo.text.chat`) or text that arrives id by id (`miudo.text.stream`).
Read next: `miudo.text.tokenizer_json` for what a file must satisfy.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from miudo.errors import ConfigError, RequestError, TokenizerError
from miudo.limits import LIMITS, Limits
from miudo.text.backend import build_backend, byte_alphabet, translated, written
from miudo.text.part import PartTokenizer
from miudo.text.special_tokens import TOKEN_FLAGS
from miudo.text.tokenizer_json import SPACE, TokenizerSpec, parse_tokenizer_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["DEFAULT_SPECIALS", "TextTokenizer", "train_bpe"]

# The first ends documents and turns: bos and eos are one token.
DEFAULT_SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>")
_LONG = 1 << 16  # characters
# From so many on, or 16 texts, the whole backend has cost less than one for each text.
_PART_CHARS = 1 << 13
_BETWEEN_WORDS = re.compile("[A-Za-z] (?=[A-Za-z])")
_LETTER_SPACE = re.compile(rb"[A-Za-z] ")
_BYTE_TOKENS = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}


class TextTokenizer:
    """A checked tokenizer at work; implements `miudo.protocol.Tokenizer`.

    Raises TokenizerError for what the `tokenizers` library refuses. `spec` is what it was
    built from. `from_json` and `train_bpe` build one too.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._part: PartTokenizer | None = None
        if PartTokenizer.fits(spec):
            spec.check_merges()  # the library looks at them only when it is given them all
            self._part = PartTokenizer(spec)
        self._part_chars = 0
        backend = self._plain if self._part is None else self._part.characters
        for token, number in spec.added.items():
            # The library numbers added tokens itself and only warns where the file disagrees.
            if backend.token_to_id(token) != number:
                raise TokenizerError(
                    f"added token {token[:60]!r} cannot have id {number}",
                    where=spec.where,
                    remedy="Number added tokens from the end of the vocabulary on",
                )
        self._special_ids = frozenset(spec.special.values())
        # An unknown character may become <unk>; no other special may come out of plain text.
        self._control = self._special_ids - {spec.unk_id}
        self._byte_of = {c: b for b, c in enumerate(byte_alphabet())}

    @classmethod
    def from_json(cls, data: bytes, *, where: object = None, limits: Limits = LIMITS) -> Self:
        """Returns the tokenizer in `data`, the content of a tokenizer.json.

        Raises TokenizerError as `miudo.text.tokenizer_json.check_tokenizer` does.
        """
        return cls(parse_tokenizer_json(data, where=where, limits=limits))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self.spec.tokens)

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens and their ids."""
        return self.spec.special

    @property
    def added_ids(self) -> Mapping[str, int]:
        """Every token matched in raw text, special or not, and its id."""
        return self.spec.added

    @property
    def adds_space(self) -> bool:
        """Whether encoding puts a space before the text, which decoding takes away."""
        return self.spec.adds_space

    @property
    def tokens(self) -> Sequence[str]:
        """The tokens as the file writes them, by id."""
        return self.spec.tokens

    def padded_size(self, multiple: int) -> int:
        """Returns `vocab_size` rounded up to a multiple: rows a model's table may have."""
        return -(-self.vocab_size // multiple) * multiple

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical mapping; what is only added around text does not count."""
        values = self._canonical()
        model = {k: v for k, v in values["model"].items() if v and k != "dropout"}
        parts = {k: values[k] for k in ("added_tokens", "normalizer", "pre_tokenizer", "decoder")}
        text = json.dumps([parts, model], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> bytes:
        """Returns the canonical tokenizer.json: no truncation, no padding, tokens by id."""
        text = json.dumps(self._canonical(), ensure_ascii=False, separators=(",", ":"))
        return text.encode()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Returns ids, adding none of its own.

        Special tokens written in `text` are plain characters unless `allow_special`. Raises
        RequestError for text that is not valid Unicode.
        """
        if allow_special:
            backend = self._backend(text, plain=False)
            if len(text) <= _LONG:
                return list(_run(backend, text).ids)
            with translated(RequestError, "the text is not valid Unicode"):  # a batch frees the GIL
                (found,) = backend.encode_batch_fast([text], add_special_tokens=False)
            return list(found.ids)
        if len(text) > _LONG:
            return self.encode_batch([text])[0]
        ids = _run(self._backend(text, plain=True), text).ids
        return list(ids) if self._control.isdisjoint(ids) else self._encode_around(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns `encode` of each text, on all cores."""
        pieces = [self._pieces(text) for text in texts]
        flat = [piece for several in pieces for piece in several]
        with translated(RequestError, "the text is not valid Unicode"):
            found = self._plain.encode_batch_fast(flat, add_special_tokens=False)
        safe = self._control.isdisjoint
        ids = iter(
            e.ids if safe(e.ids) else self._encode_around(piece)
            for e, piece in zip(found, flat, strict=True)
        )
        return [[i for _ in several for i in next(ids)] for several in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns text; bytes that are no UTF-8 become U+FFFD, special tokens vanish.

        Raises RequestError for ids outside the vocabulary.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.spec.adds_space else text

    def token_bytes(self, token: int) -> bytes:
        """Returns the exact bytes an id stands for; special tokens give none."""
        spec = self.spec
        try:
            number = operator.index(token)
        except TypeError as error:
            raise RequestError(f"token id is {token!r:.40}, not a whole number") from error
        if not 0 <= number < len(spec.tokens):
            raise RequestError(f"token id is {number}, allowed 0 to {len(spec.tokens) - 1}")
        if number in self._special_ids:
            return b""
        text = spec.tokens[number]
        if spec.byte_level:
            try:
                return bytes([self._byte_of[c] for c in text])
            except KeyError:  # an added token outside the byte alphabet stands for itself
                return text.encode()
        if spec.byte_fallback and text in _BYTE_TOKENS:
            return _BYTE_TOKENS[text]
        return text.replace(SPACE, " ").encode()

    @cached_property
    def longest_token(self) -> int:
        """No id stands for more bytes than this; told without a look at each by itself."""
        tokens = self.spec.tokens
        if self.spec.byte_level and self._byte_of.keys() >= set("".join(tokens)):
            return max(map(len, tokens))
        return max(map(len, map(str.encode, tokens)))

    def _backend(self, text: str, *, plain: bool) -> Backend:
        """Returns one that encodes `text`: for the first few texts, one for it alone."""
        part = self._part
        if part is not None:
            self._part_chars += len(text) + _PART_CHARS // 16
            if self._part_chars <= _PART_CHARS:
                with translated(RequestError, "the text is not valid Unicode"):
                    return part.backend_for(text, plain=plain)
            self._part = None
        return self._plain if plain else self._special

    @cached_property
    def _plain(self) -> Backend:
        backend = build_backend(self.spec)
        backend.encode_special_tokens = True  # the library's name for "as plain text"
        return backend

    @cached_property
    def _special(self) -> Backend:
        # A second instance, because the library keeps the switch as state: two threads that
        # want different answers must not flip it under each other. The vocabulary is shared.
        return build_backend(self.spec, self._plain.model)

    def _pieces(self, text: str) -> list[str]:
        """Cuts a long text where no token can lie across: the library needs 200 bytes a token.

        A cut is between words at a single space. Where encoding adds a space to what it is
        given, that one stands for the space at the cut.
        """
        if len(text) <= _LONG or self._words_join:
            return [text]
        skip = 1 if self.spec.adds_space else 0
        pieces, start = [], 0
        while (found := _BETWEEN_WORDS.search(text, start + _LONG // 2)) is not None:
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1 + skip
        return [*pieces, text[start:]]

    @cached_property
    def _words_join(self) -> bool:
        """Whether a token holds a letter and a space after it, or a text's first space is lost."""
        if not self.spec.adds_space and self.encode(" a") == self.encode("a"):
            return True
        return any(_LETTER_SPACE.search(self.token_bytes(i)) for i in range(self.vocab_size))

    def _encode_around(self, text: str) -> list[int]:
        """Cuts `text` inside every special token that the model itself put together."""
        encoding = _run(self._plain, text)
        cuts = [0]
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number in self._control:
                if end - start < 2:
                    raise RequestError(
                        f"{text[start:end]!r} is a special token and has no plain form",
                        remedy="Take it out of the text",
                    )
                cuts.append(start + 1)
        pieces = [text[i:j] for i, j in pairwise([*cuts, len(text)])]
        return [number for piece in pieces for number in self.encode(piece)]

    def _canonical(self) -> dict[str, Any]:
        """As the library writes it; it takes six times as long over the vocabulary itself."""
        model = self.spec.values["model"]
        if isinstance(model["vocab"], dict):
            values = written(self.spec)
            vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
            values["model"] |= {"vocab": vocab, "merges": list(map(list, self.spec.merges))}
        else:
            values = json.loads(self._plain.to_str())
        values["truncation"] = values["padding"] = None
        found = self._plain.get_added_tokens_decoder()
        values["added_tokens"] = [
            {"id": number, "content": token.content}
            | {flag: getattr(token, flag) for flag in TOKEN_FLAGS}
            for number, token in sorted(found.items())
        ]
        return values


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, special: Sequence[str] = DEFAULT_SPECIALS
) -> TextTokenizer:
    """Returns a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) of `texts`.

    `special` takes the first ids, then come the 256 bytes, then merges, most frequent first.
    Little text gives fewer tokens than `vocab_size`; equal text gives an equal tokenizer.
    Raises ConfigError where `vocab_size` cannot hold bytes and specials.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    least = 256 + len(special)
    if not least <= vocab_size <= LIMITS.vocab_size or len(set(special)) != len(special):
        raise ConfigError(
            f"vocab_size is {vocab_size}, allowed {least} to {LIMITS.vocab_size}",
            remedy="Count 256 bytes and the special tokens, each once",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with translated(TokenizerError, "the tokenizer cannot be trained"):
        backend.train_from_iterator(texts, trainer)
    return TextTokenizer.from_json(backend.to_str().encode(), where="trained tokenizer")


def _run(backend: Backend, text: str) -> Any:
    with translated(RequestError, "the text is not valid Unicode"):
        return backend.encode(text, add_special_tokens=False)
