"""The code that a number depends on: sources that take part, and installed packages by version."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from harness.identity.imports import closure

OWN = frozenset(("harness", "methods", "tasks"))
# What measures a cell, with all that it imports but the folders below.
_ROOTS = frozenset(("harness.run.runner", "harness.api.compose"))
# Folders that find, name and keep, and compute nothing that a number depends on.
NO_NUMBERS = frozenset(f"harness.{name}" for name in ("catalog", "identity", "io", "results"))
# Packages that hold values and compute none. All others that the code imports count: who has not thought of one should
# measure once more rather than believe an old number.
_NEUTRAL = frozenset(("pandas", "pydantic", "pydantic_core", "safetensors", "yaml"))
# What an imported name is installed as, where that is not its own; others are looked up, which takes a moment.
_INSTALLED_AS = {"PIL": ("pillow",), "mmcv": ("mmcv", "mmcv-lite"), "mmseg": ("mmsegmentation",)}


@dataclass(frozen=True)
class Code:
    """Fingerprint of the sources, and the versions of what else can change a number: packages, Python's minor one."""

    fingerprint: str
    versions: tuple[tuple[str, str], ...]  # sorted by name; packages that are not installed have none


@cache
def code_of(targets: frozenset[str], packages: frozenset[str] = frozenset()) -> Code:
    """The code behind plugins, and what of the harness measures them.

    The fingerprint is over the bytes of the files, comments and all: what a change means is not guessed. Cached, since
    an edit while the process runs does not change the code that is already imported.

    Args:
        targets: Where the plugins are, `module:attribute`.
        packages: What they say that they depend on beyond their imports, by the names of the packages.
    """
    modules = {target.partition(":")[0] for target in targets}
    own = OWN | {module.partition(".")[0] for module in modules}
    found = closure(_ROOTS | modules, own, NO_NUMBERS)
    whole = hashlib.sha256()
    for name, path in found.files:
        whole.update(f"{name}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    installed = {name for top in found.packages - _NEUTRAL for name in _distributions(top)} | packages
    return Code(whole.hexdigest(), tuple(sorted(_present(installed).items())))


def _present(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    return found | {name: known for name in packages if (known := _version(name)) is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _distributions(top: str) -> tuple[str, ...]:
    """The packages that a top-level module may come from."""
    if top in _INSTALLED_AS:
        return _INSTALLED_AS[top]
    if _version(top) is None:
        return tuple(sorted(set(packages_distributions().get(top, ()))))
    return (top.replace("_", "-").lower(),)
