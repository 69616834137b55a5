"""Verdicts: what fails, what is expected, what is only noted."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from harness.api.errors import UsageError
from harness.api.plugins import Metric, TaskInfo
from harness.plan.plan import Planned
from harness.regress.baseline import Baseline, Entry, Update, read_baseline, renewed, write_baseline
from harness.regress.environment import Environment, differences, flags_in, sentence
from harness.regress.judge import judge
from harness.regress.measure import Measurement, measurement
from harness.regress.publish import commands, junit_xml
from harness.regress.rule import Limits
from harness.regress.show import Report, explain, markdown, summary
from harness.regress.suite import Case, read_suite
from harness.results.record import Provenance, Record

ROOT = Path(__file__).parents[2]
IMAGES = 2000
ENVIRONMENT = Environment(versions={"torch": "2"}, hardware={}, variables={}, device="cpu", threads=1)
OTHER = ENVIRONMENT.model_copy(update={"threads": 2})
UPDATE = Update(reason="a <reason> | why", commit="c" * 40, date="2026-01-02T00:00:00+00:00", modified=False)
FACTS = {"weight sites": 26, "mean weight bits": 4.0}


def outcomes(*flipped: int) -> np.ndarray:
    """90 % right: all but the first 200; `flipped` are turned over."""
    right = np.arange(IMAGES) >= 200
    right[list(flipped)] ^= True
    return right


def measured(cell, right: np.ndarray, **facts) -> Measurement:
    return Measurement(cell, "top1", 100 * float(right.mean()), right, {**FACTS, **facts})


@pytest.fixture
def run(toy_cell):
    """Verdicts of cases that differ in their seed, from what was measured of each."""

    def verdicts(*rights, repeatable=True, xfail=None, change=lambda m: m, missing=()):
        cells = [toy_cell(seed=seed) for seed in range(len(rights))]
        cases = [Case(Planned(cell, "new", True, None, "tiny"), 0.2, 1.5, "r", xfail) for cell in cells]
        old = {case.name: Entry.of(measured(case.cell, outcomes())) for case in cases}
        new = {case.name: change(measured(case.cell, r)) for case, r in zip(cases, rights, strict=True)}
        new = {name: m for name, m in new.items() if name not in missing}
        baseline = Baseline(environment=ENVIRONMENT, updates=(UPDATE,), cases=old)
        environment = ENVIRONMENT if repeatable else OTHER
        return judge(cases, baseline, new, dict.fromkeys(missing, "ValueError: x"), environment)

    return verdicts


def status(verdicts) -> list[str]:
    return [verdict.status for verdict in verdicts]


LOST = range(200, 300)
GAINED = range(100)


def test_equal_outcomes_pass(run):
    (verdict,) = run(outcomes())
    assert (verdict.status, verdict.problems, verdict.notes) == ("ok", (), ())
    assert (verdict.paired.up, verdict.paired.down, verdict.paired.p_adjusted) == (0, 0, 1.0)
    assert verdict.sensitivity.net == pytest.approx(0.25)  # 5 images, tolerance 4
    assert verdict.sensitivity.true >= 0.25


@pytest.mark.parametrize(
    ("flipped", "expected", "words"),
    [
        (LOST[:4], "ok", ""),
        (LOST[:5], "fail", "drop of 0.25 points, beyond the tolerance of 0.2 (0 images gained, 5 lost"),
        (GAINED[:5], "fail", "gain that nobody has explained of 0.25 points"),
        ([*LOST[:3], *GAINED[:2]], "fail", "5 images flip, more than the 4"),
        ([*LOST[:2], *GAINED[:2]], "ok", ""),
    ],
)
def test_where_outcomes_repeat_a_difference_needs_no_significance(run, flipped, expected, words):
    (verdict,) = run(outcomes(*flipped))
    assert verdict.status == expected
    assert words in " ".join(verdict.problems)


@pytest.mark.parametrize(
    ("flipped", "expected", "words"),
    [
        (LOST[:30], "ok", ""),
        (LOST[:31], "fail", "drop of 1.55 points"),
        (GAINED[:31], "fail", "gain"),
        ([*LOST[:50], *GAINED[:50]], "ok", ""),
        ([*LOST[:51], *GAINED[:50]], "fail", "101 images flip, more than the 100"),
    ],
)
def test_elsewhere_the_wide_tolerance_holds(run, flipped, expected, words):
    (verdict,) = run(outcomes(*flipped), repeatable=False)
    assert verdict.status == expected
    assert words in " ".join(verdict.problems)


def test_p_values_are_adjusted_over_the_cases(run):
    verdicts = run(outcomes(*LOST[:12]), outcomes(*LOST[:11]), outcomes(), repeatable=False)
    assert verdicts[0].paired.p_adjusted == pytest.approx(3 * 2 / 2**12)
    assert verdicts[1].paired.p_adjusted == pytest.approx(2 * 2 / 2**11)
    # 65 lost and 34 gained, net 31 of 30: p is 0.002, significant alone and not among 30 cases.
    alone = outcomes(*range(200, 265), *GAINED[:34])
    assert status(run(alone, repeatable=False)) == ["fail"]
    among = run(alone, *[outcomes()] * 29, repeatable=False)
    assert set(status(among)) == {"ok"}
    assert "beyond its tolerance, but not significantly" in among[0].notes[0]


def test_facts_must_be_equal_and_are_named(run):
    (verdict,) = run(outcomes(), change=lambda m: replace(m, facts={"weight sites": 25, "mean weight bits": 4.25}))
    assert verdict.status == "fail"
    assert verdict.problems == ("weight sites: 26 → 25", "mean weight bits: 4 → 4.25")
    (new,) = run(outcomes(), change=lambda m: replace(m, facts={**m.facts, "image size": "32×32×1"}))
    assert new.problems == ("image size: nothing → 32×32×1",)


@pytest.mark.parametrize(("counted", "elsewhere"), [(780, "ok"), (773, "fail"), (32, "fail")])
def test_a_search_may_count_one_candidate_more_in_another_environment(run, counted, elsewhere):
    """Rounding decides ties there; in the baseline's own environment every count is exact."""

    def change(m):
        return replace(m, facts={**m.facts, "counted candidates": counted})

    before = measured

    def old(cell, right):
        return before(cell, right, **{"counted candidates": 781})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "measured", old)
        (verdict,) = run(outcomes(), change=change)
        (other,) = run(outcomes(), repeatable=False, change=change)
    assert verdict.problems == (f"counted candidates: 781 → {counted}",)
    assert other.status == elsewhere
    assert f"counted candidates: 781 → {counted}" in (*other.problems, *other.notes)


