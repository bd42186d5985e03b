"""A model as a whole, opened to be trained on or made smaller, and the text for it.

For: what the verbs that start from a model share: decoder, tokenizer, lineage, hashes, text.
Not for: formats (`miudo.formats`) or what is done in between.
Read next: `miudo.train.finetune`, `miudo.compress.verbs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from miudo.config import ModelConfig
from miudo.data.packed import MANIFEST_FILE, DataSet
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, TokenizerError
from miudo.formats import ModelFile, open_model
from miudo.formats.derived import DerivedTensor, drop_pages
from miudo.formats.export import weights_sha256
from miudo.records import Artefact, Record
from miudo.text.tokenizer import TextTokenizer
from miudo.train.progress import Progress

__all__ = [
    "Opened",
    "begun_as_used",
    "check_same_tokenizer",
    "folder_artefact",
    "open_decoder",
    "text_data",
]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model file, the decoder made of it, and what a record says of it as an input."""

    file: ModelFile
    decoder: Decoder
    artefact: Artefact

    @property
    def parents(self) -> tuple[Record, ...]:
        """Its record, if it has one."""
        return () if self.file.record is None else (self.file.record,)

    def tokenizer(self) -> TextTokenizer:
        """Returns the model's tokenizer. Raises TokenizerError where it has none."""
        if self.file.tokenizer is None:
            raise TokenizerError(
                "the model has no tokenizer",
                where=self.file.path,
                remedy="Put its tokenizer.json into the folder",
            )
        return TextTokenizer(self.file.tokenizer)


def open_decoder(path: Path, role: str) -> Opened:
    """Returns the model at `path`, a folder or a GGUF file. Raises what `open_model` raises."""
    file = open_model(path)
    decoder = Decoder.from_weights(file.config, file.weights)
    for tensor in file.weights.values():
        if not isinstance(tensor, DerivedTensor):  # which has let its sources go
            drop_pages(tensor.data)
    return Opened(file, decoder, folder_artefact(path, role))


def folder_artefact(path: Path, role: str) -> Artefact:
    """Returns what a record says of a model or adapter as an input: its weights' hash."""
    return Artefact(role, path.name, weights_sha256(path))


def check_same_tokenizer(teacher: Opened, other: TextTokenizer, where: Path) -> None:
    """Raises ConfigError unless text becomes the same ids in both."""
    if teacher.tokenizer().fingerprint != other.fingerprint:
        raise ConfigError(
            "has another tokenizer than the teacher",
            where=where,
            remedy="Prepare the text with --tokenizer TEACHER, and start from a model of its kind",
        )


def begun_as_used(
    settings: PrepareSettings, tokenizer: TextTokenizer, config: ModelConfig
) -> PrepareSettings:
    """Returns `settings` with the begin token of a model whose begin and end are two ids."""
    if config.bos_id is None or config.bos_id in config.eos_ids:
        return settings
    if settings.pack.begin_token is not None:
        return settings
    names = {i: name for name, i in tokenizer.special_ids.items()}
    pack = replace(settings.pack, begin_token=names.get(config.bos_id))
    return replace(settings, pack=pack)


def text_data(
    inputs: tuple[str, ...],
    model: Opened,
    folder: Path,
    settings: PrepareSettings,
    progress: Progress,
    *,
    resume: bool = False,
) -> DataSet:
    """Returns `inputs` as packed tokens of the model's tokenizer.

    Where the model begins otherwise than it ends, each text begins so: it is used that way.
    `inputs` are texts, which are packed into `folder`, or one data folder. With `resume` what
    was packed into `folder` before is taken: `check_order` tells if it is of other text.
    Raises ConfigError if it was packed with another tokenizer, and what `prepare` raises.
    """
    given = [Path(inputs[0])] if len(inputs) == 1 else []
    for found in [*given, folder] if resume else given:
        if (found / MANIFEST_FILE).is_file():
            data = DataSet.open(found)
            check_same_tokenizer(model, data.tokenizer(), found)
            return data
    tokenizer = model.tokenizer()
    settings = begun_as_used(settings, tokenizer, model.file.config)
    return prepare(inputs, folder, tokenizer=tokenizer, settings=settings, progress=progress.note)
