"""Configs read as nothing but data: JSON, TOML and YAML without object tags.

mmengine's own reader runs what such files say (YAML tags, `custom_imports`), and its registries import any object whose
dotted path stands as a `type`; some parts of mmcv and mmdet evaluate a text as Python or unpickle a file that it
names. So only what the project uses of a config is kept, and of that only names that are registered and plain words.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.api.errors import UsageError, first_line
from harness.io.files import reason
from tasks.files.content import open_regular
from tasks.models.openmmlab import ops
from tasks.models.openmmlab.models import Library, forget_pretraining

if TYPE_CHECKING:
    from mmengine.config import Config

LARGEST = 2**22  # bytes of a config
_MOST = 100_000  # values in one; YAML's references can make few bytes into endlessly many
_USED = ("model", "test_dataloader", "val_dataloader", "test_evaluator", "val_evaluator", "crop_size")
_BUILT = ("model", "test_dataloader", "val_dataloader")
_REGISTRIES = ("MODELS", "TASK_UTILS", "TRANSFORMS", "DATASETS", "WEIGHT_INITIALIZERS")
_SCOPES = ("mmdet", "mmseg", "mmcv", "mmengine")
_WORD = re.compile(r"(?!(?:pkl|pickle)$)[\w +-]*")
_TRUST = "; only --trust-configs allows that"
SUFFIXES: Mapping[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}


def read_plain(path: Path, library: Library, shipped: Callable[[str, Path], Config | None]) -> Config:
    """The config in `path` with what it is based on.

    Args:
        path: a file of one of `SUFFIXES`.
        library: whose models it is to be built of.
        shipped: the config that an entry of `_base_` names and that is not the user's, if it does so; relative entries
            are as seen from the folder.

    Raises:
        UsageError: it cannot be read, or holds what could run code.
    """
    ops.install()
    from mmengine.config import Config

    merged = _read(path, library, shipped, ())
    return Config({key: merged[key] for key in _USED if key in merged}, cfg_text=" ", filename=str(path))


def _read(
    path: Path, library: Library, shipped: Callable[[str, Path], Config | None], before: tuple[Path, ...]
) -> dict[str, Any]:
    from mmengine.config import Config

    place = path.resolve()
    if place in before:
        raise UsageError(f"config {path} is based on itself; take it out of its '_base_'")
    own = _load(path)
    bases = own.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"config {path} has a '_base_' that is neither a file nor a list of files")
    _check(path, own, library)
    whole: dict[str, Any] = {}
    for base in bases:
        found = shipped(base, path.parent)
        file = path.parent / base
        if found is None and file.suffix.lower() not in SUFFIXES:
            raise UsageError(f"config {path} is based on {base}, which may run code{_TRUST}")
        values = found.to_dict() if found is not None else _read(file, library, shipped, (*before, place))
        twice = sorted(whole.keys() & values.keys() & set(_USED))
        if twice:
            raise UsageError(f"config {path} is based on several files that have '{twice[0]}'; leave it in one")
        whole |= values
    merged = Config({key: value for key, value in whole.items() if key in _USED})
    try:
        merged.merge_from_dict(own, allow_list_keys=False)
    except Exception as error:  # mmengine's are of several kinds
        raise UsageError(f"config {path} does not fit what it is based on ({first_line(error)})") from None
    return merged.to_dict()  # type: ignore[no-any-return]


def _load(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(f"config {path} has more than {LARGEST:,} bytes")
        found = SUFFIXES[path.suffix.lower()](content.decode())
        _check_plain(found)
    except OSError as error:
        raise UsageError(f"config {path} cannot be read ({reason(error)})") from None
    except RecursionError:
        raise UsageError(f"config {path} cannot be read (it is nested too deeply)") from None
    except (ValueError, yaml.YAMLError) as error:
        if isinstance(error, yaml.constructor.ConstructorError) and "tag" in str(error.problem):
            problem = str(error.problem)
            raise UsageError(f"config {path} has a YAML tag that may run code ({problem}){_TRUST}") from None
        raise UsageError(f"config {path} cannot be read ({type(error).__name__}: {first_line(error)})") from None
    if not isinstance(found, dict):
        raise UsageError(f"config {path} is not a mapping of names to values")
    if "custom_imports" in found:
        raise UsageError(f"config {path} has 'custom_imports', which run code{_TRUST}")
    return {key: value for key, value in found.items() if key in {*_USED, "_base_"}}


def _check_plain(value: Any) -> None:
    """Raise ValueError unless `value` is made of texts, numbers, lists and mappings of a sensible size."""
    for count, (where, item) in enumerate(_walk(value)):
        if count > _MOST:
            raise ValueError(f"it has more than {_MOST:,} values")
        if isinstance(item, dict) and not all(isinstance(key, str) for key in item):
            raise ValueError(f"{where or 'it'} has a key that is not text")
        if not (item is None or isinstance(item, dict | list | str | int | float)):
            raise ValueError(f"{where} is a {type(item).__name__}, which JSON does not have")
        if isinstance(item, str) and "{{" in item:
            raise ValueError(f"{where} has a placeholder in braces, which only Python configs may have")


def _check(path: Path, own: dict[str, Any], library: Library) -> None:
    """Refuse what a library would import, evaluate, unpickle or download when it builds from `own`."""
    forget_pretraining(own)
    known = registered(library)
    for part in _BUILT:
        for where, value in _walk(own.get(part), part):
            if not isinstance(value, str) or not _is_used(where):
                continue
            key = where.rpartition(".")[2]
            scope, _, name = value.rpartition(".")
            if key == "type" and not (name in known and scope in {"", *_SCOPES}):
                raise UsageError(f"config {path}: {where} is '{value}', which {library} does not know{_TRUST}")
            if key == "_scope_" and value not in _SCOPES:
                raise UsageError(f"config {path}: {where} is '{value}', a package that would be imported{_TRUST}")
            if key != "type" and not _WORD.fullmatch(value):
                raise UsageError(
                    f"config {path}: {where} is '{value}', which is not a plain word and might be run{_TRUST}"
                )


def _is_used(where: str) -> bool:
    """Whether something is built of the value there; of data sets only the pipeline is, and their class looked up."""
    looked_up = re.fullmatch(r"\w+(\.dataset)+\.type", where) is not None
    return looked_up or where.startswith("model") or ".pipeline" in where


def registered(library: Library) -> set[str]:
    """All names that a `type` in a config of `library` may have."""
    found = set(import_module("mmcv.ops").__all__)
    for name in _REGISTRIES:
        registry = getattr(import_module(f"{library}.registry"), name)
        while registry is not None:
            registry.import_from_location()
            found |= registry.module_dict.keys()
            registry = registry.parent
    return found


def _walk(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """`value` and all in it, each with the path to it."""
    yield where, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _walk(item, f"{where}[{place}]")
