"""The text side of a Hugging Face folder: tokenizer, special tokens and chat template.

For: whichever of their forms a folder holds: tokenizer.json, else tokenizer.model, else
vocab.json with merges.txt; and writing the one form that `transformers` reads.
Not for: config and weights (`miudo.formats.hf`).
Read next: `miudo.text.special_tokens`, `miudo.text.sentencepiece`, `miudo.text.word_rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError, TokenizerError
from miudo.files import open_regular, resolve_under
from miudo.formats.model_file import ModelFile
from miudo.limits import LIMITS
from miudo.plain_json import write_json
from miudo.strict_json import parse_object
from miudo.text.sentencepiece import parse_sentencepiece
from miudo.text.special_tokens import (
    TokenSources,
    role_tokens,
    token_names,
    with_special_tokens,
)
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer, parse_tokenizer_json
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer

__all__ = ["read_bytes", "read_chat_template", "read_tokenizer", "read_values", "write_text_side"]

# vocab.json and merges.txt say nothing of how words are cut; the name of their reader does.
_RULE_OF_CLASS = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "gpt-2",
    "GPTNeoXTokenizer": "olmo",
    "Qwen2Tokenizer": "qwen2",
}


def read_tokenizer(
    folder: Path, settings: Mapping[str, Any], config: ModelConfig
) -> TokenizerSpec | None:
    """Returns the folder's tokenizer, or None; `settings` is its tokenizer_config.json.

    Raises TokenizerError or ModelFileError for a file that is damaged or of a kind that is not
    read, naming it.
    """
    found = _read_vocabulary(folder, settings)
    if found is None:
        return None
    sources = TokenSources(
        settings=settings,
        named=read_values(folder, "special_tokens_map.json") or {},
        added=read_values(folder, "added_tokens.json") or {},
        roles=role_tokens(config, found.tokens),
    )
    values = with_special_tokens(found.whole(), sources, folder)
    if values["added_tokens"] != (found.values.get("added_tokens") or []):
        found = check_tokenizer(values, where=found.where)
    return dataclasses.replace(found, named=token_names(sources))


def _read_vocabulary(folder: Path, settings: Mapping[str, Any]) -> TokenizerSpec | None:
    if (data := read_bytes(folder, "tokenizer.json", LIMITS.json_bytes)) is not None:
        return parse_tokenizer_json(data, where=folder / "tokenizer.json")
    if (data := read_bytes(folder, "tokenizer.model", LIMITS.json_bytes)) is not None:
        return parse_sentencepiece(data, where=folder / "tokenizer.model")
    listed = read_bytes(folder, "vocab.json", LIMITS.json_bytes)
    merges = read_bytes(folder, "merges.txt", LIMITS.json_bytes)
    if listed is None or merges is None:
        return None
    vocab = parse_object(listed, folder / "vocab.json", max_values=LIMITS.tokenizer_values)
    name = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if name not in _RULE_OF_CLASS or settings.get("add_prefix_space"):
        raise TokenizerError(
            f"is that of a {name[:60]}, which cuts words in a way that is not known",
            where=folder / "vocab.json",
            remedy="Put the model's tokenizer.json into the folder",
        )
    rule = WORD_RULES[_RULE_OF_CLASS[name]]
    pairs = _merge_lines(merges, folder / "merges.txt")
    values = byte_level_tokenizer(rule, vocab, pairs, [])
    return check_tokenizer(values, where=folder / "vocab.json")


def _merge_lines(data: bytes, where: Path) -> list[str]:
    if data.count(b"\n") > LIMITS.vocab_size:  # each makes a token of its own
        raise TokenizerError(f"has more than {LIMITS.vocab_size} merges", where=where)
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"is not UTF-8 ({error.reason})", where=where) from error
    if lines[0].startswith("#version"):
        del lines[0]
    return [line for line in (raw.rstrip("\r") for raw in lines) if line]


def read_chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Returns the text of chat_template.jinja, else that in tokenizer_config.json, or None.

    Of several named templates the one called "default". Raises ModelFileError for what is no
    text, or too long a one.
    """
    where = folder / "chat_template.jinja"
    alone = read_bytes(folder, where.name, LIMITS.template_bytes)
    text: Any = settings.get("chat_template")
    try:
        if alone is not None:
            text = alone.decode()
        if isinstance(text, list):
            named = {str(t.get("name")): t.get("template") for t in text if isinstance(t, dict)}
            text = named.get("default")
        if text is None:
            return None
        if not isinstance(text, str) or len(text.encode()) > LIMITS.template_bytes:
            raise ModelFileError("chat template is no text of a sane size", where=folder)
    except UnicodeError as error:
        raise ModelFileError(f"is not UTF-8 ({error})", where=where) from error
    return text


def read_bytes(folder: Path, name: str, limit: int) -> bytes | None:
    """Returns the content of a file inside `folder`, None if there is none."""
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    with open_regular(resolve_under(folder, name)) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ModelFileError(f"larger than {limit} bytes", where=path)
    return data


def read_values(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the JSON object in a file inside `folder`, None if there is none."""
    data = read_bytes(folder, name, LIMITS.config_bytes)
    if data is None:
        return None
    return parse_object(data, folder / name, max_values=LIMITS.json_values)


def write_text_side(folder: Path, model: ModelFile, values: Mapping[str, Any]) -> None:
    """Writes tokenizer, template and generation settings; `values` are those of config.json."""
    ids = {k: values[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {k: v for k, v in ids.items() if v is not None}
    write_json(folder / "generation_config.json", known)
    if model.chat_template is not None:
        (folder / "chat_template.jinja").write_bytes(model.chat_template.encode())
    if model.tokenizer is None:
        return
    model.tokenizer.check_merges()
    (folder / "tokenizer.json").write_bytes(model.tokenizer.to_json())
    side: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_positions,
        "clean_up_tokenization_spaces": False,
    }
    if "bos_token" in model.tokenizer.named and "bos_token_id" not in known:
        side["add_bos_token"] = False
    names = {**model.tokenizer.named, **_token_texts(model.tokenizer, known)}
    write_json(folder / "tokenizer_config.json", side | names)


def _token_texts(spec: TokenizerSpec, ids: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its like, as the tokenizer spells the ids."""
    firsts = {k: v[0] if isinstance(v, list) else v for k, v in ids.items()}
    n = len(spec.tokens)
    return {k.removesuffix("_id"): spec.tokens[v] for k, v in firsts.items() if 0 <= v < n}
