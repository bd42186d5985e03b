"""Writes docs/zoo.md from docs/zoo.json, what the parity suite measured last.

With a file of measurements as argument it prints their table instead: `make parity` ends so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from generated import ROOT, keep

from miudo.hub.catalogue import load_catalogue

HEAD = """\
# The zoo

Every family that miudo reads, runs, writes and exports without foreign code. Written by
`scripts/zoo_table.py` from `docs/zoo.json`, what `make parity` measured last; to renew it, copy
`build/zoo.json` there and run `make docs`.

## Parity

Each family is held against other programs on tiny models in which every parameter is noise, over
33 ids: beyond every window and every rotation's original length in them. A number is the greatest
absolute difference over all of a family's models and, where a session's length matters, over
contexts of 12, 16, 17 and 33.

- **Decoder**, **engine**: logits of miudo's PyTorch decoder and of its native engine in float32,
  beside those of `transformers` (for OpenELM and DCLM of its modules put together, for MiniCPM of
  its Granite). Taken in at once, and id by id with cached keys and values. Bound: 1e-4.
- **Written back**: the folder that miudo writes, loaded by `transformers`. Bound: 1e-4.
- **Read from GGUF**: a file with the names of llama.cpp's own package and the keys and row order of
  its converter, beside `transformers`. Bound: 1e-4.
- **llama.cpp**: the GGUF file that miudo writes, 30 ids chosen by llama.cpp: all the same at F32,
  four of five at Q8_0 with activations rounded as it rounds them. The number is the difference of
  log-probabilities. Its GELU is a table of float16 values. Where a family has models that the
  GGUF of other programs cannot say, they are written under the architecture `miudo`.

Licences are those of the family's models in the [catalogue](models.md).

"""
SLIPS = """
## Slips that the suite finds

What a port gets wrong most easily, done on purpose to a model that passes.

"""
CONTEXT = """
## What a family is not

Where files cannot say a model exactly, miudo says which words they lack and writes none: a folder
is refused, a GGUF file gets the architecture `miudo`. Keys of `config.json` that may change what a
model computes and that miudo does not know are refused by name, as are architectures that only
sound like one of these (`miudo.families.refused`).

- **Length.** LongRoPE models (Phi-3.5, Phi-4-mini, MiniCPM3) have two sets of rotary factors, and
  cached keys of the one are wrong under the other. A session therefore takes one set for all of
  its texts: the short one for as many positions as the model was first trained on, which is what
  it gets unless more is asked for (`--context`), else the long one. Training without a cache takes
  the set that a row's own length wants.
- **Dynamic NTK** acts beyond `max_position_embeddings` only. Such models (MiniCPM-2B-128k) are read
  with that many positions and no more, where it changes nothing.
- **YaRN** added by hand, as Qwen 2.5's card says, stretches the positions to factor times original.
- **Mistral 7B v0.1** attends to a window of 4096 on every layer. GGUF's `llama` has no windows: its
  file is written under `miudo`, unless it is to hold no longer texts.
- **MiniCPM 1 and 2** folders need code of their own elsewhere; they are written as Granite's.
- **MiniCPM3** in llama.cpp has the published model's scales and no others, and one eps for all
  norms where the model has a second one inside its latents: the export says so.
- **SmolLM3** in llama.cpp leaves every fourth layer unrotated, no other choice.
- **GELU** is named by no key of GGUF. In `gpt2` and `bloom` it is the tanh form, so that a
  Cerebras-GPT, which has the exact one, is written under `miudo`; in `gptneox` it is the exact one,
  which llama.cpp computes by the tanh form: the export says so.
- **Gemma** in llama.cpp scales scores by the size of a head, and by d_model over heads in models as
  deep as the largest (46 layers, 62 for Gemma 3). A `query_pre_attn_scalar` that says otherwise, as
  224 in one published 2B, is written under `miudo`, as are other orders of windows. Norms lack 1 in
  folders only.
- **OPT** and **DCLM** are no architectures of llama.cpp: their GGUF is `miudo`'s. Folders of
  **OpenELM** and DCLM need their authors' code elsewhere: the export says so.
- **OpenELM**'s layers keep their own heads and widths, in GGUF too. Nothing is padded where a file
  can say unequal layers.
