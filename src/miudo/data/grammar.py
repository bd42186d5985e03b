"""Text from word lists and rules: a small generative grammar with names that stay bound.

For: the synthetic sample corpus (`miudo.data.sample`), in languages with and without gender.
Not for: parsing, or text that must say something true.
Read next: `src/miudo/data/sample_words`, the lists and rules themselves.

    = animal f          a list of (feminine) words, separated by commas, over any lines
    > scene             a rule: each line below is one way to write it
    >> quote            a rule whose result is a sentence
    [a|b]               one of the two, which may hold slots
    {animal}            a word of a list or an expansion of a rule
    {adj+animal.a}      a noun with an adjective, and a form of it (see `_FORMS`)
    {hero=animal.a}     the same, bound to a name for the rest of the document
    {hero.the}          the bound noun again, without its adjective
    {mood~hero}         an adjective that agrees with a bound noun
    {hero:he|she|it}    a choice by the bound noun's gender: masculine, feminine, neuter
    {#2-90}             a number from 2 to 90; {n=num} binds one of three digits
    {cast}              one of those bound as hero, friend, rival or pest; else the rule `cast`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from miudo.errors import ConfigError

__all__ = ["Grammar", "Noun", "Scope"]

_SLOT = re.compile(r"\{([^{}]+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_START = re.compile(r"((?:^|\n)(?:[SUA]: )?\"?|[.!?][\"”]? |: \"|, \")([^\W\d_])")
_SAID = re.compile(r"([.!?])\" (?=[^\W\d_])")
_CAST = ("hero", "friend", "rival", "pest")
_LAST = "last of the cast"
_PROPER = ("name", "country", "brand", "nome", "terra", "marca")
_DEFINITE = {"en": "the", "pt": "o"}
# Portuguese melts a preposition and the article after it into one word: "de" + "o" is "do".
_CONTRACTIONS = {
    "de o": "do",
    "de a": "da",
    "em o": "no",
    "em a": "na",
    "por o": "pelo",
    "por a": "pela",
    "a o": "ao",
    "a a": "à",
}
_CONTRACTED = re.compile(r"(?<!\S)(?:de|em|por|a) [oa](?= )")
_KEPT = "\x00"  # between a quotation and its verb: no sentence starts there


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun phrase: whole (with its adjective), the noun alone, gender "m", "f" or "n"."""

    text: str
    noun: str
    gender: str
    proper: bool

    def bare(self) -> Noun:
        """Returns the noun without its adjective."""
        return Noun(self.noun, self.noun, self.gender, self.proper)


Scope = dict[str, Noun]


class Grammar:
    """Lists and rules of one language. Expansion is a pure function of the random source."""

    def __init__(self, language: str, sources: Iterable[str]) -> None:
        self._forms = _FORMS[language]
        self._language = language
        self._lists: dict[str, list[tuple[str, str]]] = {}
        self._rules: dict[str, list[str]] = {}
        self._sentences: set[str] = set()
        for source in sources:
            self._read(source)

    def document(self, rule: str, random: Random, scope: Scope | None = None) -> str:
        """Returns one expansion of `rule`, written as text: capitals, quotation marks."""
        text = self.expand(f"{{{rule}}}", random, {} if scope is None else scope)
        if self._language == "pt":
            text = _CONTRACTED.sub(lambda m: _CONTRACTIONS[m[0]], text)
        text = _START.sub(lambda m: m[1] + m[2].upper(), text)
        return re.sub(r" +", " ", text.replace(_KEPT, "")).replace(" \n", "\n").strip()

    def pick(self, name: str, random: Random) -> Noun:
        """Returns a word of the list `name`."""
        words = self._lists[name]
        text, gender = words[int(random.random() * len(words))]
        if gender == "?":
            gender = "mf"[int(random.random() * 2)]
        return Noun(text, text, gender, name.startswith(_PROPER))

    def expand(self, template: str, random: Random, scope: Scope) -> str:
        """Returns `template` with its choices made and its slots filled."""
        while "[" in template:  # from the inside out
            template = _CHOICE.sub(lambda m: _one(m[1].split("|"), random), template)
        return _SLOT.sub(lambda m: self._slot(m[1], random, scope), template)

    def _slot(self, slot: str, random: Random, scope: Scope) -> str:
        name, by_gender, choices = slot.partition(":")
        if by_gender:
            options = choices.split("|")
            return options[min("mfn".index(scope[name].gender), len(options) - 1)]
        if slot[0] == "#":
            low, high = map(int, slot[1:].split("-"))
            return str(low + int(random.random() * (high + 1 - low)))
        if "~" in slot:
            adjective, _, bound = slot.partition("~")
            word = self.pick(adjective, random).text
            return _feminine(word) if scope[bound].gender == "f" else word
        bound, binds, rest = slot.rpartition("=")
        symbol, _, form = rest.partition(".")
        if symbol == "cast" and (known := _others(scope)):
            symbol = known[int(random.random() * len(known))]
            form = form or _DEFINITE[self._language]
        if symbol in self._rules:
            return self._expand_rule(symbol, random, scope)
        noun = scope[symbol].bare() if symbol in scope else self._phrase(symbol, random)
        if binds:
            scope[bound] = noun
        if (named := bound or symbol) in _CAST:
            scope[_LAST] = scope[named].bare()
        return self._forms[form](noun) if form else noun.text

    def _expand_rule(self, name: str, random: Random, scope: Scope) -> str:
        text = self.expand(_one(self._rules[name], random), random, scope)
        if name not in self._sentences:
            return text
        text = _SAID.sub(lambda m: ("," if m[1] == "." else m[1]) + f'"{_KEPT} ', text)
        return _START.sub(lambda m: m[1] + m[2].upper(), text, count=1)

    def _phrase(self, symbols: str, random: Random) -> Noun:
        """Returns a noun, with the adjective that stands before `+` in the source."""
        adjective, joined, symbol = symbols.rpartition("+")
        if symbol == "num":
            digits = str(100 + int(random.random() * 900))
            return Noun(digits, digits, "n", proper=True)
        if symbol not in self._lists:
            raise ConfigError(f"no list, rule or name {symbol!r}", where=self._language)
        noun = self.pick(symbol, random)
        if not joined:
            return noun
        word = self.pick(adjective, random).text
        if self._language == "pt":
            text = f"{noun.text} {_feminine(word) if noun.gender == 'f' else word}"
        else:
            text = f"{word} {noun.text}"
        return Noun(text, noun.noun, noun.gender, noun.proper)

    def _read(self, source: str) -> None:
        current: Callable[[str], None] | None = None
        for line in source.splitlines():
            mark, _, rest = line.partition(" ")
            if not line.strip() or mark == "#":
                continue
            if mark == "=":
                name, _, gender = rest.partition(" ")
                current = self._adder(self._lists.setdefault(name, []), gender or "?")
            elif mark in (">", ">>"):
                current = self._rules.setdefault(rest, []).append
                if mark == ">>":
                    self._sentences.add(rest)
            elif current is not None:
                current(line.replace("\\n", "\n"))

    @staticmethod
    def _adder(words: list[tuple[str, str]], gender: str) -> Callable[[str], None]:
        def add(line: str) -> None:
            words.extend((word.strip(), gender) for word in line.split(",") if word.strip())

        return add


