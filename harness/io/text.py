"""Text that came from a file or a user, made safe to show: one function per kind of output. HTML has its own, jinja2's.

Model, method and option names, messages of errors, and whatever a record holds may contain anything. `visible` comes
first and everywhere; what the kind of output itself gives a meaning to is escaped on top of it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Control characters (escape sequences of terminals), formats (direction, zero width), halves of surrogate pairs, and
# separators of lines and paragraphs: none is seen, all change how the rest is shown.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_PLAIN = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u02ff]*")
_FORMULA = ("=", "+", "-", "@")
# What would begin or end something in Markdown; characters inside of words, lone asterisks and `<0.001` do not.
_MARKDOWN = re.compile(
    r"""[\\`$]                      # escapes, code, formulas
    | \|                            # cells of a table
    | <(?=[A-Za-z/!?])              # tags
    | &(?=\#?\w+;)                  # entities
    | (?<=\])\(                     # links and images
    | (?<=\S)\* | \*(?=\S)          # emphasis
    | (?<!\w)_(?=\S) | (?<=\S)_(?!\w)
    | ~(?=~)                        # struck out
    """,
    re.VERBOSE,
)
_LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "`": r"\textasciigrave{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "Δ": r"$\Delta$",
        "§": r"\S{}",
        "–": "--",
    }
)


@lru_cache(maxsize=4096)
def visible(text: str) -> str:
    r"""The text with every character that is not seen written as Python would, `\x1b` or `\u202e`; one line."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def visible_lines(text: str) -> str:
    """The same, with line breaks left as they are: for text of several lines."""
    return "\n".join(map(visible, text.split("\n")))


def markdown(text: str) -> str:
    """Text for a line, or a cell of a table, in Markdown."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def latex(text: str) -> str:
    """Text for LaTeX. What would be taken for an argument of the line break before it is put into braces."""
    escaped = visible(text).translate(_LATEX)
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped[:1] in ("[", "*") else escaped


def csv(text: str) -> str:
    """Text for a cell of a CSV file: behind an apostrophe where a spreadsheet would take it for a formula."""
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) and not _number(shown) else shown


def _number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text) is not None


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
