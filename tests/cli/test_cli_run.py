"""`miudo run` on a scripted engine: arguments, pipes, chat, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.cli.prompting import choose
from miudo.config import ModelConfig
from miudo.errors import UsageError
from miudo.protocol import SamplingSettings, SeqWork, StepOut
from miudo.tensors import DType
from miudo.text.tokenizer import train_bpe

END = 0
TEMPLATE = (
    "{% for m in messages %}({{ m.role }}){{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}(say){% endif %}"
)


TOKENIZER = train_bpe(["olá, two lines"], vocab_size=261)  # a byte is an id


class Parrot:
    """An engine that says `reply` after any prompt, then ends."""

    config = ModelConfig.uniform(
        vocab_size=261,
        d_model=8,
        n_layers=1,
        n_heads=1,
        d_ff=8,
        max_positions=256,
        bos_id=END,
        eos_ids=(END,),
    )

    def __init__(self, reply: str) -> None:
        self.script = [*TOKENIZER.encode(reply), END]
        self.work: list[SeqWork] = []

    def open(self) -> int:
        return 1

    def close(self, conversation: int) -> None:
        pass

    def truncate(self, conversation: int, length: int) -> None:
        pass

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        self.work.extend(batch)
        return [StepOut(1, (self.script[min(len(self.work), len(self.script)) - 1],))]


class Runner:
    """Runs `miudo run` with a parrot; keeps what was loaded, and with what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.reply: str = "olá!"
        self.template: str | None = None
        self.loaded: list[tuple[Path, dict[str, Any]]] = []
        self.parrot = Parrot("")
        self.model = folder / "m.gguf"
        self.model.touch()
        inside = folder / "inside.gguf"
        monkeypatch.setattr("miudo.evaluate.loading.load_model", self._load)
        monkeypatch.setattr("miudo.hub.resolve.embedded_path", lambda: inside)

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        return self.verb("run", *arguments, stdin=stdin)

    def verb(self, name: str, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, [name, *arguments], input=stdin)

    @property
    def prompt(self) -> Sequence[int]:
        return self.parrot.work[0].ids

    def _load(self, path: Path, **options: Any) -> Any:
        self.loaded.append((path, options))
        self.parrot = Parrot(self.reply)
        model = SimpleNamespace(config=Parrot.config, chat_template=self.template, record=None)
        adapter = options.get("adapter") and "adapter"
        return SimpleNamespace(
            path=path, model=model, engine=self.parrot, tokenizer=TOKENIZER, adapter=adapter
        )


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    return Runner(monkeypatch, tmp_path)


