"""Notes below tables: of the marks, only those that a table has are explained."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.report.verdicts import NOTE, unverified_note

COMPARED = f"""\
- **Δ** is the difference to the float model in points. **Bold** is the model's data-free method of highest mean, which
  by itself is not a verdict. **vs best** compares the other methods with it and
{NOTE}"""
EFFECTIVE = """\
- **eff. W/A**: bits that a weight and an activation take on average, scales included, where widths alone do not tell.
"""
REBUILT = "- `*` marks a reconstruction: rebuilt from the paper, since the authors' code is not public.\n"
LEARNS = {
    "quantizers": "`†` learns quantizer parameters, the rounding of weights among them, by gradient descent",
    "weights": "`‡` learns weights",
}
ENDS = {
    "floor": "*floor*: calibrated on noise",
    "ceiling": "*ceiling*: calibrated on real training images, so not data-free and not ranked",
}


def spread(rows: pd.DataFrame) -> str:
    """What follows a mean over seeds; `rows` are those of a summary."""
    if not (rows["seeds"] > 1).any():
        return ""
    short = (rows["seeds"] < rows["seeds_wanted"]).any()
    missing = "; [2/3] means that only 2 of 3 seeds were measured: an incomplete mean" if short else ""
    return f"- **±** is the standard deviation over seeds{missing}.\n"


def marks(rows: pd.DataFrame) -> str:
    """The marks of methods and results that are among `rows`, an item each."""
    rebuilt = REBUILT if rows["origin"].eq("reconstruction").any() else ""
    return _line(LEARNS, rows["trains"]) + rebuilt + unverified_note(rows)


def marks_in(names: Sequence[str]) -> str:
    """The same of names that have their marks already."""
    shown = " ".join(names)
    return _joined([text for text in LEARNS.values() if text[1] in shown]) + (REBUILT if " *" in shown else "")


def ends(rows: pd.DataFrame) -> str:
    """Floor and ceiling, if they are among `rows`."""
    return _line(ENDS, rows["role"])


def _line(texts: dict[str, str], values: pd.Series[str]) -> str:
    return _joined([text for name, text in texts.items() if values.eq(name).any()])


def _joined(found: list[str]) -> str:
    return f"- {'; '.join(found)}.\n" if found else ""
