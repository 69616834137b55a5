"""Ways in which a file or a text goes wrong, chosen by a seeded generator: the same seed gives the same damage."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# Values that break a reader which believes what it is given: of the wrong kind, out of range, or active somewhere.
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 99.0, 250, 1e308, -1e308, 2**63, 10**40, float("nan"), float("inf"), -float("inf")),
    *("", " ", "NaN", "x" * 5000, "\x1b[31mred\x1b[0m", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "$\\alpha"),
    *(
        "[red]",
        "a|b",
        "\n\n# title",
        "\u202e",
        "\ud800",
        "../../etc/passwd",
        "top1",
        "miou",
        [],
        {},
        [[]],
        [1],
        {"": 1},
    ),
)


def damaged(data: bytes, rng: Random) -> bytes:
    """`data` cut, with bytes flipped, overwritten, repeated, or replaced altogether."""
    way = rng.randrange(7)
    place = rng.randrange(len(data)) if data else 0
    if way == 0:
        return data[:place]
    if way == 1:
        return b""
    if way == 2:
        return rng.randbytes(rng.randrange(1, 200))
    if way == 3:
        return data[:place] + data[place:] * 2
    changed = bytearray(data)
    for _ in range(1 if way < 5 else rng.randrange(1, 50)):
        if changed:
            at = rng.randrange(len(changed))
            changed[at] = changed[at] ^ (1 << rng.randrange(8)) if way == 4 else rng.randrange(256)
    return bytes(changed)


def altered(text: str, rng: Random) -> str:
    """A JSON document with one value replaced, removed, added or nested; still JSON."""
    document = json.loads(text)
    parents = [(parent, key) for parent, key in _places(document)]
    parent, key = rng.choice(parents)
    way = rng.randrange(6)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[rng.choice(["extra", "", "\x1b", "key ", "__class__"])] = rng.choice(ODD)
    elif way == 2:
        nested: Any = parent[key]
        for _ in range(rng.choice([1, 30, 3000])):
            nested = [nested]
        return _dumped(document, parent, key, nested)
    elif way == 3 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice([-1, 0, 0.5, 2, 1 + 1e-6, 1e300])
    elif way == 4 and isinstance(parent[key], str):
        parent[key] = parent[key][::-1] + rng.choice(["", "\x00", "'", '"'])
    else:
        parent[key] = rng.choice(ODD)
    return json.dumps(document)


def _dumped(document: Any, parent: Any, key: Any, nested: Any) -> str:
    """The document with `nested`, which may be too deep for Python's own writer, at its place."""
    depth = 0
    while isinstance(nested, list) and len(nested) == 1:
        nested, depth = nested[0], depth + 1
    parent[key] = "@@nested@@"
    inside = json.dumps(nested)
    return json.dumps(document).replace('"@@nested@@"', "[" * depth + inside + "]" * depth)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, each in items:
        found += [(value, key), *_places(each)]
    return found


def hostile_word(rng: Random, words: tuple[str, ...]) -> str:
    """A word that a user might type, or one that nobody should."""
    way = rng.randrange(8)
    if way < 4:
        return rng.choice(words)
    word = rng.choice(words)
    if way == 4:
        return "".join(rng.sample(word, len(word)))
    if way == 5:
        return word + rng.choice(
            ["[", "]", "[steps=", "[steps=1]", "+", "{a,b}", ",", "=", "\x1b[0m", "\x00", "$x$", " "]
        )
    if way == 6:
        odd = rng.choice(ODD)
        return odd if isinstance(odd, str) else json.dumps(odd)
    return "".join(
        chr(rng.choice([*range(32, 127), 0, 9, 10, 27, 0x202E, 0x1F600])) for _ in range(rng.randrange(1, 40))
    )
