"""Documents of earlier schema versions as the present one has them. The only place that knows old formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.results.record import SCHEMA_VERSION

Document = dict[str, Any]


class UnknownVersion(ValueError):
    """A document whose version this code cannot read. The message says why, without naming a file."""


def upgrade(document: Mapping[str, Any]) -> Document:
    """A record's JSON document in the present schema; what an older version did not record is null or empty.

    Raises:
        UnknownVersion: no version, or one that is newer than this code.
    """
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UnknownVersion(f"schema version {version!r} is not one of 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise UnknownVersion(
            f"schema version {version} is newer than {SCHEMA_VERSION}, the newest that this version of dfqbench knows"
        )
    upgraded = dict(document)
    for old in range(version, SCHEMA_VERSION):
        upgraded = _STEPS[old](upgraded)
        upgraded["schema_version"] = old + 1
    return upgraded


def _from_1(document: Document) -> Document:
    """Version 2 added `warnings` to the record and `variables` to its provenance."""
    provenance = document.get("provenance")
    if isinstance(provenance, Mapping):
        document = {**document, "provenance": {**provenance, "variables": None}}
    return {**document, "warnings": None}


def _from_2(document: Document) -> Document:
    """Version 3 added `sidecars`."""
    return {**document, "sidecars": None}


_STEPS: Mapping[int, Callable[[Document], Document]] = {1: _from_1, 2: _from_2}