def test_other_data_cannot_be_paired(run):
    def other(m):
        return replace(m, cell=m.cell.model_copy(update={"data": "d" * 30 + "e"}))

    (verdict,) = run(outcomes(), change=other)
    assert (verdict.status, verdict.paired) == ("fail", None)
    assert verdict.problems == ("evaluation data: toy data 1 → dddddddddddd…",)


def test_changed_options_are_noted(run):
    def other(m):
        return replace(m, cell=m.cell.model_copy(update={"options": {"preset": "default", "parts": {"a": {"b": 1}}}}))

    (verdict,) = run(outcomes(), change=other)
    assert verdict.status == "ok"
    assert "option a.b: none → 1" in verdict.notes


def test_an_expected_failure_that_passes_fails(run):
    (failing,) = run(outcomes(*LOST), xfail="issue 7")
    assert (failing.status, failing.fails) == ("xfail", False)
    assert "expected: issue 7" in explain(failing)
    (passing,) = run(outcomes(), xfail="issue 7")
    assert (passing.status, passing.fails) == ("xpass", True)
    assert "it was expected to fail (issue 7) and passes; remove its xfail from the suite" in explain(passing)


def test_a_case_without_a_number(run):
    name = "toy tiny toynoise W4A8 full seed 0"
    (verdict,) = run(outcomes(), missing=[name])
    assert (verdict.status, verdict.fails) == ("missing", False)
    assert explain(verdict) == [f"MISSING {name}: 90.00 → no number", "it gave no number: ValueError: x"]


@pytest.fixture
def report(run):
    missing = "toy tiny toynoise W4A8 full seed 2"
    verdicts = run(outcomes(*LOST), outcomes(), outcomes(), missing=[missing])
    return Report("Gate", verdicts, [("torch", "2", "3")], UPDATE)


def test_markdown_names_what_fails(report):
    text = markdown(report)
    assert "3 cases: 1 ok, 1 fail, 1 missing." in text
    assert "- **FAIL toy tiny toynoise W4A8 full seed 0: 90.00 → 85.00**" in text
    assert "a \\<reason> \\| why" in text
    assert "| torch | 2 | 3 |" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| toy")}
    assert widths == {11}


