"""What calibrators lose without real images: the plain formulas, who is compared, and who is left out."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from harness.catalog.catalog import Catalog
from harness.report import stats
from harness.report.frame import Outcome, cells_frame
from harness.report.page.page import Images, page
from harness.report.results import load
from harness.report.sections import cross, ranks, robustness
from harness.report.sections.robustness import EVERY
from harness.report.summary import summarise
from harness.results.store import Store

from . import synthetic as fake
from .test_cross import crossed, report

# calibrator -> accuracy lost on each source; `ema` loses three times what `omse` does without real images
LOST = {
    "omse": {"noise": 6.0, "psaq": 3.0, "clamp": 2.0, "real": 1.0},
    "ema": {"noise": 18.0, "psaq": 9.0, "clamp": 6.0, "real": 0.0},
}


def fill(store: Store, seeds: int = 3, leave_out: tuple[str, str] = ("", "")) -> None:
    for calibrator, sources in LOST.items():
        for source, lost in sources.items():
            for seed in range(seeds) if (source, calibrator) != leave_out else range(0):
                fake.save(store, crossed(source, calibrator, seed), fake.outcome(90 - lost, seed))


def made(store: Store, *unverified: str, resampled: bool = False) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The frame, and the outcomes of every method, (seeds, images)."""
    records = store.records()
    plain = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records}
    outcomes: dict[str, Outcome] = {
        key: stats.resample(lambda counts, right=right: 100 * counts @ right / len(right), len(right))
        if resampled
        else right
        for key, right in plain.items()
    }
    cells = cells_frame(records, outcomes)
    cells["verified"] = ~cells["method"].isin(unverified)
    crosses = cross.crosses(cells, summarise(cells, outcomes), outcomes, {r.key: r.cell.method for r in records})
    by_method = cells.sort_values("seed").groupby("method")["key"]
    return robustness.robustness(crosses, cells, outcomes), {
        method: np.stack([plain[key] for key in keys]).astype(int) for method, keys in by_method
    }


def losses(right: dict[str, np.ndarray], calibrator: str, *sources: str) -> np.ndarray:
    """Of every seed and image."""
    return sum(right[f"{source}+{calibrator}"] - right[f"real+{calibrator}"] for source in sources)


def test_the_numbers_are_the_plain_formulas(store: Store) -> None:
    fill(store)
    frame, right = made(store)
    rows = frame.set_index(["calibrator", "source"])
    assert set(frame["source"]) == {"noise", "psaq", "clamp", EVERY}
    for calibrator in LOST:
        for source in ("noise", "psaq", "clamp"):
            by_seed = 100 * losses(right, calibrator, source).mean(axis=1)
            assert rows.loc[(calibrator, source), "to_real"] == pytest.approx(by_seed.mean())
            assert rows.loc[(calibrator, source), "to_real_sd"] == pytest.approx(by_seed.std(ddof=1))
        mean = rows.loc[[(calibrator, source) for source in ("noise", "psaq", "clamp")], "to_real"].mean()
        assert rows.loc[(calibrator, EVERY), "to_real"] == pytest.approx(mean)
    assert frame[frame["best"]][["calibrator", "source"]].to_numpy().tolist() == [["omse", EVERY]]
    apart = losses(right, "ema", "noise", "psaq", "clamp") - losses(right, "omse", "noise", "psaq", "clamp")
    found, row = stats.compare_counts(apart, 3), rows.loc[("ema", EVERY)]
    assert (row["to_best"], row["p_value"]) == (pytest.approx(100 * apart.mean() / 3), pytest.approx(found.p_value))
    by_image = 100 * apart.mean(axis=0) / 3
    assert row["seed_error"] == pytest.approx((100 * apart.mean(axis=1) / 3).std(ddof=1) / 3**0.5)
    assert row["image_error"] == pytest.approx(by_image.std(ddof=1) / fake.IMAGES**0.5)
    assert (row["chosen"], row["p_holm"]) == (2, pytest.approx(found.p_value))  # one comparison, of two
    assert frame["p_value"].notna().sum() == 1


def test_metrics_that_are_no_mean_over_images_are_resampled(store: Store) -> None:
    """Of accuracies, where both can be had, the two agree."""
    fill(store)
    plain, found = made(store)[0], made(store, resampled=True)[0]
    for name in ("to_real", "to_real_sd", "to_best", "seed_error"):
        np.testing.assert_allclose(found[name], plain[name], atol=1e-9)
    np.testing.assert_allclose(found["image_error"], plain["image_error"], rtol=0.1)


def test_one_source_is_its_own_mean(store: Store) -> None:
    for calibrator in LOST:
        for source in ("psaq", "real"):
            for seed in range(3):
                fake.save(store, crossed(source, calibrator, seed), fake.outcome(90 - LOST[calibrator][source], seed))
    frame, _ = made(store)
    assert set(frame["source"]) == {"psaq"}
    assert frame["best"].sum() == frame["p_value"].notna().sum() == 1


def test_without_real_images_nothing_is_lost(store: Store) -> None:
    fill(store, leave_out=("real", "ema"))
    frame, _ = made(store)
    assert frame.empty  # one calibrator has no other


def test_who_lacks_a_source_has_no_mean(store: Store) -> None:
    fill(store, leave_out=("psaq", "ema"))
    fake.save(store, crossed("psaq", "minmax"), fake.outcome(80, 0))
    fake.save(store, crossed("real", "minmax"), fake.outcome(89, 0))
    frame, _ = made(store)
    means = frame[frame["source"] == EVERY]
    assert means["calibrator"].tolist() == ["omse"]
    assert means["best"].all()
    assert frame["p_value"].isna().all()
    shown = robustness.table(frame)
    assert shown.loc["minmax"].tolist()[-1] == shown.loc["ema †"].tolist()[-1] == "–"
    assert shown.loc["minmax", "psaq"].endswith("[1/3]")


