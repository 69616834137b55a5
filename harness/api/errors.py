"""The exceptions that users meet."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Iterable

# What np.load, and reading its arrays, raise on an .npz file that is cut short, altered or another's.
DAMAGED_ARRAYS = (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)


class UsageError(Exception):
    """Bad input or configuration. The message is one sentence: what is wrong, where, what to do. Exit code 2."""


class DataFreeViolation(RuntimeError):
    """A data-free method touched the task's data while it ran."""


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the known name that is most like `name`, or nothing."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"did you mean '{folded[close[0]]}'? " if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, for a sentence of ours: its first line, or its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class BadResult(RuntimeError):
    """A method, task or model broke its contract, so that a number would mean nothing."""
