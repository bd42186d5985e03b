"""Token files: split by document, verified, and batches as a pure function."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from miudo.data.pack import Origin, PackSettings, hold_out, pack
from miudo.data.packed import DataSet, PackedTokens
from miudo.data.sources import Document
from miudo.errors import ConfigError, DataError, MissingError, ModelFileError
from miudo.protocol import Message
from miudo.records import Artefact
from miudo.text.tokenizer import TextTokenizer, train_bpe

TEXTS = [f"document {i} speaks of the number {i * i} and of {i} cats" for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def packed(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "data"
    origin = Origin((Artefact("source", "x.txt", "0" * 64),), synthetic=True)
    pack(documents(), tokenizer, out, held_out=0.1, seed=3, origin=origin)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def documents() -> list[Document]:
    return [Document(text, "x.txt", i) for i, text in enumerate(TEXTS)]


def decoded(data: DataSet, split: str) -> list[str]:
    tokens, end = data.open_split(split), data.end_id
    ids = tokens._window(0, tokens.n_tokens - 1)
    cuts = np.flatnonzero(ids == end)
    tokenizer = data.tokenizer()
    starts = [0, *(cuts + 1)]
    return [tokenizer.decode(ids[a:b]) for a, b in zip(starts, cuts, strict=False)]


def test_every_document_is_in_exactly_one_part(packed: Path) -> None:
    data = DataSet.open(packed)
    train, held = decoded(data, "train"), decoded(data, "held_out")
    assert sorted(train + held) == sorted(TEXTS)
    assert not set(train) & set(held)
    assert data.documents("train") == len(train)
    assert held == [t for t in TEXTS if hold_out(t, 3) < 0.1]
    part = data.manifest["splits"]["held_out"]
    assert part["text_bytes"] == sum(len(t.encode()) for t in held)
    assert data.manifest["synthetic"] is True
    assert data.manifest["sources"] == [{"role": "source", "name": "x.txt", "sha256": "0" * 64}]


def test_more_documents_move_none(tokenizer: TextTokenizer, tmp_path: Path, packed: Path) -> None:
    more = [*documents(), *(Document(f"more {i}", "y", i) for i in range(50))]
    data = pack(more, tokenizer, tmp_path / "more", held_out=0.1, seed=3)
    assert set(decoded(DataSet.open(packed), "held_out")) <= set(decoded(data, "held_out"))
    other = pack(documents(), tokenizer, tmp_path / "seed", held_out=0.1, seed=4)
    assert decoded(other, "held_out") != decoded(DataSet.open(packed), "held_out")


def test_packing_is_deterministic(tokenizer: TextTokenizer, tmp_path: Path, packed: Path) -> None:
    pack(documents(), tokenizer, tmp_path / "again", held_out=0.1, seed=3)
    for name in ("train.bin", "held_out.bin", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_neither_part_is_empty_where_there_are_two(
    tokenizer: TextTokenizer, tmp_path: Path, n: int
) -> None:
    for share in (0.001, 0.999):
        data = pack(documents()[:n], tokenizer, tmp_path / str(share), held_out=share, seed=0)
        assert data.documents("train") >= 1
        assert data.documents("held_out") >= 1


def test_one_document_cannot_be_parted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one"):
        pack(documents()[:1], tokenizer, tmp_path / "one", held_out=0.1, seed=0)
    data = pack(documents()[:1], tokenizer, tmp_path / "one", held_out=0.0, seed=0)
    assert (data.documents("train"), data.tokens("held_out")) == (1, 0)
    assert data.open_split("held_out").n_blocks(4) == 0


def test_nothing_is_left_where_packing_fails(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document"):
        pack([], tokenizer, tmp_path / "none", held_out=0.1, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_not_replaced(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="no data folder"):
        pack(documents(), tokenizer, tmp_path, held_out=0.1, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_chats_are_framed_by_the_template(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    turns = (Message("user", "hi <|end|>"), Message("assistant", "cats"))
    chat = Document("hi <|end|>\ncats", "c", 0, turns)
    data = pack([chat], tokenizer, tmp_path / "chat", held_out=0.0, seed=0)
    tokens = data.open_split()
    ids = list(tokens._window(0, tokens.n_tokens - 1))
    assert [i for i in ids if i < 5] == [2, 0, 3, 0]
    assert ids[-1] == 0
    plain = train_bpe(TEXTS, vocab_size=290, special=("<|endoftext|>",))
    with pytest.raises(DataError, match="template"):
        pack([chat], plain, tmp_path / "plain", held_out=0.0, seed=0)
    settings = PackSettings(held_out=0.0, template="{{ messages[0].content }}")
    assert pack([chat], plain, tmp_path / "plain", settings=settings).end_id == 0


def test_a_tokenizer_needs_an_end_token(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, vocab_size=290, special=("<stop>",))
    with pytest.raises(DataError, match="end token"):
        pack(documents(), tokenizer, tmp_path / "a", held_out=0.1, seed=0)
    settings = PackSettings(end_token="<stop>")  # noqa: S106 - no password
    assert pack(documents(), tokenizer, tmp_path / "a", settings=settings).end_id == 0


def test_large_vocabularies_take_four_bytes(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextTokenizer, "vocab_size", property(lambda _: 1 << 17))
    data = pack(documents(), tokenizer, tmp_path / "wide", held_out=0.1, seed=0)
    assert data.manifest["dtype"] == "uint32"
    assert (tmp_path / "wide/train.bin").stat().st_size == 4 * data.tokens("train")
    assert data.open_split().n_tokens == data.tokens("train")


def test_blocks_are_neighbours_that_share_a_target(packed: Path) -> None:
    tokens = PackedTokens.open(packed)
    first, second = tokens.block(0, 16), tokens.block(1, 16)
    assert first.dtype == np.int32
    assert first.shape == (17,)
    assert first[-1] == second[0]
    assert tokens.n_blocks(16) == (tokens.n_tokens - 1) // 16
    for bad in (-1, tokens.n_blocks(16)):
        with pytest.raises(DataError, match="blocks of 16"):
            tokens.block(bad, 16)
    with pytest.raises(ConfigError):
        tokens.n_blocks(0)


def test_batches_are_a_pure_function(packed: Path) -> None:
    one, two = PackedTokens.open(packed), PackedTokens.open(packed)
    forward = [one.batch(7, step, 4, 16) for step in range(60)]
    backward = [two.batch(7, step, 4, 16) for step in reversed(range(60))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert forward[0].shape == (4, 17)
    assert not np.array_equal(forward[0], one.batch(8, 0, 4, 16))


def test_the_order_of_batches_is_pinned() -> None:
    # A checkpoint resumes by this order: a change of it breaks every run under way.
    tokens = PackedTokens(np.arange(1000, dtype=np.uint16), sha256="", where="numbers")
    assert tokens.batch(1, 0, 4, 10)[:, 0].tolist() == [942, 822, 72, 702]
    assert tokens.batch(1, 30, 4, 10)[:, 0].tolist() == [27, 317, 987, 67]


def test_an_epoch_shows_every_block_once_and_then_another_order() -> None:
    tokens = PackedTokens(np.arange(1001, dtype=np.uint16), sha256="", where="numbers")
    epochs = [
        np.concatenate([tokens.batch(5, e * 10 + step, 10, 10) for step in range(10)])
        for e in range(2)
    ]
    for rows in epochs:
        # As a ring: inputs of an epoch are distinct, every target follows its input.
        inputs = rows[:, :-1].ravel()
        assert len(set(inputs.tolist())) == 1000
        assert np.array_equal((rows[:, :-1] + 1) % 1001, rows[:, 1:])
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_larger_than_the_data_is_refused_with_counts(packed: Path) -> None:
    tokens = PackedTokens.open(packed)
    with pytest.raises(DataError, match=rf"has {tokens.n_tokens} tokens.*64 x 1024 needs 65537"):
        tokens.batch(0, 0, 64, 1024)
    with pytest.raises(ConfigError):
        tokens.batch(0, 0, 0, 16)


def test_a_changed_file_is_named(copy: Path) -> None:
    data = bytearray((copy / "train.bin").read_bytes())
    data[100] ^= 1
    (copy / "train.bin").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"train\.bin.*changed"):
        PackedTokens.open(copy)
    assert PackedTokens.open(copy, verify=False).n_tokens > 0
    (copy / "train.bin").write_bytes(bytes(data[:-2]))
    with pytest.raises(DataError, match="bytes"):
        PackedTokens.open(copy, verify=False)
    (copy / "train.bin").unlink()
    with pytest.raises(MissingError):
        PackedTokens.open(copy)


def test_ids_outside_the_vocabulary_are_refused(copy: Path) -> None:
    change(copy, vocab_size=100, end_id=0)
    with pytest.raises(DataError, match="the vocabulary has 100"):
        PackedTokens.open(copy)


def test_another_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_bytes(train_bpe(TEXTS, vocab_size=280).to_json())
    with pytest.raises(DataError, match="not the tokenizer"):
        DataSet.open(copy).tokenizer()


def change(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"schema": 2}, "schema"),
        ({"dtype": "float32"}, "dtype"),
        ({"chats": "many"}, "chats"),
        ({"chats": 2, "settings": []}, "settings"),
        ({"chats": 2, "settings": {"template": 7}}, "settings.template"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"end_id": 1 << 40}, "end_id"),
        ({"tokenizer": 5}, "tokenizer"),
        ({"splits": []}, "splits"),
        ({"splits": {"train": 1, "held_out": 2}}, r"splits\.train"),
    ],
)
def test_a_damaged_manifest_is_refused(copy: Path, values: dict[str, object], says: str) -> None:
    change(copy, **values)
    with pytest.raises(DataError, match=says):
        DataSet.open(copy)


def test_a_manifest_cannot_lead_out_of_its_folder(copy: Path) -> None:
    splits = json.loads((copy / "manifest.json").read_text())["splits"]
    splits["train"]["file"] = "../../../etc/passwd"
    change(copy, splits=splits)
    with pytest.raises(ModelFileError, match="leads out"):
        PackedTokens.open(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(DataError):
        DataSet.open(copy)


def test_reading_maps_the_file(packed: Path) -> None:
    assert isinstance(PackedTokens.open(packed)._ids, np.memmap)


@pytest.mark.parametrize("values", [{"held_out": 1.0}, {"held_out": -0.1}, {"seed": -1}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PackSettings(**values)  # type: ignore[arg-type]
