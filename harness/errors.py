"""The exceptions that users meet."""

from __future__ import annotations

import zipfile
import zlib

# What np.load, and reading its arrays, raise on an .npz file that is cut short, altered or another's.
DAMAGED_ARRAYS = (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)


class UsageError(Exception):
    """Bad input or configuration. The message is one sentence: what is wrong, where, what to do. Exit code 2."""


class DataFreeViolation(RuntimeError):
    """A data-free method touched the task's data while it ran."""


def first_line(error: Exception) -> str:
    """What an error says, for a sentence of ours: its first line, or its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
