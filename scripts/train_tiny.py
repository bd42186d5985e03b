"""Makes tests/data/tiny, the model that the twin tests run: ours, trained, under 400 kB.

    python scripts/train_tiny.py

Trains for about two minutes on the synthetic sample corpus; the record in the folder says with
what. Run it again when tensor names, the tokenizer's defaults or the folder's form change.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from miudo.config import ModelConfig
from miudo.data.pipeline import PrepareSettings
from miudo.data.sample import write_sample
from miudo.formats import open_model
from miudo.formats.hf import write_folder
from miudo.tensors import DType, parameter_count
from miudo.train.pretrain import TrainJob, train
from miudo.train.progress import Lines
from miudo.train.settings import FitSettings

OUT = Path(__file__).parents[1] / "tests" / "data" / "tiny"
SHAPE = ModelConfig.uniform(
    n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=512, max_positions=256
)


def main() -> None:
    """Trains and writes the folder; prints its parameters and size."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_sample(work / "sample.txt", seed=0, size_bytes=2_000_000)
        job = TrainJob(
            inputs=(str(work / "sample.txt"),),
            out=work / "run",
            settings=FitSettings(tokens=3_000_000, batch_size=8, length=128, lr=4e-3),
            shape=SHAPE,
            prepare=PrepareSettings(vocab_size=512),
        )
        made = train(job, Lines())
        write_folder(OUT, open_model(made.folder), dtype=DType.BF16)
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"{parameter_count(made.config):,} parameters, {size:,} bytes in {OUT}")


if __name__ == "__main__":
    main()
