"""The Engine protocol on the PyTorch decoder.

For: evaluation and distillation while a model is being made, and as the native engine's twin.
Not for: speed; conversations of a batch run one after the other.
Read next: `miudo.engine.native`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.hooks import RemovableHandle

from miudo.adapter import Adapter, AdapterBook, LowRank, base_fingerprint, check_adapter
from miudo.checks import check_batch, check_ids, check_length, check_top_k
from miudo.config import ModelConfig
from miudo.decoder.attention import Capture
from miudo.decoder.cache import KVCache
from miudo.decoder.decoder import Decoder
from miudo.errors import RequestError
from miudo.protocol import FloatArray, Scores, SeqWork, StepOut, Want
from miudo.sampling import log_softmax_at, sample
from miudo.tensors import StoredTensor

__all__ = ["TorchEngine"]

_SCORE_CHUNK = 256


@dataclass
class _Conversation:
    cache: KVCache
    ids: list[int] = field(default_factory=list)


class TorchEngine:
    """Runs `decoder` in float32 evaluation mode; it does not copy the weights."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder.eval()
        self._device = decoder.embed.weight.device
        self._open: dict[int, _Conversation] = {}
        self._next = 0
        self._book = AdapterBook()

    @property
    def config(self) -> ModelConfig:
        """The model that runs, for texts of the decoder's session."""
        return self._decoder.session

    def open(self) -> int:
        """Returns a new, empty conversation."""
        self._next += 1
        self._open[self._next] = _Conversation(KVCache(self.config, device=self._device))
        return self._next

    def fork(self, conversation: int, length: int) -> int:
        """Returns a new conversation with another's first `length` positions, copied."""
        held = self._get(conversation)
        check_length(length, len(held.ids))
        self._next += 1
        self._open[self._next] = _Conversation(held.cache.fork(length), held.ids[:length])
        self._book.fork(conversation, self._next, length)
        return self._next

    def close(self, conversation: int) -> None:
        """Frees a conversation."""
        self._get(conversation)
        del self._open[conversation]
        self._book.bound.pop(conversation, None)

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        return len(self._get(conversation).ids)

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        held = self._get(conversation)
        check_length(length, len(held.ids))
        del held.ids[length:]
        held.cache.length = length
        if not length:
            self._book.bound.pop(conversation, None)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Lets works name `name`; the decoder stays as it is.

        Raises RequestError for a name in use, ModelFileError for an adapter of another model.
        """
        norms = {
            key: StoredTensor.from_f32(value.detach().float().cpu().numpy())
            for key, value in self._decoder.named_parameters()
            if "norm" in key
        }
        base = base_fingerprint(self.config, norms)
        check_adapter(self.config, adapter, base=base, where=f"adapter {name}")
        self._book.add(name, adapter)

    def remove_adapter(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError if it is unknown or a conversation has it."""
        self._book.remove(name)

    @torch.inference_mode()
    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        """Takes in every item's ids and returns what each wanted, in the batch's order."""
        check_batch(self.config, {k: len(v.ids) for k, v in self._open.items()}, batch)
        for work in batch:
            self._book.check(work)
        lengths = [self.length(work.conversation) for work in batch]
        try:
            return [self._verify(work) if work.n_drafted else self._step(work) for work in batch]
        except BaseException:
            for work, length in zip(batch, lengths, strict=True):
                self.truncate(work.conversation, length)
            raise

    @torch.inference_mode()
    def score(self, ids: Sequence[int], *, top_k: int = 0, adapter: str | None = None) -> Scores:
        """Scores ids[1:] in chunks, in a conversation of its own."""
        check_ids(self.config, ids)
        check_top_k(self.config, top_k)
        if len(ids) > self.config.max_positions:
            raise RequestError(f"{len(ids)} ids, the model has {self.config.max_positions}")
        cache = KVCache(self.config, device=self._device)
        parts = []
        with _adapted(self._decoder, self._book.named(adapter)):
            for start in range(0, len(ids) - 1, _SCORE_CHUNK):
                end = min(start + _SCORE_CHUNK, len(ids) - 1)
                hidden = self._decoder(self._tensor([ids[start:end]]), cache=cache)
                logits = self._decoder.logits(hidden)[0].float()  # T V
                parts.append(_score(logits, self._tensor(ids[start + 1 : end + 1]), top_k))
        return _joined(parts, top_k)

    @torch.inference_mode()
    def unembed(self, hidden: FloatArray) -> FloatArray:
        """Returns logits [N, V] of states [N, D] after any layer: final norm and head."""
        if hidden.ndim != 2 or hidden.shape[1] != self.config.d_model:
            raise RequestError(f"hidden is {list(hidden.shape)}, not [N, {self.config.d_model}]")
        states = torch.from_numpy(np.array(hidden, np.float32)).to(self._device)
        return _array(self._decoder.logits(self._decoder.norm(states)))

    def _get(self, conversation: int) -> _Conversation:
        if conversation not in self._open:
            raise RequestError(f"conversation {conversation} is not open")
        return self._open[conversation]

    def _tensor(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(ids, device=self._device)

    def _verify(self, work: SeqWork) -> StepOut:
        """Takes a draft in one id at a time: a longer step would round differently."""
        first = len(work.ids) - work.n_drafted
        outs = [self._step(replace(work, ids=work.ids[:first], n_drafted=0))]
        for at in range(first, len(work.ids)):
            if outs[-1].token != work.ids[at]:
                break
            outs.append(self._step(replace(work, ids=work.ids[at : at + 1], n_drafted=0)))
        tokens = tuple(t for out in outs for t in out.tokens)
        logprobs = tuple(p for out in outs for p in out.logprobs)
        return StepOut(work.conversation, tokens, logprobs)

    def _step(self, work: SeqWork) -> StepOut:
        held = self._open[work.conversation]
        capture = None
        if work.want & (Want.HIDDEN | Want.ATTENTION):
            capture = Capture(want_attention=Want.ATTENTION in work.want)
        with _adapted(self._decoder, self._book.named(work.adapter)):
            ids = self._tensor([list(work.ids)])
            hidden = self._decoder(ids, cache=held.cache, capture=capture)
        held.ids.extend(work.ids)
        self._book.bound[work.conversation] = work.adapter
        whole = Want.ALL_LOGITS in work.want
        logits = _array(self._decoder.logits(hidden[0] if whole else hidden[0, -1:]))  # T|1 V
        tokens: tuple[int, ...] = ()
        if Want.SAMPLE in work.want:
            settings, position = work.sampling, len(held.ids)
            tokens = (
                sample(logits[-1], settings, position=position, seen=held.ids, mask=work.mask),
            )
        wanted = logits if whole else logits[-1] if Want.LAST_LOGITS in work.want else None
        return StepOut(
            conversation=work.conversation,
            tokens=tokens,
            logprobs=tuple(log_softmax_at(logits[-1], token) for token in tokens),
            logits=wanted,
            hidden=_hidden(capture) if Want.HIDDEN in work.want else None,
            attention=_attention(capture) if Want.ATTENTION in work.want else None,
        )


@contextmanager
def _adapted(decoder: Decoder, adapter: Adapter | None) -> Iterator[None]:
    """Lets the decoder's matrices answer with `adapter` beside them, for a while."""
    parts = {} if adapter is None else adapter.parts
    hooks = [h for name, part in parts.items() for h in _beside(decoder, name, part)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _beside(decoder: nn.Module, name: str, part: LowRank) -> list[RemovableHandle]:
    module = decoder.get_submodule(name.removesuffix(".weight"))
    device = next(module.parameters()).device
    # Copied: what lies in a file's map may not be written to, and torch would warn.
    pair = (np.array(x, np.float32, order="C") for x in (part.down, part.up))
    down, up = (torch.from_numpy(x).to(device) for x in pair)
    given: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given[:] = inputs

    def add(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        low = F.linear(given[0], down)  # B T rank
        return out + part.scale * F.linear(low, up)

    # Before any hook that rounds activations: the correction takes them as they are.
    first = module.register_forward_pre_hook(take, prepend=True)
    return [first, module.register_forward_hook(add)]


def _array(x: Tensor) -> FloatArray:
    return x.float().cpu().numpy()


def _hidden(capture: Capture | None) -> FloatArray | None:
    return None if capture is None else np.stack([_array(h[0]) for h in capture.hidden])


def _attention(capture: Capture | None) -> tuple[FloatArray, ...] | None:
    return None if capture is None else tuple(_array(a[0]) for a in capture.attention)


def _score(logits: Tensor, targets: Tensor, top_k: int) -> list[Tensor]:
    total = logits.logsumexp(-1)  # T
    parts = [logits.gather(1, targets[:, None])[:, 0] - total, logits.argmax(-1), total]
    if top_k:
        best = logits.topk(top_k, dim=-1)
        parts += [best.indices, best.values - total[:, None]]
    return parts


def _joined(parts: list[list[Tensor]], top_k: int) -> Scores:
    if not parts:  # one id: nothing to predict
        parts = [_score(torch.zeros(0, max(top_k, 1)), torch.zeros(0, dtype=torch.int64), top_k)]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Scores(
        logprobs=_array(columns[0]),
        argmax=columns[1].to(torch.int32).cpu().numpy(),
        logsumexp=_array(columns[2]) if top_k else None,
        top_ids=columns[3].to(torch.int32).cpu().numpy() if top_k else None,
        top_logprobs=_array(columns[4]) if top_k else None,
    )