- **Galactica** with biases is also a GPT-2 of the exact GELU. A folder keeps the family that the
  model came from, and an adapter its names for matrices.
"""

FAMILIES: dict[str, str] = {
    "llama": "Llama 3.1, 3.2, TinyLlama, MobileLLaMA, Fox-1, SmolLM2",
    "mistral": "Mistral 7B, Mistral Nemo",
    "qwen": "Qwen 2, 2.5, 3",
    "phi": "Phi-3, Phi-3.5-mini, Phi-4-mini",
    "gemma": "Gemma 2, Gemma 3 (text)",
    "granite": "Granite 3",
    "minicpm": "MiniCPM 1B, 2B, MiniCPM3",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "stablelm": "StableLM-zephyr 3B, StableLM 2 1.6B",
    "gpt2": "GPT-2, Cerebras-GPT, LaMini-GPT",
    "neox": "Pythia, RedPajama",
    "bloom": "BLOOM, BLOOMZ",
    "opt": "Galactica, OPT",
    "openelm": "OpenELM",
    "dclm": "DCLM-1B",
}
COLUMNS = {
    "decoder": ("decoder prefill", "decoder cached"),
    "engine": ("native prefill", "native cached"),
    "written back": ("written back",),
    "read from GGUF": ("read from GGUF",),
    "llama.cpp F32": ("llama.cpp F32",),
    "llama.cpp Q8_0": ("llama.cpp Q8_0",),
}
COMMERCIAL = {"yes": "", "conditions": " (conditions)", "no": " (not commercial)"}
Measured = dict[str, dict[str, Any]]


def main() -> None:
    """Prints the table of the file given, or writes the page, or with --check compares it."""
    given = [Path(a) for a in sys.argv[1:] if not a.startswith("--")]
    measured = json.loads((given[0] if given else ROOT / "docs" / "zoo.json").read_text())
    cases = {k: v for k, v in measured.items() if not k.startswith("slip: ")}
    slips = {k.removeprefix("slip: "): v for k, v in measured.items() if k not in cases}
    body = table(cases) + SLIPS + slip_table(slips)
    if given:
        print(body)
    else:
        keep(ROOT / "docs" / "zoo.md", HEAD + body + CONTEXT)


def table(cases: Measured) -> str:
    """Returns one row a family: the worst of its models in each column."""
    lines = [line(("family", "models", "licence", "tried", "largest logit", *COLUMNS))]
    lines.append(line(["---", "---", "---"] + ["---:"] * (len(COLUMNS) + 2)))
    for name, models in FAMILIES.items():
        rows = [row for row in cases.values() if row.get("family") == name]
        largest = max((row["largest logit"] for row in rows if "largest logit" in row), default=0)
        cells = [worst(rows, keys) for keys in COLUMNS.values()]
        lines.append(
            line((f"`{name}`", models, licences(name), str(len(rows)), f"{largest:.0f}", *cells))
        )
    return "\n".join(lines) + "\n"


def licences(family: str) -> str:
    """Returns the licences of the catalogue's models of `family`, each with their names."""
    names: dict[str, dict[str, None]] = {}
    for entry in load_catalogue().entries:
        if entry.family.rstrip("0123456789") == family.rstrip("0123456789"):
            limit = COMMERCIAL[entry.licence.commercial]
            names.setdefault(entry.licence.id + limit, {})[entry.name] = None
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{licence}: {', '.join(held)}" for licence, held in names.items())


def worst(rows: Iterable[dict[str, Any]], keys: Iterable[str]) -> str:
    """Returns the greatest of the numbers under `keys`; a dash where there is none."""
    found = [row[key] for row in rows for key in keys if key in row]
    return f"{max(found):.0e}" if found else "-"


def slip_table(slips: Measured) -> str:
    """Returns one row a slip: on which model, and how far its logits go."""
    lines = [line(("slip", "model", "difference")), line(("---", "---", "---:"))]
    for slip, row in sorted(slips.items()):
        lines += [line((slip, f"`{name}`", f"{value:.2g}")) for name, value in row.items()]
    return "\n".join(lines) + "\n"


def line(values: Iterable[str]) -> str:
    """Returns one line of a Markdown table."""
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
