"""TOML files that somebody wrote by hand."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from harness.api.errors import UsageError
from harness.io.files import read_regular, reason


def read_toml(path: Path, what: str, *, missing: str = "") -> dict[str, Any]:
    """The tables of a file, which is called `what` in messages.

    Raises:
        UsageError: it cannot be read; in the words of `missing`, if there are any and there is no such file.
    """
    try:
        return tomllib.loads(read_regular(path).decode())
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise UsageError(missing) from None
        told = reason(error)
    except RecursionError:
        told = "it is nested too deeply"
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        told = str(error)
    raise UsageError(f"{what} {path} cannot be read ({told}); correct the file")
