"""Verdicts: how often they are wrong, by simulation, and where tables give none."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from harness.report import stats, tables, verdicts
from harness.report.figures.cross import cross_figure
from harness.report.figures.pareto import front
from harness.report.frame import cells_frame
from harness.report.page import grids
from harness.report.sections import ablation, cross, ranks
from harness.report.summary import adjusted, paired, summarise
from harness.results.store import Store

from . import simulation
from . import synthetic as fake
from .simulation import ALPHA, World

SPREADS = ((0, 0), (0.5, 0.5), (2, 2), (5, 5), (10, 10), (0, 10))


def at_most(rate: float, runs: int, level: float = ALPHA) -> bool:
    """Whether a simulated share is no larger than the level, but for the error of the simulation (0.1 %)."""
    return rate <= level + 3.09 * (level * (1 - level) / runs) ** 0.5


@pytest.mark.fast(seeds=3)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_k2_methods_of_equal_accuracy_are_told_apart_at_most_as_often_as_the_level_says(seeds: int) -> None:
    """FAULTS K2 "two methods of equal expected accuracy with 5 points of spread over seeds": spreads of 0 to 10."""
    rates = []
    for spreads in SPREADS:
        for images, runs in ((500, 600), (50_000, 200)):
            rate = simulation.verdicts(World(seeds, images, spreads), runs)
            assert at_most(rate, runs), (spreads, images, rate)
            rates.append(rate)
    assert np.mean(rates) <= ALPHA


def test_k2_the_row_with_three_seeds_as_the_report_compares_it() -> None:
    """FAULTS K2, the same row: `worse <0.001` came up in half of all tables; one seed has no verdict."""
    patterns, counts = simulation.drawn(World(3, 2000, (5, 5)), 200)
    found = []
    for run in counts:
        ours, best = (dict(enumerate(right)) for right in simulation.arrays(patterns, run))
        found.append(paired(ours, best)["p_value"])
        assert np.isnan(paired({0: ours[0]}, {0: best[0]})["p_value"])
    assert at_most(float(np.mean(np.array(found) <= ALPHA)), 200)
    assert np.mean(np.array(found) < 0.001) <= 0.005


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "world",
    [
        World(accuracy=99.5, spreads=(0.2, 0.2)),
        World(accuracy=99.8, spreads=(0, 0)),  # a few discordant images
        World(accuracy=99.9, spreads=(0, 0.1), images=500),
        World(correlation=0.9),
        World(effects="laplace"),
        World(effects="t3"),
        World(effects="skewed"),  # alike in both methods, so that it cancels
    ],
    ids=lambda world: f"{world.accuracy:g}-{world.correlation:g}-{world.effects}",
)
def test_the_level_holds_near_100_percent_with_correlated_seeds_and_heavy_tails(world: World, seeds: int) -> None:
    runs = 600
    assert at_most(simulation.verdicts(World(**{**vars(world), "seeds": seeds}), runs), runs)


def test_what_no_few_seeds_can_show_is_not_claimed() -> None:
    """A failure of one seed in ten is mostly not seen in three: docs/report.md says that the level does not hold."""
    assert simulation.verdicts(World(effects="rare", spreads=(0, 5)), 200) > 0.2
    assert at_most(simulation.verdicts(World(effects="rare"), 400), 400)  # if both methods have it, it does


@pytest.mark.parametrize(
    "world",
    [
        World(2, 500, (0, 0)),
        World(3, 500, (5, 5)),
        World(3, 500, (0, 10)),
        World(5, 500, (0.5, 0.5)),
        World(3, 1500, (2, 2)),
    ],
    ids=lambda world: f"{world.seeds}-{world.images}-{world.spreads}",
)
def test_the_level_holds_for_bootstrapped_metrics(world: World) -> None:
    assert at_most(simulation.resampled_verdicts(world, 100), 100)


def test_true_differences_are_found() -> None:
    """Power beside the level: more seeds see more, and a spread of 5 points hides a difference of 5."""
    found = {seeds: simulation.verdicts(World(seeds, spreads=(0.5, 0.5), difference=3), 200) for seeds in (2, 3, 5)}
    assert found[2] < found[3] < found[5]
    assert found[5] > 0.9
    assert simulation.verdicts(World(3, difference=5), 200) < 0.3
    assert simulation.resampled_verdicts(World(5, 500, (0.5, 0.5), difference=5), 40) > 0.9


def test_the_screen_of_the_simulation_leaves_out_no_verdict() -> None:
    world = World(3, 500, (2, 2), difference=4)
    patterns, counts = simulation.drawn(world, 60)
    all_runs = [stats.compare_outcomes(*simulation.arrays(patterns, run)).p_value <= ALPHA for run in counts]
    assert 0 < sum(all_runs) < 60
    assert simulation.verdicts(world, 60) == sum(all_runs) / 60


def family(methods: int, runs: int, correct: bool) -> float:
    """Share of tables of equally good methods with 5 seeds in which any differs from the best."""
    rng = np.random.default_rng(0)
    found = 0
    for values in rng.normal(size=(runs, methods, 5)):
        best = values.mean(axis=1).argmax()
        rows = []
        for other in np.delete(values, best, axis=0) - values[best]:
            p = stats.seeded_p(other.mean(), other.var(ddof=1) / 5, 0.0, 5, 2000)
            rows.append({"p_value": p, "chosen": methods if correct else 0})
        found += min(adjusted(rows)) <= ALPHA
    return found / runs


def test_choosing_the_best_by_the_result_that_is_tested_is_paid_for() -> None:
    """A further member: with eight equal methods, the best is not told from the others either."""
    assert not at_most(family(8, 300, correct=False), 300)
    assert at_most(family(8, 300, correct=True), 300)


# Tables


def frames(store: Store) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    records = store.records()
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    cells = cells_frame(records, outcomes)
    return cells, summarise(cells, outcomes), outcomes


def fill_cross(store: Store, seeds: int) -> None:
    for source, loss in {"noise": 20, "psaq": 9, "real": 2}.items():
        for calibrator in ("minmax", "omse"):
            options = {"preset": "quick", "parts": {f"source:{source}": {}, f"calibrator:{calibrator}": {}}}
            for seed in range(seeds):
                own = fake.record(f"{source}+{calibrator}", seed, options=options)
                fake.save(store, own, fake.outcome(90 - loss, seed))


def test_one_seed_has_a_difference_and_no_verdict(store: Store) -> None:
    """FAULTS K2, the row of verdicts from one seed: the comparison in Markdown, LaTeX, CSV and the page's grid."""
    fake.fill(store, models=["vit_a"], seeds=1, bits=["W4A4"])
    cells, summary, _ = frames(store)
    assert summary["p_holm"].isna().all()
    assert summary["to_best"].notna().sum() == 3
    text = tables.comparison(summary, cells)
    assert not re.search(r"(better|worse) [<0]", text.split("- **Δ**")[0])
    assert re.search(r"noise\+minmax \(floor\).*\| one seed \|", text)
    assert verdicts.NO_VERDICT in text
    assert "would be found" not in text
    assert "one seed" in tables.latex(summary)
    (standing,) = [column for column in grids.results_grid(summary).columns if column.name == "vs best"]
    assert set(standing.levels) == {"highest", "one seed", ""}


