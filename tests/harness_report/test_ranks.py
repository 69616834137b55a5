"""Rank correlation of sources with real images, against scipy-free counting of concordant pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.sections import ranks
from harness.report.sections.ranks import PLACE

CALIBRATORS = ("minmax", "omse", "ema")
values = st.lists(st.integers(0, 9), min_size=6, max_size=6)


def frame(own: list[float], real: list[float], **changes: object) -> pd.DataFrame:
    """Accuracies of two sources with three calibrators at two precisions."""
    rows = []
    for source, role, accuracies in (("psaq", "method", own), ("real", "ceiling", real)):
        keys = [(bits, calibrator) for bits in ("W8A8", "W4A4") for calibrator in CALIBRATORS]
        for (bits, calibrator), accuracy in zip(keys, accuracies, strict=True):
            place = dict.fromkeys(PLACE, "x")
            found = {"bits": bits, "calibrator": calibrator, "source": source, "role": role, "accuracy": accuracy}
            rows.append({**place, **found, **changes})
    return pd.DataFrame(rows)


def tau_b(a: list[float], b: list[float]) -> float:
    """Concordant less discordant pairs over the geometric mean of the pairs without ties on either side."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    free = [sum(s[k] != 0 for s in signs) for k in (0, 1)]
    return sum(s * t for s, t in signs) / np.sqrt(free[0] * free[1]) if all(free) else float("nan")


@given(values, values)
def test_tau_counts_pairs(own, real):
    (row,) = ranks.ranks(frame(own, real)).to_dict("records")
    assert row["overall"] == pytest.approx(tau_b(own, real), nan_ok=True)
    within = [tau_b(own[:3], real[:3]), tau_b(own[3:], real[3:])]
    assert row["within"] == pytest.approx(np.mean(within), nan_ok=True)
    assert (row["pairs"], row["points"], row["precisions"]) == (6, 6, 2)


def test_means_that_differ_by_rounding_are_ties():
    """The same three accuracies in another order of seeds have another sum in binary."""
    one, other = sum([0.1, 0.2, 0.3]), sum([0.3, 0.2, 0.1])
    assert one != other
    assert np.isnan(ranks.ranks(frame([one, other, one] * 2, [1, 2, 3] * 2))["within"].item())


def test_only_what_both_measured_counts():
    found = ranks.ranks(frame([1, 2, np.nan, 4, 5, 6], [1, 2, 3, np.nan, 5, 6]))
    (row,) = found.to_dict("records")
    assert (row["pairs"], row["points"]) == (2, 4)
    assert row["overall"] == row["within"] == 1.0


def test_without_real_images_there_is_nothing_to_compare():
    only = frame([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]).query("source == 'psaq'")
    assert ranks.ranks(only).empty
    assert ranks.ranks(frame([1] * 6, [2] * 6, calibrator="minmax")).empty


def test_the_text_says_what_is_compared():
    text = ranks.markdown(ranks.ranks(frame([3, 2, 1, 3, 2, 1], [1, 2, 3, 1, 2, 3], model="vit", suite="toy")))
    assert "## vit, scheme x: x on toy, preset x" in text
    assert any(line.split("|")[1:3] == [" psaq   ", " -1.00              "] for line in text.splitlines()), text
