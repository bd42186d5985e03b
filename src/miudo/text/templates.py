"""Chat templates by name, for models whose files carry none.

For: the formats that families were tuned on, as their papers and cards describe them. The
user names one; none is chosen for a model by itself.
Not for: templates that files carry, which stand above these.
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

from collections.abc import Mapping

from miudo.errors import RequestError
from miudo.protocol import Message
from miudo.text.chat import DEFAULT_TEMPLATE, ChatTemplate

__all__ = ["BUILT_IN", "rendered_sample"]

_EACH = "{% for message in messages %}"
_END = "{% endfor %}"
_IF_USER = "{% if message.role == 'user' %}"
_IF_SYSTEM = "{% if message.role == 'system' %}"
_ELSE = "{% else %}"
_FI = "{% endif %}"
_ASKED = "{% if add_generation_prompt %}"


def _framed(before: str, after: str, generation: str) -> str:
    """Every turn alike; `before` and `after` may name message.role."""
    turn = before + "{{ message.content }}" + after
    return f"{_EACH}{turn}{_END}{_ASKED}{generation}{_FI}"


# The system text goes into the user's first turn, between the marks that `%s` names.
_IN_FIRST_TURN = (
    "{% set first = namespace(text='') %}" + _EACH + _IF_SYSTEM
    + "{% set first.text = %s %}"
    + "{% elif message.role == 'user' %}"
)  # fmt: skip
_FORGET = "{% set first.text = '' %}"
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions."
)


# Prompt and answer with one space between, whoever wrote it: a word's own token begins with it.
_PLAIN = (
    "{% set end = namespace(text='') %}"
    + _EACH
    + "{% if message.role == 'assistant' %}"
    + "{{ ' ' if end.text and not end.text.endswith('\n')"
    + " and not message.content.startswith((' ', '\n')) }}"
    + "{{ message.content }}{{ eos_token }}{% set end.text = '' %}"
    + _ELSE
    + "{{ '\n' if end.text }}{% set end.text = message.content.rstrip(' ') %}{{ end.text }}"
    + f"{_FI}{_END}"
)


def _opened_by(default: str, close: str) -> str:
    """The system text, or a sentence of the format's own, and what closes it."""
    own = "{% if messages[0].role != 'system' %}" + default + close + _FI
    return own + _EACH + _IF_SYSTEM + "{{ message.content }}" + close


def _in_inst(user: str, answer: str, system: str) -> str:
    """Llama 2's and Mistral's turns: instructions in brackets, answers bare."""
    begun = _IN_FIRST_TURN.replace("%s", system)
    return "{{ bos_token }}" + begun + user + _FORGET + _ELSE + answer + _FI + _END


BUILT_IN: Mapping[str, str] = {
    "default": DEFAULT_TEMPLATE,
    "alpaca": _opened_by(_ALPACA, "\n\n")
    + "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n### Response:"
    + _ELSE
    + "{{ message.content }}{{ eos_token }}\n\n"
    + _FI
    + _END,
    "chatml": _framed(
        "<|im_start|>{{ message.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n"
    ),
    "gemma": "{{ bos_token }}"
    + _IN_FIRST_TURN.replace("%s", "message.content ~ '\n\n'")
    + "<start_of_turn>user\n{{ first.text }}{{ message.content | trim }}<end_of_turn>\n"
    + _FORGET
    + _ELSE
    + "<start_of_turn>model\n{{ message.content | trim }}<end_of_turn>\n"
    + f"{_FI}{_END}{_ASKED}<start_of_turn>model\n{_FI}",
    "granite": _framed(
        "<|start_of_role|>{{ message.role }}<|end_of_role|>",
        "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "llama2": _in_inst(
        "{% if not loop.first and first.text == '' %}{{ bos_token }}{% endif %}"
        "[INST] {{ first.text }}{{ message.content | trim }} [/INST]",
        " {{ message.content | trim }} {{ eos_token }}",
        "'<<SYS>>\n' ~ message.content ~ '\n<</SYS>>\n\n'",
    ),
    "llama3": "{{ bos_token }}"
    + _framed(
        "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ).replace("message.content", "message.content | trim"),
    "minicpm": _EACH
    + _IF_USER
    + "<用户>{{ message.content | trim }}<AI>"
    + _ELSE
    + "{{ message.content | trim }}"
    + _FI
    + _END,
    "mistral": _in_inst(
        "[INST] {{ first.text }}{{ message.content }} [/INST]",
        " {{ message.content }}{{ eos_token }}",
        "message.content ~ '\n\n'",
    ),
    "mistral-nemo": _in_inst(
        "[INST]{{ first.text }}{{ message.content }}[/INST]",
        "{{ message.content }}{{ eos_token }}",
        "message.content ~ '\n\n'",
    ),
    "phi3": _framed("<|{{ message.role }}|>\n", "<|end|>\n", "<|assistant|>\n"),
    "phi4-mini": _framed("<|{{ message.role }}|>", "<|end|>", "<|assistant|>"),
    "plain": _PLAIN,
    "tulu": "{{ bos_token }}"
    + _EACH
    + "<|{{ message.role }}|>\n{{ message.content }}"
    + "{{ eos_token if message.role == 'assistant' }}{{ '\n' }}"
    + f"{_END}{_ASKED}<|assistant|>\n{_FI}",
    "vicuna": _opened_by(_VICUNA, " ")
    + "{% elif message.role == 'user' %}USER: {{ message.content }} "
    + _ELSE
    + "ASSISTANT: {{ message.content }}{{ eos_token }}"
    + f"{_FI}{_END}{_ASKED}ASSISTANT:{_FI}",
    "zephyr": _framed("<|{{ message.role }}|>\n", "{{ eos_token }}\n", "<|assistant|>\n"),
}
"""Template sources by name."""

_TALK = (
    Message("system", "You are brief."),
    Message("user", "Good morning!"),
    Message("assistant", "Good morning."),
    Message("user", "How are you?"),
)


def rendered_sample(template: ChatTemplate) -> str:
    """Returns a short conversation in `template`, without a system text where it takes none.

    Raises RequestError where it refuses both.
    """
    try:
        return template.render(_TALK)
    except RequestError:
        return template.render(_TALK[1:])
