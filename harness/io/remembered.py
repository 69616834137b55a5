"""Findings that are kept between runs in the user's cache directory: a help and never a result. They may be deleted at
any time, and what is damaged counts as nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from harness.io.files import read_regular, write_atomically


def cache_folder() -> Path | None:
    """Where findings of any kind may be kept: `$DFQBENCH_CACHE`, else `$XDG_CACHE_HOME/dfqbench`, else
    `~/.cache/dfqbench`; None if the user has no home.
    """
    chosen, general = os.environ.get("DFQBENCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    if general and Path(general).is_absolute():
        return Path(general) / "dfqbench"
    try:
        return Path.home() / ".cache" / "dfqbench"
    except RuntimeError:
        return None


class Findings:
    """What is known of one folder, as JSON in one file of the cache; the file says its own hash.

    Args:
        kind: of the findings; names the subfolder of the cache.
        folder: that they are about.
        version: of what they say. Those of another version are not believed.
    """

    def __init__(self, kind: str, folder: Path, version: int | str) -> None:
        cache = cache_folder()
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self._about = {"version": version, "folder": str(folder.resolve())}
        self._file = None if cache is None else cache / kind / f"{name}.json"

    def load(self) -> dict[str, Any]:
        """What was kept last; empty if there is nothing that can be used."""
        if self._file is None:
            return {}
        try:
            check, _, text = read_regular(self._file).partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != check.strip():
                return {}
            content = json.loads(text)
        except (OSError, ValueError):
            return {}
        files = content.pop("files", {}) if isinstance(content, dict) else {}
        return files if content == self._about and isinstance(files, dict) else {}

    def keep(self, found: dict[str, Any]) -> None:
        """Keep `found`, by name, in place of what was kept; where that is not possible, nothing is."""
        if self._file is None:
            return
        text = json.dumps({**self._about, "files": found}, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = f"{hashlib.sha256(text).hexdigest()}\n".encode() + text
            write_atomically(self._file, lambda path: path.write_bytes(content))
