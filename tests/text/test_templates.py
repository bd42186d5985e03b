"""Templates by name: each writes what its makers trained on."""

from __future__ import annotations

import pytest

from miudo.errors import RequestError
from miudo.protocol import Message
from miudo.text.chat import ChatTemplate
from miudo.text.templates import BUILT_IN, rendered_sample

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    Message("system", "S"),
    Message("user", "U"),
    Message("assistant", "A"),
    Message("user", "V"),
]
WRITTEN = {
    "default": "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|user|>V<|end|>"
    "<|assistant|>",
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:A</s>\n\n"
    "### Instruction:\nV\n\n### Response:",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    "granite": "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>U<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>V<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "minicpm": "S<用户>U<AI>A<用户>V<AI>",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
    "mistral-nemo": "<s>[INST]S\n\nU[/INST]A</s>[INST]V[/INST]",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n"
    "<|user|>\nV<|end|>\n<|assistant|>\n",
    "phi4-mini": "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|user|>V<|end|>"
    "<|assistant|>",
    "plain": "S\nU A</s>V",
    "tulu": "<s><|system|>\nS\n<|user|>\nU\n<|assistant|>\nA</s>\n<|user|>\nV\n<|assistant|>\n",
    "vicuna": "S USER: U ASSISTANT: A</s>USER: V ASSISTANT:",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n"
    "<|assistant|>\n",
}


def test_every_template_is_here() -> None:
    assert WRITTEN.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_conversation_is_written_as_the_family_knows_it(name: str) -> None:
    assert ChatTemplate(BUILT_IN[name], variables=NAMES).render(TALK) == WRITTEN[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_prompt_is_a_beginning_of_the_whole(name: str) -> None:
    template = ChatTemplate(BUILT_IN[name], variables=NAMES)
    whole = template.render(TALK, add_generation_prompt=False)
    assert whole.startswith(template.render(TALK[:2]).rstrip())


@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
def test_without_a_system_text_the_format_has_its_own(name: str) -> None:
    template = ChatTemplate(BUILT_IN[name], variables=NAMES)
    assert template.render(TALK[1:2]).split("U")[0] not in ("", "USER: ")
    assert len(template.render(TALK[1:2])) > 100


def test_a_sample_goes_without_a_system_text_where_there_can_be_none() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}ok"
    assert rendered_sample(ChatTemplate(refusing)) == "ok"
    with pytest.raises(RequestError, match="never"):
        rendered_sample(ChatTemplate("{{ raise_exception('never') }}"))
