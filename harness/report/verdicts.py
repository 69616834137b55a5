"""Whether another run would agree: verdicts of the tables, their marks, and what may be ranked. Frames in, text out.

A row's difference `to_best` is to what it is compared with: the best data-free method, or an ablation's base.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.report import stats

ALPHA = 0.05
NONE = "–"
ONE_SEED = "one seed"  # where a verdict would stand
HIGHEST = "highest"  # of one seed, in place of the best
NO_VERDICT = "One seed gives no verdict, since another could reverse any difference: run more of them."
WHOLE = 100.0  # points
TOO_FEW = "So few seeds would find no true difference with 80 % power, however large it is: run more of them."
NOTE = f"""\
  says whether a run with other seeds and other images would agree with the difference: `=` means that it could reverse
  it, else better or worse with the p-value (paired test over seeds and images, adjusted for all comparisons of the
  table and for the choice of the best; level {ALPHA}). *{ONE_SEED}*: no verdict, since another seed could reverse
  anything; run more of them.
"""
UNVERIFIED = "§"
UNVERIFIED_NOTE = f"""\
- `{UNVERIFIED}` marks a result that could not be checked; `unverified` in its record says why. It is neither compared
  nor ranked.
"""


def checked(rows: pd.DataFrame) -> pd.Series[float]:
    """The accuracies that may enter a ranking: NaN where a result could not be verified."""
    return rows["accuracy"].where(~unverified(rows))


def unverified(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are marked as results that could not be checked; where nothing is said, none is."""
    marks = rows["verified"] if "verified" in rows else pd.Series(True, index=rows.index)
    return marks.eq(False)


def unverified_note(rows: pd.DataFrame) -> str:
    """What the mark means, if a result among `rows` has it."""
    return UNVERIFIED_NOTE if unverified(rows).any() else ""


def marked(text: str, verified: object) -> str:
    """A number with a mark if it is known to be unverified."""
    return f"{text} {UNVERIFIED}" if verified is not None and not verified else text


def verdict(row: dict[Any, Any]) -> str:
    """Whether another run would agree that a row lies `to_best` points above the one that it is compared with."""
    p = row["p_holm"]
    if np.isnan(p):
        return ONE_SEED if row["common_seeds"] == 1 else NONE
    if p >= ALPHA:
        return "="
    direction = "better" if row["to_best"] > 0 else "worse"
    return f"{direction} {'<0.001' if p < 0.001 else f'{p:.3f}'}"


def mark(row: dict[Any, Any]) -> str:
    """The `verdict` on a row in one character, for crowded tables: ` =`, ` ?` for none, nothing if it differs."""
    if row["best"]:
        return ""
    return {"=": " =", ONE_SEED: " ?", NONE: " ?"}.get(verdict(row), "")


def sensitivity(group: pd.DataFrame) -> str:
    """What the test of this table could see between the best and what is near it: the nearest quarter of the rows."""
    tested = group[group["p_value"].notna()]
    if tested.empty:
        return f"{NO_VERDICT}\n" if (group["common_seeds"] == 1).any() else ""
    near = tested.assign(distance=tested["to_best"].abs()).nsmallest(-(-len(tested) // 4), "distance", keep="all")
    alphas = ALPHA / len(tested) / np.maximum(1.0, near["chosen"] / 2)
    points = [
        stats.detectable_difference(
            row["seed_error"] ** 2, row["image_error"] ** 2, int(row["common_seeds"]), int(row["images"]), alpha=alpha
        )
        for row, alpha in zip(near.to_dict("records"), alphas, strict=True)
    ]
    found = float(np.median(points))
    if found > WHOLE:
        return f"{TOO_FEW}\n"
    return (
        f"A true difference of {found:.1f} points would be found with 80 % power, if no other is true "
        "(after adjustment, from the spread of the nearest rows).\n"
    )
