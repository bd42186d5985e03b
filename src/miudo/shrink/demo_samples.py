"""What the demo's small model writes, in English and Portuguese.

For: lines for people to look at, from the native engine, seeded.
Not for: measuring quality.
Read next: `miudo.shrink.demo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miudo.engine.generate import GenerateSettings, generate
from miudo.evaluate.loading import load_model
from miudo.protocol import Message, SamplingSettings
from miudo.text.prompt import prompt_ids

__all__ = ["PROMPTS", "Sample", "write_samples"]

PROMPTS = (
    ("English story", "On a Sunday in April, Clara", False),
    ("Portuguese story", "Numa segunda-feira de dezembro, Clara", False),
    ("English customer", "Hello, Jasmine here. My blender has not arrived.", True),
    ("Portuguese customer", "Boa noite, aqui é Hilda. Pedi um quadro, mas veio uma caneca.", True),
)
"""(label, prompt, whether it goes through the chat template)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what was written after it."""

    label: str
    prompt: str
    text: str


def write_samples(model: Path, *, seed: int, max_tokens: int = 60) -> list[Sample]:
    """Returns one sample a prompt from the model at `model`, on the native engine."""
    loaded = load_model(model)
    settings = GenerateSettings(
        max_tokens=max_tokens,
        sampling=SamplingSettings(temperature=0.7, top_p=0.95, seed=seed),
        eos_ids=loaded.model.config.eos_ids,
    )
    samples = []
    for label, prompt, chat in PROMPTS:
        template = loaded.model.chat_template if chat else None
        messages = [Message("user", prompt)]
        ids = prompt_ids(loaded.tokenizer, messages, loaded.model.config, template=template)
        events = generate(loaded.engine, loaded.tokenizer, ids, settings)
        samples.append(Sample(label, prompt, "".join(event.text for event in events)))
    return samples
