"""Reading files as a user who may not, which only the superuser can try."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534
superuser = pytest.mark.skipif(os.geteuid() != 0, reason="needs to change the user")


@contextmanager
def as_nobody() -> Iterator[None]:
    """While open, this process has nobody's rights."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
