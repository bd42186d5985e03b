"""Writes the chats and sentences that the embedded model learns from, as one folder of JSON Lines.

    python scripts/embedded_data.py --root ../shared/data --out runs/embedded-text

Only sets whose licence lets weights be given on are read: public domain, CC0, CC BY. Left out:
share-alike sets (WikiText, Topical-Chat, Bitext, UD GSD) and one whose mirror states no licence
(TinyStories). Novels, tales and news sentences need no change: `recipes/embedded.toml` names
them where they lie.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from miudo.data.lines import open_source
from miudo.data.sample import write_sample
from miudo.files import atomic_write

Chat = list[dict[str, str]]
LESSONS = {"persona": 1, "coffee": 1, "home_en": 2, "home_pt": 4, "synthetic": 1, "talk": 12}
"""What the fine-tuned model is taught to answer, and how many times it hears it."""

_VERSES = 12
_MAX_TURNS = 24


def main() -> None:
    """Writes every file; an older one is replaced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--synthetic-bytes", type=int, default=3_000_000)
    options = parser.parse_args()
    root, out = options.root, options.out
    out.mkdir(parents=True, exist_ok=True)
    chats = {
        "persona": persona(root / "chat/synthetic_persona_chat_valid.csv.xz"),
        "coffee": coffee(root / "support/taskmaster4_coffee_dialogs.jsonl.xz"),
        "home_en": commands(root / "smart_home/home_assistant_utterances_en.jsonl.xz"),
        "home_pt": commands(root / "smart_home/home_assistant_utterances_pt.jsonl"),
    }
    chats["talk"] = own_talk(Path(__file__).with_name("embedded_talk.toml"))
    kept = {name: list(found) for name, found in chats.items()}
    for name, found in kept.items():
        write(out / f"{name}.jsonl", ({"messages": chat} for chat in found))
    pairs = list(columns(root / "parallel/en-pt.tico19_medical.tsv.xz"))
    for at, language in enumerate(("en", "pt")):
        write(out / f"tico_{language}.jsonl", ({"text": pair[at]} for pair in pairs))
    verses = [pair[1] for pair in columns(root / "parallel/en-pt.bible_web-blivre.tsv.xz")]
    chapters = (verses[at : at + _VERSES] for at in range(0, len(verses), _VERSES))
    write(out / "bible_pt.jsonl", ({"text": "\n".join(some)} for some in chapters))
    write_sample(out / "synthetic.jsonl", size_bytes=options.synthetic_bytes)
    made = list(records(out / "synthetic.jsonl"))
    kept["synthetic"] = [row["messages"] for row in made if "messages" in row]
    lessons = [
        chat for name, times in LESSONS.items() for chat in kept[name] * times if len(chat) > 1
    ]
    write(out / "chats.jsonl", ({"messages": chat} for chat in lessons))


def write(path: Path, rows: Iterable[object]) -> None:
    """Writes one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    atomic_write(path, lambda file: file.writelines(lines))
    print(f"{path}: {len(lines):,} records, {sum(map(len, lines)):,} bytes")


def persona(path: Path) -> Iterator[Chat]:
    """Yields two people's talk, the first of them as the user."""
    with open_source(path) as stream:
        rows = list(csv.DictReader(io.StringIO(stream.read().decode())))
    for row in rows:
        chat: Chat = []
        for line in row["Best Generated Conversation"].splitlines():
            speaker, colon, said = line.partition(": ")
            role = {"User 1": "user", "User 2": "assistant"}.get(speaker.strip())
            if not colon or role is None:
                continue
            if chat and chat[-1]["role"] == role:
                chat[-1]["content"] += " " + said.strip()
            else:
                chat.append({"role": role, "content": said.strip()})
        yield from whole(chat)


def coffee(path: Path) -> Iterator[Chat]:
    """Yields orders at a counter."""
    for row in records(path):
        chat: Chat = []
        for role, said in row["turns"]:
            if chat and chat[-1]["role"] == role:
                chat[-1]["content"] += " " + said
            else:
                chat.append({"role": role, "content": said})
        yield from whole(chat)


def commands(path: Path) -> Iterator[Chat]:
    """Yields a spoken command and what the house answered."""
    for row in records(path):
        if row["response"]:
            yield [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": str(row["response"])},
            ]


def own_talk(path: Path) -> Iterator[Chat]:
    """Yields every question with every answer of its table."""
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["talk"]:
        for question in table["user"]:
            for answer in table["assistant"]:
                yield [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]


def whole(chat: Chat) -> Iterator[Chat]:
    """Yields the chat from the first user turn to the last answer, if there is one."""
    while chat and chat[0]["role"] != "user":
        chat = chat[1:]
    chat = chat[:_MAX_TURNS]
    while chat and chat[-1]["role"] != "assistant":
        chat = chat[:-1]
    if chat and all(turn["content"] for turn in chat):
        yield chat


def records(path: Path) -> Iterator[dict[str, object]]:
    """Yields the objects of a JSON Lines file."""
    with open_source(path) as stream:
        for line in stream:
            yield json.loads(line)


def columns(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the two columns of a table of sentence pairs."""
    with open_source(path) as stream:
        for line in stream.read().decode().splitlines():
            left, tab, right = line.partition("\t")
            if tab and left.strip() and right.strip():
                yield left.strip(), right.strip()


if __name__ == "__main__":
    main()
