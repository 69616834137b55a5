"""Configs that users name: read as data, or run if the user says that they are trusted.

Trusted without asking are those that come with the project and with installed mmdet and mmsegmentation.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from harness.api.errors import UsageError
from harness.io.files import reason
from tasks.files.content import open_regular
from tasks.models.openmmlab import ops
from tasks.models.openmmlab.models import Library, read_config
from tasks.models.openmmlab.plain_config import LARGEST, SUFFIXES, read_plain
from tasks.models.openmmlab.trusted_config import run_trusted

if TYPE_CHECKING:
    from mmengine.config import Config

_TASKS = Path(__file__).parents[2]
_OWN = (_TASKS / "models" / "openmmlab" / "configs", _TASKS / "suites" / "embedded" / "dense_configs")
_RUN = (".py", ".json", ".yaml", ".yml")  # what mmengine reads, and in doing so runs


def read_user_config(name: str, library: Library, *, trusted: bool) -> Config:
    """The config in the file `name`, or `mmdet::NAME` and `mmseg::NAME` for one in the library of that name.

    Args:
        name: of a file (.json, .yaml, .yml, .toml, .py).
        library: whose models it is to be built of.
        trusted: the user says that it may run code.

    Raises:
        UsageError: it cannot be read, or runs code and is not trusted.
    """
    found = _shipped(name, Path())
    if found is not None:
        return found
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix not in {*SUFFIXES, *_RUN}:
        raise UsageError(f"config {path} must end in {', '.join(sorted({*SUFFIXES, *_RUN}))}")
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist; name an mmengine config") from None
    except OSError as error:
        raise UsageError(f"config {path} cannot be read ({reason(error)})") from None
    if size > LARGEST:
        raise UsageError(f"config {path} has {size:,} bytes, but {LARGEST:,} is the most that is read")
    if trusted and suffix in _RUN:
        return run_trusted(path)
    if suffix not in SUFFIXES:
        raise UsageError(
            f"config {path} is a program, which is run only if you say that you trust it, with --trust-configs; JSON, "
            "YAML and TOML are read as data"
        )
    return read_plain(path, library, _shipped)


def packaged(library: Library) -> Path:
    """Folder of the configs in an installed library."""
    ops.install()
    place = importlib.util.find_spec(library)
    if place is None or place.origin is None:
        raise UsageError(f"{library} is not installed; install the project's extra 'dense'")
    return Path(place.origin).parent / ".mim" / "configs"


def _shipped(name: str, folder: Path) -> Config | None:
    """The config that `name`, as seen from `folder`, has in the project or in a library; None if it is another."""
    package, separator, inside = name.partition("::")
    known: tuple[Library, ...] = get_args(Library)
    if separator:
        if package not in known:
            raise UsageError(f"config {name} is in package '{package}'; only {', '.join(known)} can be named so")
        path = packaged(package) / inside  # checked above
    else:
        path = folder / Path(name).expanduser()
    path = path.resolve()
    roots = [root.resolve() for root in (*_OWN, *map(packaged, known))]
    if path.suffix == ".py" and any(path.is_relative_to(root) for root in roots):
        return read_config(path)
    if separator:
        raise UsageError(f"config {name} is not among those of {package}")
    return None
