"""What a run ended with, from its plan and the records of its cells."""

from __future__ import annotations

from collections.abc import Iterable

from harness.io.exit_codes import NOTHING_MEASURED, OK, SOME_FAILED
from harness.plan.plan import Plan
from harness.results.record import Record


def exit_code(plan: Plan, records: Iterable[Record]) -> int:
    """The exit code of a run, from the records of its cells.

    A run without one quantized result measured nothing, unless it asked for the float reference only.
    """
    keys = plan.keys
    of_plan = [record for record in records if record.cell.key in keys]
    only_float = all(planned.cell.is_float for planned in plan.cells)
    failed = any(record.status == "failed" for record in of_plan)
    ok = [record for record in of_plan if record.status == "ok"]
    if not ok or (not failed and not only_float and all(record.cell.is_float for record in ok)):
        return NOTHING_MEASURED
    return SOME_FAILED if failed else OK
