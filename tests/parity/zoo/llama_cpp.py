"""llama.cpp in this process, through xllamacpp, on one thread and without half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer

__all__ = ["continued", "prompt_length", "server", "words"]


def words(n: int) -> TokenizerSpec:
    """Returns a tokenizer of `n` ids that are all whole text: no half characters are reported."""
    vocab = {f"w{i}": i for i in range(n)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return check_tokenizer({"model": model, "pre_tokenizer": level, "decoder": level})


def server(path: Path, adapter: Path | None = None, *, context: int = 512) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def continued(running: Any, prompt: Any, n: int) -> list[tuple[int, float]]:
    """Greedy ids and their log-probabilities."""
    request = {"prompt": prompt, "n_predict": n, "temperature": 0, "n_probs": 1, "ignore_eos": True}
    answer = running.handle_completions(request)
    content = answer["choices"][0]["logprobs"]["content"]
    return [(token["id"], token["logprob"]) for token in content]


def prompt_length(running: Any, text: str) -> int:
    answer = running.handle_completions({"prompt": text, "n_predict": 1, "temperature": 0})
    return int(answer["usage"]["prompt_tokens"])
