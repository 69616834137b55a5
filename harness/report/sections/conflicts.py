"""Records that contradict each other, as a table. Pure: `Store.conflicts` finds them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from harness.io.text import visible
from harness.report.tables import markdown
from harness.results.origin import origin, result
from harness.results.record import Record
from harness.results.store import Conflict

COLUMNS = ("cell", "record", "result", "finished", "git", "versions", "hardware", "threads", "key")
NOTES = (
    "- Merged folders had other numbers of these cells. The report is of the records marked *kept*; each other one lies"
    " in the folder `conflicts/` beside them. Remove it if it is wrong; if the kept one is, move the other's files to"
    " its place. Or measure the cell again (`bench --rerun all`) and remove the other."
)


def conflict_frame(conflicts: Iterable[Conflict]) -> pd.DataFrame:
    """Two rows per conflict, as text: the kept record, then the other one."""
    rows = []
    shown: set[str] = set()
    for conflict in conflicts:
        if conflict.kept is not None and conflict.other.key not in shown:
            rows.append(_row("kept", conflict.kept))
        shown.add(conflict.other.key)
        rows.append(_row(conflict.store.folder.name, conflict.other))
    return pd.DataFrame(rows, columns=COLUMNS)


def conflict_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is shown, a row per record."""
    return frame.assign(key=frame["key"].str[:12]).set_index("cell")


def conflict_markdown(frame: pd.DataFrame) -> str:
    """The table with what to do."""
    cells = frame["key"].nunique()
    text = markdown(conflict_table(frame).reset_index())
    return f"# {cells} cell{'s' * (cells != 1)} with contradicting records\n\n{text}\n{NOTES}\n"


def sentence(frame: pd.DataFrame) -> str:
    """One line for those who do not open the file."""
    cells = frame["key"].nunique()
    return (
        f"{cells} cell{'s have records' if cells > 1 else ' has records'} that contradict each other; see conflicts.md."
    )


def _row(side: str, record: Record) -> dict[str, str]:
    return {
        "cell": visible(f"{record.cell.suite} {record.cell.label}"),
        "record": side,
        "result": result(record),
        "finished": visible(record.finished[:10]),
        **origin(record.provenance),
        "key": record.key,
    }
