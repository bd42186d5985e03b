"""The variables of the environment that miudo heeds.

For: `miudo config show` and `miudo doctor`.
Not for: reading them: whoever heeds one reads it.
Read next: `miudo.cli.configuring`.
"""

from __future__ import annotations

__all__ = ["SECRET", "VARIABLES"]

VARIABLES = {
    "MIUDO_HOME": "imported models and notes of miudo's own",
    "MIUDO_CONFIG": "your own settings, in place of ~/.config/miudo/config.toml; empty: none",
    "MIUDO_HOST": "the address that `miudo serve` listens at",
    "MIUDO_API_KEY": "a key that `miudo serve` asks for",
    "MIUDO_NO_HISTORY": "1: keep nothing of what is typed in a conversation",
    "MIUDO_ISA": "the kernels to use, such as portable, avx2, avx512, neon",
    "MIUDO_DEBUG": "1: show where in the program an error arose",
    "HF_HOME": "the Hugging Face folder; its cache is in hub/ there",
    "HF_HUB_CACHE": "the cache that models are fetched into",
    "HF_ENDPOINT": "another hub, a mirror",
    "HF_TOKEN": "your token at the hub",
    "HF_HUB_OFFLINE": "1: no network",
    "TRANSFORMERS_OFFLINE": "1: no network",
    "NO_COLOR": "1: no colours",
}
"""Name to what it says."""

SECRET = ("MIUDO_API_KEY", "HF_TOKEN")
"""Whose values are never printed."""
