"""Jinja templates from untrusted files, run with nothing but text operations and a budget.

For: `miudo.text.chat`. A template can neither reach Python objects, files or modules, nor run or
grow without end: steps, processor time and every string and list are counted.
Not for: templates in general; what chat templates do not use (inclusion, inheritance) is refused.
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import CodeType
from typing import Any, NoReturn, cast

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from miudo.errors import RequestError, TokenizerError
from miudo.text.budget import Budget, refuse

__all__ = ["BoundedEnvironment", "bind_template", "compile_template"]

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse",
    "select", "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
_STR_METHODS = frozenset(
    ("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit",
     "islower", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
     "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split",
     "splitlines", "startswith", "strip", "title", "upper")
)  # fmt: skip
_DICT_METHODS = frozenset(("get", "items", "keys", "values"))
_LIST_METHODS = frozenset(("count", "index"))
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
_LARGEST_INT = 1 << 62
# ValueError: a number of more digits than Python reads.
_UNCOMPILED = (
    TemplateError, RecursionError, SyntaxError, MemoryError, ValueError, RequestError,
)  # fmt: skip
_DATE_CHARS = 64


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with an allow-list of filters, methods and globals, and counted growth.

    Loops, `~` and literals of lists are routed through hidden filters that count; a name with a
    space is one that no template can write.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._printable,
        )
        self.budget = budget
        self.filters = {name: self.filters[name] for name in _FILTERS} | {
            "join": self._join,
            "replace": self._replace,
            "safe": str,
            "string": self._printable_str,
            "tojson": self._tojson,
            "counted loop": self._counted,
            "joined text": self._joined,
            "weighed value": self._weighed,
        }
        self.globals = {
            "range": self._range,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allows text methods that cannot grow without being counted, and plain lookups."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, Mapping):
            return attr in _DICT_METHODS
        if isinstance(obj, list | tuple):
            return attr in _LIST_METHODS
        if isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """Refuses `format`: a width in a format string is an allocation."""
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Counts every call; the text methods that can grow are checked before they run."""
        self.budget.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return self._join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes `+ * ** %` where the result stays small; `%` never formats text."""
        self.budget.step()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator in ("**", "%") and not numbers:
            refuse(f"the chat template uses {operator} on something that is no number")
        if operator == "**" and (abs(right) > 64 or abs(left) > _LARGEST_INT):
            refuse("the chat template computes too large a power")
        if operator == "*" and not numbers:
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(times, int) or not isinstance(sequence, str | list | tuple):
                refuse("the chat template multiplies things that are no numbers")
            self.budget.fits(len(sequence) * max(times, 0))
        if operator == "+" and not numbers:
            self.budget.fits(sum(len(v) for v in (left, right) if hasattr(v, "__len__")))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > _LARGEST_INT:
            refuse("the chat template computes too large a number")
        return self._weighed(result) if isinstance(result, list | tuple) else result

    def _printable(self, value: Any) -> Any:
        """A list of lists of itself is small in memory and endless in print."""
        self.budget.write(len(value) if isinstance(value, str) else 1)
        if value is None or isinstance(value, str | int | float | bool | Undefined):
            return value
        return refuse(f"the chat template prints a {type(value).__name__}")

    def _printable_str(self, value: Any) -> str:
        return str(self._printable(value))

    def _counted(self, values: Any) -> Iterator[Any]:
        if not isinstance(values, Iterable):
            refuse(f"the chat template loops over a {type(values).__name__}")
        for value in values:
            self.budget.step()
            yield value

    def _joined(self, parts: list[Any]) -> str:
        return self._join(parts)

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            values = [self.getitem(value, attribute) for value in values]
        texts = [self._printable_str(value) for value in self._counted(values)]
        self.budget.fits(sum(map(len, texts)) + len(d) * len(texts))
        return d.join(texts)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        source = self._printable_str(text)
        self.budget.fits(len(source) + (source.count(old) + 1) * len(new))
        return source.replace(old, new, -1 if count is None else count)

    def _range(self, *args: int) -> range:
        found = range(*args)
        self.budget.fits(len(found))
        return found

    def _weighed(self, value: Any) -> Any:
        """Refuses nested values whose printed form would be beyond the budget."""
        self.budget.fits(_weight(value, self.budget.chars))
        return value

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and not 0 <= indent <= 8:
            refuse("the chat template indents JSON by more than 8")
        if separators is not None and not all(len(self._printable_str(s)) <= 8 for s in separators):
            refuse("the chat template separates JSON by more than 8 characters")
        self._weighed(value)
        try:
            return json.dumps(
                value,
                ensure_ascii=ensure_ascii,
                indent=indent,
                separators=separators,
                sort_keys=sort_keys,
            )
        except (TypeError, ValueError) as error:
            return refuse(f"the chat template writes something as JSON that is none ({error})")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way to declare tags

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, budget: Budget) -> CodeType:
    """Returns the code of a template; TokenizerError for what cannot or must not be compiled.

    `budget` bounds what Jinja computes of constants beforehand.
    """
    environment = BoundedEnvironment(budget)
    try:
        tree = environment.parse(source)
        for refused in tree.find_all(_REFUSED):
            raise TokenizerError(
                f"uses {type(refused).__name__.lower()}",
                where=f"chat template, line {refused.lineno}",
                remedy="A chat template stands alone",
            )
        _route(tree)
        return environment.compile(tree)
    except _UNCOMPILED as error:
        raise TokenizerError(
            f"cannot be compiled ({str(error)[:200]})", where="chat template"
        ) from error


def bind_template(code: CodeType, budget: Budget) -> Template:
    """Returns compiled code as a template whose renderings draw on `budget`."""
    environment = BoundedEnvironment(budget)
    return Template.from_code(environment, code, dict(environment.globals))


def _route(tree: nodes.Template) -> None:
    """Sends loops, `~` and literals through the counting filters, innermost last."""

    def through(name: str, node: nodes.Node) -> nodes.Filter:
        return nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)

    def replaced(node: nodes.Node) -> nodes.Node:
        for field, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, field, [replaced(v) if _is_node(v) else v for v in value])
            elif _is_node(value):
                setattr(node, field, replaced(value))
        if isinstance(node, nodes.For):
            if node.recursive:
                raise TokenizerError("uses a recursive loop", where="chat template")
            node.iter = through("counted loop", node.iter)
        if isinstance(node, nodes.Concat):
            return through("joined text", nodes.List(node.nodes, lineno=node.lineno))
        if isinstance(node, nodes.List | nodes.Dict):
            return through("weighed value", node)
        if isinstance(node, nodes.Tuple) and node.ctx == "load":
            return through("weighed value", node)
        return node

    replaced(tree)
    tree.set_environment(tree.environment)  # type: ignore[arg-type]


def _is_node(value: Any) -> bool:
    return isinstance(value, nodes.Node)


def _weight(value: Any, limit: int) -> int:
    """Returns about how many characters `value` prints as, or more than `limit`."""
    total, waiting = 0, [value]
    while waiting and total <= limit:
        item = waiting.pop()
        total += len(item) if isinstance(item, str) else 8
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
    return total


def _raise_exception(message: object = "") -> NoReturn:
    raise RequestError(f"the chat template refuses these messages: {str(message)[:200]}")


def _strftime_now(form: object) -> str:
    """The text of this moment: Llama 3's templates tell the model the date."""
    if not isinstance(form, str) or len(form) > _DATE_CHARS:
        refuse("the chat template writes the date in no form that dates have")
    return datetime.now().strftime(form)
