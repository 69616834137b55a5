"""Where the numbers of a report were made: the distinct provenances of its records, as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from harness.io.canonical import canonical_json
from harness.io.text import visible
from harness.report.tables import NONE
from harness.results.record import Provenance, Record

MOST = 40  # rows of the table; folders merged from many machines have more


def provenance_table(records: Iterable[Record]) -> tuple[pd.DataFrame, int]:
    """Distinct provenances as strings, the most frequent first, and how many of them are left out."""
    counts = Counter(canonical_json(record.provenance.model_dump(mode="json")) for record in records)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [_row(Provenance.model_validate_json(text), count) for text, count in ordered[:MOST]]
    columns = ["records", "code", "git", "versions", "hardware", "device", "threads", "environment"]
    frame = pd.DataFrame(rows, columns=columns).set_index("records")
    if (frame["environment"] == NONE).all():
        frame = frame.drop(columns="environment")
    return frame, max(0, len(ordered) - MOST)


def preprocessing_table(records: Iterable[Record]) -> pd.DataFrame:
    """How images were made ready for every model, as its records say; empty if none says it."""
    said = {(record.cell.suite, record.cell.model, canonical_json(record.preprocessing)) for record in records}
    rows = [
        {"model": f"{model} ({suite})", **{name: _shown(value) for name, value in json.loads(text).items()}}
        for suite, model, text in sorted(said)
        if text != "{}"
    ]
    frame = pd.DataFrame(rows).fillna(NONE)
    return frame.set_index("model") if rows else frame


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or NONE


def _row(provenance: Provenance, count: int) -> dict[str, str]:
    git = provenance.git
    state = f"{str(git.get('commit', NONE))[:12]}{', with changes' if git.get('modified') else ''}" if git else NONE
    found = {
        "records": f"{count:,}",
        "code": provenance.code[:12],
        "git": state,
        "versions": _listed(provenance.versions),
        "hardware": _listed(provenance.hardware),
        "device": provenance.device,
        "threads": str(provenance.threads),
        "environment": _listed(getattr(provenance, "variables", None) or {}),
    }
    return {name: visible(text) for name, text in found.items()}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in sorted(values)) or NONE
