"""The exceptions that users meet."""

from __future__ import annotations


class UsageError(Exception):
    """Bad input or configuration. The message is one sentence: what is wrong, where, what to do. Exit code 2."""


class DataFreeViolation(RuntimeError):
    """A data-free method touched the task's data while it ran."""