def test_one_argument_with_white_space_is_a_prompt_for_the_embedded_model(run: Runner) -> None:
    result = run("Olá, tudo bem?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "olá!\n", "")
    assert run.loaded[0][0].name == "inside.gguf"
    assert run.prompt == [END, *_ids("Olá, tudo bem?")]


def test_a_word_with_a_mark_of_speech_is_a_prompt(run: Runner) -> None:
    run("Olá!")
    assert run.prompt == [END, *_ids("Olá!")]


def test_two_arguments_are_model_and_prompt(run: Runner) -> None:
    how = {
        "threads": 2, "activations": "int8", "adapter": None, "context": 99, "dtype": DType.Q4_K,
    }  # fmt: skip
    flags = ("--threads", "2", "--context", "99", "--dtype", "q4_k")
    assert run(str(run.model), "once", *flags).stdout == "olá!\n"
    assert run.loaded == [(run.model, how)]
    assert run.prompt == [END, *_ids("once")]


@pytest.mark.parametrize("arguments", [(), ("-",), ("--prompt", "-")])
def test_a_pipe_is_the_prompt_without_its_last_line_end(
    run: Runner, arguments: tuple[str, ...]
) -> None:
    assert run(*arguments, stdin="two\nlines\n").stdout == "olá!\n"
    assert run.prompt == [END, *_ids("two\nlines")]


def test_complete_keeps_every_character_of_a_pipe_and_takes_no_template(run: Runner) -> None:
    run.template = TEMPLATE
    assert run.verb("complete", str(run.model), "-", stdin="line\n").exit_code == 0
    assert run.prompt == [END, *_ids("line\n")]
    assert run.verb("complete", str(run.model), "-", stdin="").exit_code == 0
    assert run.prompt == [END]


def test_a_pipe_comes_before_a_prompt(run: Runner) -> None:
    assert run(str(run.model), "Say it short.", stdin="a long text\n").exit_code == 0
    assert run.prompt == [END, *_ids("a long text\n\nSay it short.")]


def test_a_pipe_that_is_no_text_is_refused(run: Runner) -> None:
    result = CliRunner().invoke(cli, ["run", str(run.model), "-"], input=b"a\xff")
    assert result.exit_code == 1
    assert "standard input: is not UTF-8 (invalid start byte at byte 1)" in result.stderr


def test_a_system_text_comes_first_and_needs_a_template(run: Runner) -> None:
    result = run(str(run.model), "hi", "--system", "be brief")
    assert (result.exit_code, "--system needs a chat template" in result.stderr) == (2, True)
    run.template = TEMPLATE
    assert run(str(run.model), "hi", "--system", "be brief").exit_code == 0
    expected = [END, *_ids("(system)be brief"), END, *_ids("(user)hi"), END, *_ids("(say)")]
    assert run.prompt == expected


def test_chat_refuses_a_model_without_a_template(run: Runner) -> None:
    result = run.verb("chat", str(run.model), "hi")
    assert result.exit_code == 2
    assert "has no chat template, so it cannot be talked to" in result.stderr
    assert "miudo complete" in result.stderr
    assert run.verb("chat", str(run.model), "hi", "--chat-template", "default").exit_code == 0
    run.template = TEMPLATE
    assert run.verb("chat", str(run.model), "hi").stdout == "olá!\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "none: a text is continued as it stands"),
        (["--chat-template", "default"], "miudo's default"),
    ],
)
def test_json_names_the_origin_of_the_template(run: Runner, flags: list[str], told: str) -> None:
    assert json.loads(run("--json", "a b", *flags).stdout)["chat_template"] == told
    run.template = TEMPLATE
    own = json.loads(run("--json", "a b").stdout)["chat_template"]
    assert own == "the model's own"


def test_timings_are_told_where_they_are_wanted(run: Runner) -> None:
    assert run("a b").stderr == ""
    for flag in ("--timings", "--verbose"):
        assert "4 prompt tokens, first token after" in run("a b", flag).stderr


def test_a_prompt_beyond_the_context_is_refused_with_both_counts(run: Runner) -> None:
    result = run("-", stdin="x" * 300)
    assert result.exit_code == 1
    assert "the prompt has 301 tokens, the model 256 positions" in result.stderr


def test_a_model_with_a_template_chats(run: Runner) -> None:
    run.template = TEMPLATE
    assert run(str(run.model), "hi").exit_code == 0
    assert run.prompt == [END, *_ids("(user)hi"), END, *_ids("(say)")]


def test_energy_is_of_the_tokens_after_the_first(run: Runner) -> None:
    energy = json.loads(run("--json", "--watts", "3", "a b").stdout)["energy"]
    made = len(_ids(run.reply)) + 1  # the end is a token too
    assert energy["new_token_j"] == pytest.approx(energy["rest_j"] / (made - 1))
    assert not energy["estimate"] or "x 3 W assumed" in energy["method"]
    one = json.loads(run("--json", "--max-tokens", "1", "a b").stdout)["energy"]
    assert one["new_token_j"] is None


def test_json_is_one_object_with_text_reason_usage_and_timings(run: Runner) -> None:
    result = run("--json", "a b")
    value = json.loads(result.stdout)
    assert value["text"] == "olá!"
    assert value["finish_reason"] == "stop"
    counts = {"prompt_tokens": 4, "completion_tokens": 6}
    assert value["usage"] == counts | {"drafted_tokens": 0, "accepted_tokens": 0}
    assert json.loads(run("--json", "a b", "--no-speculate").stdout)["usage"] == counts
    assert set(value["timings"]) == {"first_token_s", "prompt_tokens_per_s", "new_tokens_per_s"}
    assert set(value["energy"]) == {"first_token_j", "rest_j", "new_token_j", "method", "estimate"}


