"""Ids equal those of the programs that define them; renderings equal those of `transformers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miudo.errors import RequestError
from miudo.text.chat import ChatTemplate
from miudo.text.templates import BUILT_IN
from miudo.text.word_rules import WORD_RULES

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.parity

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tokenizer_identity.py"
# llama.cpp brings no text into composed form, as these vocabularies' makers do.
COMPOSED = {name for name, rule in WORD_RULES.items() if rule.composes}
# It puts a space after every user-defined piece, where SentencePiece has one at the start alone.
THEIR_OWN_WAY = {"SentencePiece, user-defined"}


def test_ids_of_every_kind_of_vocabulary(shared: Path) -> None:
    command = [sys.executable, str(BENCHMARK), str(shared / "data"), "--lines", "600", "--json"]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert len(rows) >= 16
    for row in rows:
        if row["llama_cpp"] is not None and row["kind"] not in COMPOSED | THEIR_OWN_WAY:
            assert row["llama_cpp"] == 0, row


# What the templates of the zoo's families are made of, in as few lines as show it.
CONSTRUCTS = {
    "date and tools, as Llama 3": """\
{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + system }}
{%- if tools is not none %}{{ tools|tojson(indent=4) }}{% endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "thoughts and a namespace, as Qwen 3": """\
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n') %}
        {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.last or loop.index0 > ns.last %}{{- '(' ~ thought ~ ')' }}{%- endif %}
    {%- endif %}
    {{- message.role + ': ' + content + '\\n' }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}no{% endif %}
""",
    "turns that must change, as Mistral and Gemma": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<' + role + '>\\n' + message['content'] | trim + '<end>\\n' }}
{% endfor %}
""",
    "macros, loops and JSON, as Granite and SmolLM 3": """\
{%- macro line(name, value) -%}
{{ name }}={{ value|tojson }}
{%- endmacro -%}
{%- set mode = "/no_think" if "/no_think" in messages[0].content else "/think" %}
{%- set clean = messages[0].content.replace("/no_think", "").replace("/think", "").rstrip() %}
{{ line('first', clean) }} {{ mode }}
{%- for key, value in {'a': 1, 'b': [1, 2]}.items() %} {{ line(key, value) }}{% endfor %}
{%- for i in range(9) %}
{%- if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% generation %}{{ messages | map(attribute='role') | join(',') }}{% endgeneration %}
{%- set words = messages | selectattr('role', 'equalto', 'user') | list %}{{ words | length }}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
""",
}  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TALKS: dict[str, list[tuple[str, str]]] = {
    "one turn": [("user", " Hi /no_think \n")],
    "a system text": [("system", " Be kind. "), ("user", "Hi")],
    "turns": [("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHo\n"), ("user", "<tool>")],
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("source", (BUILT_IN | CONSTRUCTS).values(), ids=BUILT_IN | CONSTRUCTS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_template_writes_what_transformers_writes(
    source: str, talk: list[tuple[str, str]], asked: bool
) -> None:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages: list[Any] = [{"role": role, "content": content} for role, content in talk]
    template = ChatTemplate(source, variables=NAMES)
    try:
        (theirs,), _ = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            add_generation_prompt=asked,
            **NAMES,
        )
    except TemplateError:
        with pytest.raises(RequestError):
            template.render(messages, add_generation_prompt=asked)
        return
    assert template.render(messages, add_generation_prompt=asked) == theirs
