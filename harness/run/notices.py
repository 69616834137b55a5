"""Python warnings that are raised while a cell runs: counted for the record, and still shown to the user once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.results.record import Notice

LIMIT = 50  # distinct warnings that a record keeps; a text with a number in it may be another one each time
_LENGTH = 500  # characters of a warning's text that are kept
# What Python itself does not show: notes to the developers of a library, not about this run.
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


class NoticeLog:
    """Distinct warnings, in the order in which they first came, and how often each did."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}

    def add(self, message: Warning | str, category: type[Warning], filename: str, lineno: int) -> bool:
        """Count a warning; true if it is the first of its kind."""
        file = Path(filename)
        # The last folder tells enough; the whole path would be this machine's.
        where = f"{file.parent.name}/{file.name}:{lineno}" if file.parent.name else f"{file.name}:{lineno}"
        text = " ".join(str(message).split())[:_LENGTH]
        key = category.__name__, text, where
        if key not in self._counts and len(self._counts) >= LIMIT:
            key = "Warning", f"more than {LIMIT} different warnings; the rest is only counted", ""
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] == 1

    @property
    def notices(self) -> list[Notice]:
        """What was counted so far."""
        return [
            Notice(category=category, message=message, where=where, count=count)
            for (category, message, where), count in self._counts.items()
        ]


@contextmanager
def noticed() -> Iterator[NoticeLog]:
    """Log the warnings that are raised inside, each time and not, as by default, once per place in the code.

    A user's own choice of filters (`-W`, PYTHONWARNINGS) is left as it is.
    """
    log = NoticeLog()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("always")
            for category in _QUIET:
                warnings.simplefilter("ignore", category)
        show = warnings.showwarning

        def note(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            if log.add(message, category, filename, lineno):
                show(message, category, filename, lineno, *rest)

        warnings.showwarning = note  # type: ignore[assignment]  # as documented: may be replaced by any callable
        yield log