def test_annotations_and_junit(report):
    lines = commands(report)
    assert len(lines) == 2
    assert lines[0].startswith("::error title=toy tiny toynoise W4A8 full seed 0%3A 90.00 → 85.00::drop of 5.00 points")
    assert all("\n" not in line for line in lines)
    suite = ET.fromstring(junit_xml(report).partition("\n")[2]).find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    assert suite.find("testcase/failure").get("message").startswith("FAIL toy tiny")
    assert summary(report) == "3 cases: 1 ok, 1 fail, 1 missing."


def test_junit_survives_control_characters(run):
    (verdict,) = run(outcomes(*LOST), xfail="a \x1b[31mred\x1b[0m <reason> & more")
    ET.fromstring(junit_xml(Report("Gate", [verdict], [], UPDATE)).partition("\n")[2])


# --- the baseline's file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 7, 8, 9, 2000])
def test_outcomes_survive_the_file(toy_cell, tmp_path, images):
    right = np.random.default_rng(images).random(images) < 0.8
    entry = Entry.of(Measurement(toy_cell(), "top1", 100 * float(right.mean()), right, FACTS))
    name = "toy tiny toynoise W4A8 full seed 0"
    baseline = Baseline(environment=ENVIRONMENT, updates=(UPDATE,), cases={name: entry})
    write_baseline(tmp_path / "b.json", baseline)
    again = read_baseline(tmp_path / "b.json")
    assert again == baseline
    assert (again.cases[name].outcomes() == right).all()


def test_renewing_keeps_what_is_expected_to_fail(toy_cell):
    cells = [toy_cell(seed=seed) for seed in (0, 1)]
    known, plain = (
        Case(Planned(cell, "new", True, None, "tiny"), 0.2, 1.5, "r", xfail)
        for cell, xfail in zip(cells, ["issue 7", None], strict=True)
    )
    before = {case.name: Entry.of(measured(case.cell, outcomes())) for case in (known, plain)}
    old = Baseline(environment=ENVIRONMENT, updates=(UPDATE,), cases=before)
    now = [(case, Entry.of(measured(case.cell, outcomes(*LOST)))) for case in (known, plain)]
    update = UPDATE.model_copy(update={"reason": "second"})
    new, kept = renewed(old, now, ENVIRONMENT, update)
    assert kept == [known.name]
    assert [new.cases[case.name].value for case in (known, plain)] == [90.0, 85.0]
    assert [each.reason for each in new.updates] == [UPDATE.reason, "second"]
    assert new.cases[known.name].environment is None
    other = ENVIRONMENT.model_copy(update={"threads": 7})
    moved, _ = renewed(new, now, other, update)  # the old value is of the old environment
    assert [moved.cases[case.name].environment for case in (known, plain)] == [ENVIRONMENT, None]
    (verdict,) = judge([known], moved, {known.name: measured(known.cell, outcomes(*LOST))}, {}, other)
    assert (verdict.limits.tolerance, verdict.applies) == (1.5, "elsewhere: threads differs")
    again, _ = renewed(moved, now, ENVIRONMENT, update)
    assert again.cases[known.name].environment is None
    first, kept = renewed(None, now, ENVIRONMENT, update)
    assert (first.cases[known.name].value, kept) == (85.0, [])


# --- environments ---------------------------------------------------------------------------------------------------


def test_differences_of_environments():
    other = ENVIRONMENT.model_copy(update={"threads": 2, "versions": {"torch": "3", "timm": "1"}})
    assert differences(ENVIRONMENT, ENVIRONMENT) == []
    assert differences(ENVIRONMENT, other) == [("torch", "2", "3"), ("threads", "1", "2")]
    assert other.fingerprint != ENVIRONMENT.fingerprint
    old, new = (ENVIRONMENT.model_copy(update={"hardware": {"flags": f}}) for f in ("avx sse", "avx2 avx sse"))
    assert differences(old, new) == [("flags", "–", "avx2")]
    patch, minor = (ENVIRONMENT.model_copy(update={"versions": {"python": v}}) for v in ("3.11.9", "3.12.1"))
    python = ENVIRONMENT.model_copy(update={"versions": {"python": "3.11.7"}})
    assert differences(python, patch) == []
    assert differences(python, minor) == [("python", "3.11", "3.12")]
    assert sentence([]) != sentence([("torch", "2", "3")])