def test_an_ablation_from_one_seed_has_no_verdict(store: Store) -> None:
    """A further member."""
    for name, crossover, accuracy in (("clamp", 1, 85), ("clamp[crossover=0]", 0, 60)):
        options = {"preset": "quick", "parts": {"method:clamp": {"crossover": crossover}}}
        fake.save(store, fake.record(name, bits="W4A4", options=options), fake.outcome(accuracy, 1))
    cells, summary, outcomes = frames(store)
    names = {record.key: record.cell.method for record in store.records()}
    frame = ablation.ablations(cells, summary, outcomes, names, {})
    text = ablation.markdown(frame, cells)
    assert re.search(r"crossover=0 +\| [\d.]+ +\| +-[\d.]+ \| one seed \|", text)
    assert verdicts.NO_VERDICT in text


def test_a_cross_and_its_heat_map_from_one_seed_have_no_verdict(store: Store) -> None:
    """A further member: what has no mark in the cross table differs, so one seed must be marked."""
    fill_cross(store, seeds=1)
    cells, summary, outcomes = frames(store)
    names = {record.key: record.cell.method for record in store.records()}
    frame = cross.crosses(cells, summary, outcomes, names)
    text = cross.markdown(frame, cells).split("- Rows")[0]
    assert len(re.findall(r"\d \?", text)) == 4
    assert " =" not in text
    assert verdicts.NO_VERDICT in text
    assert sum(shown.get_text().endswith("?") for shown in cross_figure(frame).axes[0].texts) == 4


def test_the_seeds_in_common_decide(store: Store) -> None:
    """Further members: methods with disjoint seeds are not compared, one in common is one seed, two are two."""
    for method, seeds in {"clamp": (0, 1, 2), "psaq": (3, 4), "noise": (0, 5), "other": (1, 2)}.items():
        for seed in seeds:
            fake.save(store, fake.record(method, seed), fake.outcome(90 if method == "clamp" else 60, seed))
    cells, summary, _ = frames(store)
    shown = {row["method"]: tables.significance(row) for row in summary.to_dict("records")}
    assert shown == {"clamp": "best", "psaq": "–", "noise": "one seed", "other": shown["other"]}
    assert shown["other"].startswith(("worse", "="))
    assert summary.set_index("method")["common_seeds"].to_dict() == {"clamp": 0, "psaq": 0, "noise": 1, "other": 2}
    assert "[2/6]" in tables.comparison(summary, cells)