def _others(scope: Scope) -> list[str]:
    """Returns who is bound, but for the one named last: nobody meets himself."""
    return [name for name in _CAST if name in scope and scope[name].bare() != scope.get(_LAST)]


def _one(options: list[str], random: Random) -> str:
    return options[int(random.random() * len(options))]


def _a(noun: Noun) -> str:
    if noun.proper:
        return noun.text
    first = noun.text.lower()
    vowel = first[0] in "aeiou" and not first.startswith(("uni", "use", "uku", "eu", "one"))
    return f"{'an' if vowel or first.startswith(('hour', 'honest')) else 'a'} {noun.text}"


def _plural(noun: Noun) -> str:
    text = noun.text
    for end, plural in _IRREGULAR.items():
        if text.endswith(end):
            return text[: -len(end)] + plural
    if text.endswith(("s", "x", "z", "ch", "sh")):
        return text + "es"
    if text.endswith("y") and text[-2] not in "aeiou":
        return text[:-1] + "ies"
    return text + "s"


_IRREGULAR = {
    "knife": "knives",
    "loaf": "loaves",
    "scarf": "scarves",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "child": "children",
    "man": "men",
    "woman": "women",
    "shelf": "shelves",
    "photo": "photos",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
}


def _feminine(adjective: str) -> str:
    """Returns a Portuguese adjective's feminine form; other endings are alike in both."""
    if adjective.endswith("ão"):
        return adjective[:-2] + "ona"
    if adjective.endswith("or"):
        return adjective + "a"
    return adjective[:-1] + "a" if adjective.endswith("o") else adjective


def _with(masculine: str, feminine: str) -> Callable[[Noun], str]:
    return lambda noun: f"{feminine if noun.gender == 'f' else masculine} {noun.text}"


def _bare_name(masculine: str, feminine: str, name: str) -> Callable[[Noun], str]:
    """A form that people's names take no article in: "de Ana", but "da raposa"."""
    form = _with(masculine, feminine)
    return lambda noun: f"{name} {noun.text}".strip() if noun.proper else form(noun)


_FORMS: dict[str, dict[str, Callable[[Noun], str]]] = {
    "en": {
        "a": _a,
        "the": lambda noun: noun.text if noun.proper else f"the {noun.text}",
        "s": _plural,
        "cap": lambda noun: noun.text[:1].upper() + noun.text[1:],
    },
    "pt": {
        "o": _bare_name("o", "a", ""),
        "um": _bare_name("um", "uma", ""),
        "do": _bare_name("do", "da", "de"),
        "no": _bare_name("no", "na", "em"),
        "ao": _bare_name("ao", "à", "a"),
        "pelo": _bare_name("pelo", "pela", "por"),
        "num": _with("num", "numa"),
        "dum": _with("de um", "de uma"),
        "todo": _with("todo", "toda"),
        "este": _with("este", "esta"),
        "esse": _with("esse", "essa"),
        "seu": _with("seu", "sua"),
        "meu": _with("meu", "minha"),
        "outro": _with("outro", "outra"),
        "cap": lambda noun: noun.text[:1].upper() + noun.text[1:],
    },
}
