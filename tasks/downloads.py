"""Downloads of data sets, whose failures are sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from harness.errors import UsageError, first_line


@contextmanager
def downloading(what: str, otherwise: str) -> Iterator[None]:
    """Around a download by torchvision of `what`; `otherwise` says what to do without one.

    Raises:
        UsageError: it failed (an OSError, or HTTPException where it broke off), or what came is damaged (torchvision's
            RuntimeError).
    """
    try:
        yield
    except (OSError, HTTPException, RuntimeError) as error:
        raise UsageError(f"{what} cannot be downloaded ({first_line(error)}); go online, or {otherwise}") from None
