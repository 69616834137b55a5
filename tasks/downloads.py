"""Downloads of data sets, whose failures are sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import UsageError


@contextmanager
def downloading(what: str, otherwise: str) -> Iterator[None]:
    """Around a download by torchvision of `what`; `otherwise` says what to do without one.

    Raises:
        UsageError: it failed (urllib's errors are OSErrors), or what came is damaged (torchvision's RuntimeError).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{what} cannot be downloaded ({reason}); go online, or {otherwise}") from None
