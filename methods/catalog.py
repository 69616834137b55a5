"""The plugins that ship with the project: name -> where its PluginInfo is. Folders tell; infos are imported lazily."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def _plugins(kind: str) -> dict[str, str]:
    """A plugin is a folder with an `info.py`; its name is the folder's, with `-` for `_`."""
    folders = sorted(path.parent.name for path in (_HERE / kind).glob("*/info.py"))
    return {folder.replace("_", "-"): f"methods.{kind}.{folder}.info:INFO" for folder in folders}


METHODS = _plugins("end_to_end")
SOURCES = _plugins("sources")
TRANSFORMS = _plugins("transforms")
CALIBRATORS = _plugins("calibrators")