def test_a_difference_of_more_than_all_images_is_no_difference_to_find(store: Store) -> None:
    for method, accuracies in {"clamp": (60, 90), "psaq": (75, 60), "noise": (80, 40)}.items():
        for seed, accuracy in enumerate(accuracies):
            fake.save(store, fake.record(method, seed), fake.outcome(accuracy, seed))
    text = verdicts.sensitivity(frames(store)[1])
    assert text == f"{verdicts.TOO_FEW}\n"


def test_the_difference_that_would_be_found_is_that_of_rows_near_the_best(store: Store) -> None:
    """B2 of the review: rows 40 points apart have nothing to say of the difference between two close methods."""
    for seed in range(3):
        for method, accuracy in {"clamp": 85, "psaq": 84.5}.items():
            fake.save(store, fake.record(method, seed), fake.outcome(accuracy, seed))
    found = re.search(r"difference of ([\d.]+) points", verdicts.sensitivity(frames(store)[1]))
    close = float(found[1])
    for seed in range(3):
        for method in ("noise", "worse", "worst"):
            fake.save(store, fake.record(method, seed), fake.outcome(40 + 15 * (seed == 1), seed))
    _, summary, _ = frames(store)
    beside = float(re.search(r"difference of ([\d.]+) points", verdicts.sensitivity(summary))[1])
    alone = stats.detectable_difference(
        *(summary.set_index("method").loc["psaq", ["seed_error", "image_error"]] ** 2), 3, fake.IMAGES, alpha=0.05 / 10
    )
    assert beside == pytest.approx(alone, abs=0.05)
    assert close < beside  # one comparison of one, against one of four whose best was chosen of five


# What could not be checked


def with_marks(cells: pd.DataFrame, *methods: str) -> pd.DataFrame:
    return cells.assign(verified=~cells["method"].isin(methods))


def test_an_unverified_result_is_never_best_bold_or_ranked(store: Store) -> None:
    """FAULTS K2 "a plugin that quantizes weights only … bold best with 94.00": its row carries a mark instead."""
    for seed in range(3):
        for method, accuracy in {"cheat": 94, "clamp": 81, "noise": 60}.items():
            fake.save(store, fake.record(method, seed), fake.outcome(accuracy, seed))
    cells, _, outcomes = frames(store)
    for marked in (with_marks(cells, "cheat"), with_marks(cells, "cheat").replace({"verified": {True: np.nan}})):
        summary = summarise(marked, outcomes)
        assert summary.loc[summary["best"], "method"].tolist() == ["clamp"]
        text = tables.comparison(summary, marked)
        assert re.search(r"^\| cheat +\| 9\d\.\d\d ± [\d.]+ § +\|.*\| – +\|$", text, flags=re.MULTILINE)
        assert tables.order(summary) == ["clamp", "noise", "cheat"]
        assert "- `§` marks a result that could not be checked" in text
        assert summary["p_value"].notna().sum() == 1
        assert r"\S{}" in tables.latex(summary)
    (shown,) = [c for c in grids.cells_grid(with_marks(cells, "cheat")).columns if c.name.startswith("top-1")]
    assert sum("§" in level for level in shown.levels) == cells.loc[cells["method"] == "cheat", "accuracy"].nunique()


def test_an_unverified_base_or_source_decides_nothing(store: Store) -> None:
    """Further members: an ablation's base, a cross table's source and its ranks, the line of the costs' figure."""
    for name, crossover in (("clamp", 1), ("clamp[crossover=0]", 0)):
        options = {"preset": "quick", "parts": {"method:clamp": {"crossover": crossover}}}
        for seed in range(3):
            fake.save(store, fake.record(name, seed, options=options), fake.outcome(85 - 20 * crossover, seed))
    fill_cross(store, seeds=2)
    plain, _, outcomes = frames(store)
    names = {record.key: record.cell.method for record in store.records()}
    cells = with_marks(plain, "clamp", "psaq+minmax", "psaq+omse")
    summary = summarise(cells, outcomes)
    assert ablation.ablations(cells, summary, outcomes, names, {})["p_value"].isna().all()
    crossed = cross.crosses(cells, summary, outcomes, names)
    assert set(crossed.loc[crossed["best"], "source"]) == {"noise"}
    assert cross.markdown(crossed, cells).count("§ ?") == 2
    assert set(ranks.ranks(crossed)["source"]) == {"noise"}
    assert set(ranks.ranks(cross.crosses(plain, summarise(plain, outcomes), outcomes, names))["source"]) == {
        "noise",
        "psaq",
    }
    accuracy = verdicts.checked(pd.DataFrame({"accuracy": [94.0, 81.0], "verified": [False, True]}))
    assert front(np.array([1.0, 1.0]), accuracy.to_numpy()).tolist() == [False, True]