def test_an_environment_is_what_changes_arithmetic():
    fields = {"code": "c", "device": "cpu", "threads": 2, "git": None, "decisive": ["torch", "mmcv"]}
    versions = {"torch": "2", "pyarrow": "1"}
    harmless = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4", "KMP_BLOCKTIME": "0", "CUDA_VISIBLE_DEVICES": "1"}
    variables = harmless | {"MKL_CBWR": "AVX2", "OPENBLAS_NUM_THREADS": "4"}  # NumPy's, which is not told
    provenance = Provenance(versions=versions, hardware={"processor": "p", "cores": 4}, variables=variables, **fields)
    found = Environment.of(provenance)
    assert found.versions == {"torch": "2"}
    assert found.hardware["processor"] == "p"
    assert "cores" not in found.hardware
    assert found.variables == {"MKL_CBWR": "AVX2", "OPENBLAS_NUM_THREADS": "4"}


def test_instruction_sets():
    text = "processor\t: 0\nflags\t\t: fpu sse2 avx avx512f ht\n\nprocessor\t: 1\nflags\t\t: other\n"
    assert flags_in(text) == ("avx", "avx512f", "sse2")
    assert flags_in("Features : fp asimd sve\n") == ("asimd", "sve")
    assert flags_in("") == ()


# --- the committed suite, and what can be measured ------------------------------------------------------------------


def test_the_committed_suite_says_what_it_tolerates():
    suite = read_suite(ROOT / "results" / "baselines" / "embedded.toml")
    assert 15 <= sum(len(g.models) * len(g.methods) * len(g.bits) * g.seeds for g in suite.cases) <= 30
    for group in suite.cases:
        assert 0.1 <= group.tolerance <= 0.3 <= group.elsewhere <= 3.0
        told = re.search(r"(\d+) are tolerated", group.reason)
        assert int(told[1]) == round(Limits(suite.limit, group.elsewhere, repeatable=False).flips, 0)


UNPAIRED = "ap of 'toy tiny toynoise W4A8 full seed 0' image by image, and it is neither"


def saved(store, cell, metric, value, outcomes_of) -> Record:
    provenance = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)
    fields = {"key": cell.key, "cell": cell, "provenance": provenance, "started": "", "finished": ""}
    record = Record(**fields, status="ok", primary_metric=metric, metrics={metric: value})
    store.save(record, pd.DataFrame(outcomes_of))
    return record


def task(resampling: str = "", metrics: tuple[str, ...] = ()) -> TaskInfo:
    return TaskInfo("toy", "a toy", {"toy": "toy"}, "dfq_toy_suite:open_suite", resampling=resampling, metrics=metrics)


@pytest.mark.parametrize(
    ("made", "info", "message"),
    [
        (({"score": [0.5, 0.6]}, 55.0), task(), UNPAIRED),
        (({"correct": [True, False]}, 51.0), task(), "says ap 51.0000, but its outcomes give 50.0000 points"),
        (({"correct": []}, 0.0), task(), "has outcomes of no image"),
        (({"correct": [True, False]}, 50.0), task(metrics=(Metric("top1"),)), UNPAIRED),
        (({"confusion": [[3, 1, 0, 4]]}, 70.0), task("tasks.metrics.mean_iou:mean_iou_of"), UNPAIRED),
    ],
)
def test_only_what_is_made_of_outcomes_can_be_paired(toy_cell, store, made, info, message):
    outcomes_of, value = made
    record = saved(store, toy_cell(), "ap", value, outcomes_of)
    with pytest.raises(UsageError, match=message):
        measurement(record, store, info)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("read", [read_suite, read_baseline])
def test_k5_suites_and_baselines_are_regular_files(read, tmp_path):
    """FAULTS K5 "a FIFO, a device or a link to one as record, images, config or cache file"."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(UsageError, match=rf"{name} cannot be read \(it is not a regular file\)"):
            read(tmp_path / name)


@pytest.mark.parametrize("content", [b"\xff", b"a = " + b"[" * 100_000])
def test_malformed_suites_get_a_sentence(content, tmp_path):
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"suite .* cannot be read .*; correct the file"):
        read_suite(tmp_path / "s.toml")


def test_titles_of_markdown_are_text(report):
    """FAULTS K6: what a user calls a suite ends no heading and begins no link."""
    title = "a\n# b [c](http://d) <script> \u202e"
    first, second = markdown(replace(report, title=title)).splitlines()[:2]
    assert first == r"### a # b [c]\(http://d) \<script> \\u202e"
    assert second == ""
