"""Architectures that are no model of this zoo, and why.

For: saying the reason where a name alone decides; keys that decide are refused by each family.
Not for: names nobody has looked at, which `by_hf_config` calls unknown.
Read next: `miudo.families.family.refuse`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFUSED"]

_SHARED = "its layers share weights, which miudo's tensor table does not know"
_EXPERTS = "it is a mixture of experts"
_STATE = "its layers keep a state that is no cache of keys and values"
_IMAGES = "it reads images: its text model is nested in a wrapper"
_MUP = "its multipliers (muP) are those of no other class here"

REFUSED: Mapping[str, str] = {
    # Not MobileLLaMA, whatever their names say.
    "MobiLlamaForCausalLM": _SHARED,
    "MobileLLMForCausalLM": _SHARED,
    "BTLMLMHeadModel": _MUP,
    "btlm": _MUP,
    "Gemma3ForConditionalGeneration": _IMAGES,
    "gemma3": _IMAGES,
    "Gemma3nForConditionalGeneration": _IMAGES,
    "MiniCPMV": _IMAGES,
    "MiniCPMMoEForCausalLM": _EXPERTS,
    "MixtralForCausalLM": _EXPERTS,
    "Qwen2MoeForCausalLM": _EXPERTS,
    "Qwen3MoeForCausalLM": _EXPERTS,
    "OlmoeForCausalLM": _EXPERTS,
    "PhimoeForCausalLM": _EXPERTS,
    "GraniteMoeForCausalLM": _EXPERTS,
    "GraniteMoeHybridForCausalLM": _STATE,
    "Lfm2ForCausalLM": _STATE,
    "MambaForCausalLM": _STATE,
    "Mamba2ForCausalLM": _STATE,
}
"""Names in `architectures` or `model_type` to reasons."""
