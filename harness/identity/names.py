"""The grammar of method names: parts, brackets with options, crosses and products of crosses. Knows no plugin."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from harness.api.errors import UsageError
from harness.io.canonical import canonical_json

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|.', re.DOTALL)  # a JSON string, else one character
_QUOTED = re.compile(r'[\s"\[\]{},=+\\]')  # what an unquoted string must not hold
_BRACES = frozenset("{}")
_BRACKETS = frozenset("[]{}")
MOST_NESTED = 20  # of lists and objects in an option's value


@dataclass(frozen=True)
class Part:
    """One plugin in a method's name, and the options that its brackets change."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brackets(self) -> str:
        """`option=value,...` sorted by option, so that equal changes have one text; empty without changes."""
        return ",".join(f"{option}={_value_text(self.changes[option])}" for option in sorted(self.changes))

    def __str__(self) -> str:
        return f"{self.name}[{self.brackets}]" if self.changes else self.name


def parse_value(text: str) -> Any:
    """An option's value as typed: JSON, or else a string.

    Raises:
        UsageError: lists or objects nested more than `MOST_NESTED` deep.
    """
    try:
        value = json.loads(text)
    except ValueError:  # no JSON, or an integer too long to be read
        return text
    except RecursionError:
        value = None
        depth = MOST_NESTED + 1
    else:
        depth = _depth(value)
    if depth > MOST_NESTED:
        raise UsageError(f"the value '{text[:20]}...' is nested more than {MOST_NESTED} deep; no option takes that")
    return value


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; 0 for a plain value."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth


def split_names(text: str) -> list[str]:
    """The method names in `text`: its pieces between commas that stand in no brackets and no braces.

    Braces stand for each name in them, on either side of a cross: `{a,b}+{c,d}` is `a+c`, `a+d`, `b+c` and `b+d`.

    Raises:
        UsageError: brackets or braces that do not match, or braces that do not hold whole names.
    """
    pieces = _cut(text, ",")
    if pieces is None:
        first = next(token for token in _TOKEN.findall(text) if token in _BRACKETS)
        raise _malformed_braces(text) if first in _BRACES else _malformed(text)
    return [name for piece in pieces for name in _expanded(piece)]


def split_outside_brackets(text: str) -> list[str]:
    """The pieces of `text` between commas that stand in no brackets; between all commas if brackets do not match."""
    pieces = _cut(text, ",")
    return text.split(",") if pieces is None else pieces


def _expanded(text: str) -> list[str]:
    """The crosses of a product, source by source; `text` itself if it is not one."""
    factors = _cut(text, "+") or [text]
    if not any(map(_has_braces, factors)):
        return [text]
    return ["+".join(names) for names in product(*(_alternatives(factor, text) for factor in factors))]


def _alternatives(factor: str, text: str) -> list[str]:
    if not _has_braces(factor):
        return [factor]
    names = _cut(factor[1:-1], ",") if factor.startswith("{") and factor.endswith("}") else None
    if names is None or not all(names) or any(map(_has_braces, names)):
        raise _malformed_braces(text)
    return names


def _has_braces(text: str) -> bool:
    """Whether braces stand before any bracket; those in brackets belong to a value."""
    return not _BRACES.isdisjoint(text.partition("[")[0])


def _malformed_braces(text: str) -> UsageError:
    return UsageError(f"the braces of '{text}' are malformed; write {{SOURCE,...}}+{{CALIBRATOR,...}} with whole names")


def parse_name(text: str) -> tuple[Part, ...]:
    """The parts of `NAME`, `NAME[OPTION=VALUE,...]` or a cross of such.

    Raises:
        UsageError: malformed brackets or an option that is set twice.
    """
    pieces = _cut(text, "+")
    if pieces is None:
        raise _malformed(text)
    return tuple(_part(piece) for piece in pieces)


def plain_name(text: str) -> str:
    """`NAME` or `SOURCE+CALIBRATOR` without brackets; a text that is no such name as it is."""
    try:
        return "+".join(part.name for part in parse_name(text)) if "[" in text else text
    except UsageError:
        return text


def whole(value: Any) -> Any:
    """Whole floats as integers, at any depth: 10 and 10.0 are one value."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {name: whole(each) for name, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list | tuple) else value


def _part(text: str) -> Part:
    name, bracket, rest = text.partition("[")
    if not bracket:
        return Part(text)
    items = _cut(rest[:-1], ",") if rest.endswith("]") and name.strip() else None
    if items is None:
        raise _malformed(text)
    changes: dict[str, Any] = {}
    for item in items:
        option, equals, value = (piece.strip() for piece in item.partition("="))
        if not (option and equals):
            raise _malformed(text)
        if option in changes:
            raise UsageError(f"option '{option}' is set twice in '{text}'")
        changes[option] = parse_value(value)
    return Part(name.strip(), changes)


def _malformed(text: str) -> UsageError:
    return UsageError(f"the brackets of '{text}' are malformed; write NAME[OPTION=VALUE] or NAME[OPTION=VALUE,...]")


def _cut(text: str, separator: str) -> list[str] | None:
    """Stripped pieces between separators that stand in no brackets and no JSON string; None if brackets do not match.

    Braces count too, since a value may be a JSON object.
    """
    pieces, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        if depth < 0:
            return None
        if token == separator and not depth:
            pieces.append("")
        else:
            pieces[-1] += token
    return None if depth else [piece.strip() for piece in pieces]


def _value_text(value: Any) -> str:
    """Compact JSON that `parse_value` reads as an equal value; a string without quotes where it still is one."""
    if isinstance(value, str):
        plain = value and value.isprintable() and not _QUOTED.search(value) and parse_value(value) is value
        return value if plain else canonical_json(value)
    return canonical_json(whole(value))