def test_sources_without_common_calibrators_give_no_verdict(store: Store) -> None:
    for source, calibrators in (("psaq", LOST), ("clamp", ("minmax", "percentile"))):
        for calibrator in calibrators:
            for name in (source, "real"):
                for seed in range(3):
                    fake.save(store, crossed(name, calibrator, seed), fake.outcome(90 - 5 * (name != "real"), seed))
    frame, _ = made(store)
    assert set(frame["source"]) == {"psaq", "clamp"}
    assert not frame["best"].any()
    assert not any(mark in cell for cell in robustness.table(frame).to_numpy().ravel() for mark in "=?*")


def test_seeds_that_real_images_lack_leave_a_source_out(store: Store) -> None:
    for calibrator in LOST:
        for source, seeds in (("psaq", range(3)), ("clamp", range(3, 6)), ("real", range(3))):
            for seed in seeds:
                fake.save(store, crossed(source, calibrator, seed), fake.outcome(90 - LOST[calibrator][source], seed))
    frame, _ = made(store)
    assert set(frame["source"]) == {"psaq"}
    assert frame["p_value"].notna().sum() == 1


def test_unverified_results_are_shown_and_not_compared(store: Store) -> None:
    fill(store)
    frame, _ = made(store, "psaq+omse")
    means = frame[frame["source"] == EVERY].set_index("calibrator")
    assert means["verified"].to_dict() == {"omse": False, "ema": True}
    assert means["best"].to_dict() == {"omse": False, "ema": True}
    assert frame["p_value"].isna().all()
    text = robustness.markdown(frame)
    assert text.count("§ ") >= 2
    assert "`§` marks a result that could not be checked" in text
    assert not made(store, "real+omse", "real+ema")[0]["best"].any()


def test_each_ceiling_has_a_table(store: Store) -> None:
    fill(store)
    for calibrator in LOST:
        options = {"preset": "quick", "parts": {"source:real": {"images": 64}, f"calibrator:{calibrator}": {}}}
        for seed in range(3):
            fake.save(store, crossed("real[images=64]", calibrator, seed, options=options), fake.outcome(91, seed))
    frame, _ = made(store)
    assert set(frame["ceiling"]) == {"real", "real[images=64]"}
    assert [title.rpartition(", ")[2] for title, _ in robustness.split(frame)] == [
        "against real",
        "against real[images=64]",
    ]
    assert frame.groupby("ceiling")["best"].sum().tolist() == [1, 1]
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records}
    cells, names = cells_frame(records, outcomes), {r.key: r.cell.method for r in records}
    both = ranks.ranks(cross.crosses(cells, summarise(cells, outcomes), outcomes, names))
    assert sorted(both["ceiling"] + "/" + both["source"]) == [
        f"{ceiling}/{source}" for ceiling in ("real", "real[images=64]") for source in ("clamp", "noise", "psaq")
    ]
    assert "against real[images=64]" in " ".join(title for title, _ in ranks.split(both))


@pytest.mark.parametrize("name", ["mean", "calibrator", "source"])
def test_a_source_may_have_a_name_that_tables_use(store: Store, name: str) -> None:
    for calibrator in LOST:
        for source, lost in {"real": 0, name: 9, "psaq": 3}.items():
            for seed in range(3):
                fake.save(store, crossed(source, calibrator, seed), fake.outcome(90 - lost, seed))
    frame, right = made(store)
    text = robustness.markdown(frame)
    header = next(line for line in text.splitlines() if line.startswith("| calibrator"))
    assert [head.strip() for head in header.split("|")[1:-1]] == ["calibrator", "psaq", name, "mean"]
    rows = frame.set_index(["calibrator", "source"])
    assert rows.loc[("ema", name), "to_real"] == pytest.approx(100 * losses(right, "ema", name).mean())
    assert set(frame.loc[frame["best"], "source"]) == {EVERY}
    shown = page(load(store, Catalog.default()), Images(store.images, store.snapshots, store.pictures), None, None)
    assert "Difference to real images" in shown


def test_the_files_say_who_loses_least(store: Store, tmp_path) -> None:
    fill(store)
    folder = report(store, tmp_path)
    text = (folder / "robustness.md").read_text()
    header, _, first, second = [line for line in text.splitlines() if line.startswith("|")]
    assert [name.strip() for name in header.split("|")[1:-1]] == [
        "calibrator",
        "noise (floor)",
        "clamp",
        "psaq",
        "mean",
    ]
    assert re.match(r"\| omse .*\*\*-\d\.\d\d ± \d\.\d\d\*\* \|$", first)
    assert re.match(r"\| ema † .* -\d+\.\d\d ± \d\.\d\d( =)? +\|$", second)
    assert len(pd.read_csv(folder / "robustness.csv")) == 8
    assert "`†` learns quantizer parameters" in text
    shown = page(load(store, Catalog.default()), Images(store.images, store.snapshots, store.pictures), None, None)
    assert shown.count("<summary>Difference to real images: vit_a, W4A4") == 1
    (tmp_path / "less").mkdir()
    less = Store(tmp_path / "less")
    fake.save(less, crossed("psaq", "omse"), fake.outcome(80, 0))
    assert not (report(less, tmp_path) / "robustness.md").exists()  # none is left from earlier
