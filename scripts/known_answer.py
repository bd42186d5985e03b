"""Writes what the model inside the package answers, computed by the PyTorch decoder.

`miudo doctor` holds the engine of a machine against it. Run it anew when the model changes.
"""

from __future__ import annotations

from generated import ROOT

from miudo.evaluate.loading import load_model
from miudo.files import sha256_file
from miudo.hub.resolve import embedded_path
from miudo.plain_json import write_json
from miudo.text.prompt import begun

TEXT = "The little robot found a house near the river. O menino foi para a escola."
OUT = ROOT / "src" / "miudo" / "hub" / "known_answer.json"


def main() -> None:
    """Writes text, ids, and the log-probability of each id after those before it."""
    path = embedded_path()
    loaded = load_model(path, engine="torch")
    ids = begun(loaded.tokenizer.encode(TEXT), loaded.model.config)
    value = {
        "schema": 1,
        "model": path.name,
        "sha256": sha256_file(path),
        "text": TEXT,
        "ids": ids,
        "logprobs": [round(float(score), 6) for score in loaded.engine.score(ids).logprobs],
    }
    write_json(OUT, value)


if __name__ == "__main__":
    main()
