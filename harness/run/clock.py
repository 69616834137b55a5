"""The time that a cell takes, without what it waits for others."""

from __future__ import annotations

import time


class Clock:
    """Runs from the moment when it is made; `waited` is to be added to by whoever waits."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Wall time less what was spent waiting."""
        return time.perf_counter() - self._began - self.waited


class Waiting(str):
    """What a cell tells of its progress while it waits for another. It need not be told again before it has waited
    `seconds` in all, which do not count towards a timeout.
    """

    seconds: float

    def __new__(cls, text: str, seconds: float) -> Waiting:
        """A text that knows its seconds."""
        told = super().__new__(cls, text)
        told.seconds = seconds
        return told

    def __getnewargs__(self) -> tuple[str, float]:  # type: ignore[override]  # a text made of two
        """What another process makes it of."""
        return str(self), self.seconds
