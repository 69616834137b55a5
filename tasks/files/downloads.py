"""Downloads of data sets, whose failures are sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from harness.api.errors import UsageError, first_line


def downloads() -> Path:
    """The folder of downloaded data sets and of what is made of them, `~/.cache/dfqbench`.

    Raises:
        UsageError: the user has no home folder.
    """
    try:
        return Path("~/.cache/dfqbench").expanduser()
    except RuntimeError:
        raise UsageError(
            "there is no home folder, and so none for downloaded data; set HOME, or name the folder of the data with "
            "--data-root"
        ) from None


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
