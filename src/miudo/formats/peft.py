"""LoRA adapters as PEFT folders, both ways: adapter_config.json and adapter_model.safetensors.

For: adapters that `peft` and vLLM load onto the Hugging Face folder of the same base, and theirs.
A fused matrix (GPT-2's c_attn) is exact both ways: its q, k and v share one `lora_A`.
Not for: what an adapter does (`miudo.decoder.lora`), or kinds that are more than W + s B A.
Read next: `miudo.adapter`, then `miudo.families.family` for the names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miudo.adapter import Adapter, LowRank, check_adapter
from miudo.config import ModelConfig
from miudo.errors import MissingError, ModelFileError
from miudo.families import fitting, for_config, misfits
from miudo.families.family import Family
from miudo.families.places import Source, sources
from miudo.files import atomic_folder, resolve_under, sha256_file
from miudo.formats.blocks import to_f32
from miudo.formats.layout import file_rows
from miudo.formats.safetensors import read_safetensors, write_safetensors
from miudo.plain_json import write_json
from miudo.protocol import FloatArray
from miudo.records import Record
from miudo.strict_json import read_object
from miudo.tensors import Role, StoredTensor, tensor_table

__all__ = [
    "PEFT_CONFIG",
    "TEMPLATE_FILE",
    "family_of_base",
    "peft_fingerprints",
    "read_peft",
    "write_peft",
]

PEFT_CONFIG = "adapter_config.json"
"""The file that makes a folder an adapter."""

TEMPLATE_FILE = "chat_template.jinja"
_WEIGHTS = "adapter_model.safetensors"
_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
_NAME = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])(?:\.default)?\.weight")
_BASE, _TOKENIZER = "base_fingerprint", "tokenizer_fingerprint"

_PLAIN = re.compile(r"[\w.-]+")
_READ = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
# Read by nobody here: where it came from, which matrices (the tensors say it), how it was trained.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
# The rest of the ways to begin take something out of the base model's own weights.
_BEGINNINGS = (True, False, "gaussian", "eva", None)


def write_peft(
    path: Path,
    adapter: Adapter,
    config: ModelConfig,
    *,
    like: str = "",
    record: Record,
    dropout: float = 0.0,
    chat_template: str | None = None,
) -> None:
    """Writes `adapter` of a model of shape `config` as a folder, with `record` beside it.

    `like` is the architecture of the base model's files, whose names for matrices are used. The
    record's settings get the adapter's fingerprints. Raises ModelFileError for an adapter of
    another shape, or a shape that no Hugging Face folder has. The folder appears whole or not.
    """
    check_adapter(config, adapter, where=path)
    family = family_of_base(config, path, like)
    modules = list(_modules(family, config, adapter))
    names = [module.name for module in modules]
    first = modules[0]
    rank, alpha = _common([m.rank for m in modules]), _common([m.alpha for m in modules])
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": record.parents[0].name if record.parents else None,
        "inference_mode": True,
        "bias": "none",
        "r": first.rank if rank is None else rank,
        "lora_alpha": _number(first.alpha if alpha is None else alpha),
        "use_rslora": False,
        "lora_dropout": dropout,
        "fan_in_fan_out": any(module.transposed for module in modules),
        "target_modules": names,
        "rank_pattern": {} if rank is not None else {m.pattern: m.rank for m in modules},
        "alpha_pattern": {}
        if alpha is not None
        else {m.pattern: _number(m.alpha) for m in modules},
    }
    prints = {_BASE: adapter.base, _TOKENIZER: adapter.tokenizer}
    with atomic_folder(path) as folder:
        write_json(folder / PEFT_CONFIG, values)
        with (folder / _WEIGHTS).open("xb") as file:
            write_safetensors(file, (pair for module in modules for pair in module.tensors()))
        if chat_template is not None:
            (folder / TEMPLATE_FILE).write_bytes(chat_template.encode())
        outputs = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
        settings = {**record.settings, **prints}
        dataclasses.replace(record, settings=settings, outputs=outputs).write(folder)


def read_peft(folder: Path, config: ModelConfig) -> Adapter:
    """Returns the adapter in `folder` for a model of shape `config`.

    Fingerprints come from our record beside it, and are None in other programs' folders. Raises
    MissingError where a file is absent, ModelFileError naming key or tensor for what is no plain
    LoRA (DoRA, trained biases or tables, weights that begin in the base's own) or does not fit.
    """
    where = folder / PEFT_CONFIG
    if not where.exists():
        raise MissingError(f"has no {PEFT_CONFIG}", where=folder, remedy="Name an adapter's folder")
    values = read_object(resolve_under(folder, PEFT_CONFIG), _CONFIG_BYTES)
    _refuse(values, where)
    if not (folder / _WEIGHTS).exists():
        pickled = ", only a pickle" if (folder / "adapter_model.bin").exists() else ""
        raise MissingError(f"has no {_WEIGHTS}{pickled}", where=folder)
    stored = read_safetensors(resolve_under(folder, _WEIGHTS))
    pairs = _pairs(stored, folder / _WEIGHTS)
    family, known = _named_as(pairs, config, folder)
    parts: dict[str, LowRank] = {}
    for module, (down, up) in pairs.items():
        source = known.get(module)
        if source is None:
            raise ModelFileError(
                f"{module} is no matrix of this {family.name} model's blocks",
                where=folder / _WEIGHTS,
                remedy="Use it with its own base model",
            )
        scale = _scale(values, module, down.shape[0], where)
        parts.update(_split(source, down, up, scale, config, folder / _WEIGHTS))
    adapter = Adapter(
        {name: parts[name] for name in (s.name for s in tensor_table(config)) if name in parts},
        *peft_fingerprints(folder),
    )
    check_adapter(config, adapter, where=folder)
    return adapter


def peft_fingerprints(folder: Path) -> tuple[str | None, str | None]:
    """Returns those of base model and tokenizer from our record in `folder`, None without one."""
    record = Record.read(folder)
    prints = {} if record is None else record.settings
    base, tokenizer = (prints.get(key) for key in (_BASE, _TOKENIZER))
    return (
        base if isinstance(base, str) else None,
        tokenizer if isinstance(tokenizer, str) else None,
    )


def family_of_base(config: ModelConfig, where: object, like: str = "") -> Family:
    """Returns the family whose folders hold `config`: PEFT names matrices as those do.

    `like` is the architecture of the base model's files, which comes first. Raises
    ModelFileError where none can.
    """
    family = for_config(config, like)
    if family is None:
        raise ModelFileError(
            f"no Hugging Face folder holds such a base model ({misfits(config)})",
            where=where,
            remedy="Export the base with --to hf first and adapt that folder",
        )
    return family


@dataclasses.dataclass(frozen=True, slots=True)
class _Module:
    """One matrix of a Hugging Face folder and its factors as PEFT has them."""

    name: str
    down: FloatArray
    up: FloatArray
    scale: float
    transposed: bool

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def alpha(self) -> float:
        return self.scale * self.rank

    @property
    def pattern(self) -> str:
        """PEFT matches the keys of its patterns as regular expressions."""
        return re.escape(self.name)

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        for factor, values in (("A", self.down), ("B", self.up)):
            name = f"{_PREFIX}{self.name}.lora_{factor}.weight"
            yield name, StoredTensor.from_f32(np.ascontiguousarray(values))


def _matrices(family: Family, config: ModelConfig) -> Iterator[Source]:
    adapted = (Role.ATTENTION, Role.MLP)
    blocks = {spec.name for spec in tensor_table(config) if spec.role in adapted}
    for source in sources(config, family.hf_names, family.hf_layout):
        if source.targets[0] in blocks:
            yield source


def _named_as(
    modules: Collection[str], config: ModelConfig, where: Path
) -> tuple[Family, dict[str, Source]]:
    """The family of those whose folders hold such a base that names `modules` so; its matrices."""
    first = family_of_base(config, where)
    for family in (*fitting(config), first):
        known = {s.name.removesuffix(".weight"): s for s in _matrices(family, config)}
        if known.keys() >= set(modules):
            break
    return family, known


def _modules(family: Family, config: ModelConfig, adapter: Adapter) -> Iterator[_Module]:
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    for source in _matrices(family, config):
        parts = {t: adapter.parts[t] for t in source.targets if t in adapter.parts}
        if not parts:
            continue
        name = source.name.removesuffix(".weight")
        if len(source.targets) == 1:
            (part,) = parts.values()
            yield _Module(name, part.down, part.up, part.scale, source.transposed)
        else:
            yield _fused(name, source, parts, shapes)


def _fused(
    name: str,
    source: Source,
    parts: Mapping[str, LowRank],
    shapes: Mapping[str, tuple[int, ...]],
) -> _Module:
    """Stacks the directions of all parts; each part's rows use its own alone."""
    scale = next(iter(parts.values())).scale
    down = np.concatenate([part.down for part in parts.values()])  # sum of ranks, in
    up = np.zeros((sum(shapes[t][0] for t in source.targets), len(down)), np.float32)
    row = column = 0
    for target in source.targets:
        rows = shapes[target][0]
        if target in parts:
            part = parts[target]
            factor = np.float32(part.scale / scale)  # 1 but for parts of unequal scale
            up[row : row + rows, column : column + part.rank] = part.up * factor
            column += part.rank
        row += rows
    up = up[file_rows(source, [shapes[t][0] for t in source.targets])]
    return _Module(name, down, up, scale, source.transposed)


def _split(
    source: Source,
    down: FloatArray,
    up: FloatArray,
    scale: float,
    config: ModelConfig,
    where: Path,
) -> Iterator[tuple[str, LowRank]]:
    if len(source.targets) == 1:
        yield source.targets[0], LowRank(down, up, scale)
        return
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    rows = [shapes[target][0] for target in source.targets]
    if up.shape[0] != sum(rows):
        raise ModelFileError(
            f"{source.name} corrects {up.shape[0]} rows, the matrix has {sum(rows)}", where=where
        )
    up = up[np.argsort(file_rows(source, rows))]
    row = 0
    for target in source.targets:
        own = up[row : row + shapes[target][0]]
        row += len(own)
        used = own.any(axis=0)  # directions that only the other parts use are left out
        if used.any():
            yield target, LowRank(down[used], np.ascontiguousarray(own[:, used]), scale)
        elif not up.any():  # fresh: nothing says whose its directions are
            yield target, LowRank(down, own, scale)


def _pairs(
    stored: Mapping[str, StoredTensor], where: Path
) -> dict[str, tuple[FloatArray, FloatArray]]:
    found: dict[str, dict[str, FloatArray]] = {}
    for name, tensor in stored.items():
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise ModelFileError(
                f"tensor {name} is no factor of a matrix",
                where=where,
                remedy="miudo reads plain LoRA of matrices inside the blocks",
            )
        found.setdefault(match[1], {})[match[2]] = to_f32(tensor)
    for module, factors in found.items():
        if set(factors) != {"A", "B"}:
            raise ModelFileError(f"{module} has only lora_{next(iter(factors))}", where=where)
        if factors["A"].shape[0] != factors["B"].shape[1] or not factors["A"].shape[0]:
            raise ModelFileError(
                f"{module}: lora_A {list(factors['A'].shape)} and lora_B "
                f"{list(factors['B'].shape)} share no rank",
                where=where,
            )
    return {module: (factors["A"], factors["B"]) for module, factors in found.items()}


def _refuse(values: Mapping[str, Any], where: Path) -> None:
    """Raises ModelFileError for anything that makes it more than W + s B A."""
    if values.get("peft_type") != "LORA":
        raise ModelFileError(
            f"peft_type is {values.get('peft_type')!r:.60}", where=where, remedy="miudo reads LORA"
        )
    if values.get("bias", "none") != "none":
        raise ModelFileError(f"bias is {values['bias']!r:.60}: biases were trained", where=where)
    begun = values.get("init_lora_weights", True)
    if not any(begun is known or begun == known for known in _BEGINNINGS):
        raise ModelFileError(
            f"init_lora_weights is {begun!r:.60}, which begins in the base model's own weights",
            where=where,
            remedy="Convert it to plain LoRA with the program that made it",
        )
    odd = [k for k, v in values.items() if v and k not in _READ | _HARMLESS | {"bias"}]
    if odd:
        shown = ", ".join(f"{k} = {values[k]!r:.60}" for k in sorted(odd)[:8])
        raise ModelFileError(
            f"keys that change what the adapter computes: {shown}",
            where=where,
            remedy="miudo reads plain LoRA",
        )


def _scale(values: Mapping[str, Any], module: str, rank: int, where: Path) -> float:
    alpha = _pattern(values, "alpha_pattern", module, values.get("lora_alpha"), where)
    said = _pattern(values, "rank_pattern", module, values.get("r"), where)
    if said != rank:
        raise ModelFileError(f"r of {module} is {said!r:.40}, its tensors have {rank}", where=where)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ModelFileError(f"lora_alpha is {alpha!r:.40}, not a number", where=where)
    return float(alpha / (rank**0.5 if values.get("use_rslora") else rank))


def _pattern(
    values: Mapping[str, Any], key: str, module: str, otherwise: object, where: Path
) -> object:
    """The value of the first pattern that fits: a name or its end, as PEFT writes them."""
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict):
        raise ModelFileError(f"{key} is no map", where=where)
    for pattern, value in patterns.items():
        # Taken as text: a regular expression from a file could run for ever.
        plain = pattern.replace("\\", "").removeprefix("^")
        if module == plain or module.endswith(f".{plain}"):
            return value
    odd = [p for p in patterns if _may_fit(p.replace("\\.", ".").removeprefix("^"), module)]
    if odd:
        raise ModelFileError(
            f"{key} holds the expression {odd[0]!r:.60}",
            where=where,
            remedy="Name each matrix in full",
        )
    return otherwise


def _may_fit(pattern: str, module: str) -> bool:
    """Whether a pattern that is not the module's name could be an expression that fits it."""
    if not _PLAIN.fullmatch(pattern):
        return True
    parts = [re.escape(part) for part in pattern.split(".")]  # each dot is any sign to PEFT
    return re.search(r"(^|\.)" + ".".join(parts) + "$", module) is not None


def _common(values: Sequence[Any]) -> Any:
    """Returns the value that all share, None where they differ."""
    return values[0] if len(set(values)) == 1 else None


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