def test_a_draft_model_is_loaded_and_must_have_the_tokenizer(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(str(run.model), "a b", "--draft-model", str(run.model)).stdout == "olá!\n"
    assert [path for path, _ in run.loaded] == [run.model, run.model]
    result = run("a b", "--draft-model", str(run.model), "--no-speculate")
    assert (result.exit_code, "takes no --draft-model" in result.stderr) == (2, True)
    other = iter(["one", "other"])
    monkeypatch.setattr(type(TOKENIZER), "fingerprint", property(lambda _: next(other)))
    result = run(str(run.model), "a b", "--draft-model", str(run.model))
    assert (result.exit_code, "another tokenizer" in result.stderr) == (1, True)


def test_sampling_options_reach_the_engine(run: Runner) -> None:
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert run("a b", "--max-tokens", "2", "--stop", "zz", *flags).stdout == "ol\n"
    assert run.parrot.work[0].sampling == SamplingSettings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a b", "--temperature", "-1"], 2, "temperature is -1"),
        (["a b", "--max-tokens", "0"], 2, "--max-tokens"),
        (["a", "b", "c"], 2, "Put the prompt in quotes"),
        (["./no/such.gguf", "hi"], 4, "no such file"),
        (["nameless", "hi"], 4, "no model is called 'nameless'"),
        (["nameless.gguf", "hi"], 4, "there is no file 'nameless.gguf' here"),
        (["hf://org/repo", "hi"], 4, "Fetch it: miudo pull hf://org/repo"),
        (["-"], 2, "the prompt is empty"),
    ],
)
def test_what_cannot_be_run_is_told(
    run: Runner, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_choosing_between_model_and_prompt(tmp_path: Path) -> None:
    spaced = tmp_path / "a model.gguf"
    spaced.touch()
    assert choose([], None) == (None, None)
    assert choose([], "hi") == (None, "hi")
    assert choose(["m"], None) == ("m", None)
    assert choose(["m"], "hi") == ("m", "hi")
    assert choose(["a b"], None) == (None, "a b")
    assert choose(["a b"], "hi") == ("a b", "hi")
    assert choose([str(spaced)], None) == (str(spaced), None)
    assert choose(["m", "hi"], None) == ("m", "hi")
    with pytest.raises(UsageError):
        choose(["m", "hi"], "there")


def test_a_schema_is_kept_to(run: Runner, tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "array", "items": {"type": "integer"}, "maxItems": 3}')
    run.reply = "[]"
    assert run("-", "--schema", str(schema), stdin="Numbers").stdout == "[]\n"
    mask = run.parrot.work[0].mask
    assert mask is not None
    assert [i for i in range(5, 261) if mask[i]] == _ids("[")  # nothing else begins an array
    cut = run("-", "--schema", str(schema), "--max-tokens", "1", stdin="Numbers")
    assert (cut.stdout, "not of --schema's form" in cut.stderr) == ("[\n", True)
    free = run("-", "--schema", "json", stdin="Anything")
    assert free.exit_code == 0
    assert "not of --schema's form" not in free.stderr
    mask = run.parrot.work[0].mask
    assert mask is not None
    assert mask[_ids('"')[0]]


@pytest.mark.parametrize(
    ("text", "extra", "said"),
    [
        ('{"not": {}}', (), "s.json.not: cannot be enforced"),
        ("[]", (), "not a JSON object"),
        ("{", (), "not valid JSON"),
        ("{}", ("--stop", "x"), "--stop"),
    ],
)
def test_schemas_that_cannot_be_are_refused(
    run: Runner, tmp_path: Path, text: str, extra: tuple[str, ...], said: str
) -> None:
    schema = tmp_path / "s.json"
    schema.write_text(text)
    result = run("-", "--schema", str(schema), *extra, stdin="x")
    assert result.exit_code != 0
    assert said in result.stderr + str(result.exception)
