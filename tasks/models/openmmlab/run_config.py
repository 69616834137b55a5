"""A program that runs one mmengine config and writes what it says as JSON: `run_config.py CONFIG RESULT`.

A config in Python is a program, and may end or never end the process that reads it; see `trusted_config`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def plain(value: Any, where: str = "") -> Any:
    """`value` as JSON from which `restored` makes the same again, tuples and keys that are not text included.

    Raises:
        TypeError: it holds something other than plain data; the message says where.
    """
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item, f"{where}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [plain(item, f"{where}[{place}]") for place, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where.removeprefix('.')} is a {type(value).__name__}, not plain data")


def restored(value: Any) -> Any:
    """What `plain` was made of."""
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "dict":
        return {restored(key): restored(item) for key, item in items}
    return (list if kind == "list" else tuple)(map(restored, items))


def main(config: str, result: str) -> None:
    """Run `config` and write its content, or the reason why it has none, to the file `result`."""
    content: dict[str, Any]
    try:
        content = {"config": plain(_run(config))}
    except SystemExit:
        content = {"error": "it ends the program that reads it"}
    except BaseException as error:  # a program may raise anything
        first = (str(error).splitlines() or [""])[0]
        content = {"error": f"{type(error).__name__}: {first}"}
    Path(result).write_text(json.dumps(content), encoding="utf-8")


def _run(path: str) -> dict[str, Any]:
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except ImportError:  # perhaps of compiled operators
        _install()
        config = Config.fromfile(path, import_custom_modules=False)
    content: dict[str, Any] = config.to_dict()
    if content.get("custom_imports"):
        _install()
        import_modules_from_strings(**content["custom_imports"])
    return content


def _install() -> None:
    from tasks.models.openmmlab import ops

    ops.install()


if __name__ == "__main__":
    main(*sys.argv[1:])
