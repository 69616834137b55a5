"""`regress` as it is typed, with the toy suite: what it measures, prints, writes and ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.api.errors import UsageError
from harness.results import history
from harness.results.provenance import Revision
from harness.results.store import Store

PLUGINS = Path(__file__).parent / "plugins"
ROOT = Path(__file__).parents[2]
BASELINE = Path("results/baselines/embedded.json")
SUITE = """
suite = "toy"
task = "toy"
preset = "default"
threads = 1

[float_models]
elsewhere = 5
reason = "a toy"

[[cases]]
models = ["tiny"]
methods = ["toynoise", "toyreal"]
bits = ["W8A8", "W4A8"]
tolerance = 2.5
elsewhere = 7.5
reason = "one image of 40"
"""
MISBEHAVING = """
[[cases]]
models = ["tiny"]
methods = ["toyraise", "toyskip"]
bits = ["W4A8"]
tolerance = 2.5
elsewhere = 7.5
reason = "they give no number"
"""


@pytest.fixture
def suite(tmp_path):
    """Writes the suite; `more` is appended, `change` replaces texts."""
    path = tmp_path / BASELINE.with_suffix(".toml")
    path.parent.mkdir(parents=True)

    def write(more: str = "", **change: str) -> Path:
        text = SUITE
        for old, new in change.items():
            text = re.sub(rf"^{old} = .*$", f"{old} = {new}", text, flags=re.MULTILINE)
        path.write_text(text + more)
        return path

    write()
    return write


@pytest.fixture
def regress(cli, suite, monkeypatch):
    """`regress` in this process, as if at one commit and not on GitHub."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    revision = Revision("a" * 40, "2026-01-02T03:04:05+00:00", modified=False)
    monkeypatch.setattr("harness.regress.gate.revision", lambda: revision)
    return lambda *arguments, code=0: cli("regress", "--in-process", *arguments, code=code)


@pytest.fixture
def pinned(regress):
    """`regress` with a baseline."""
    regress("--update-baseline", "first")
    return regress


@pytest.fixture
def broken(pinned, monkeypatch):
    """`regress` with a fault: real images come out four times too bright, so that weights are rounded coarsely."""
    import dfq_toy_impl

    plain = dfq_toy_impl.Real.images
    monkeypatch.setattr(dfq_toy_impl.Real, "images", lambda *a, **k: 4 * plain(*a, **k))
    return pinned


def test_an_unchanged_tree_passes(pinned):
    result = pinned()
    assert "5 cases: 5 ok." in result.output
    assert "The environment is that of the baseline" in result.output
    assert "renewed on 2026-01-02, commit aaaaaaaaaaaa: first" in result.output
    assert pinned().output.count(" ok ") == result.output.count(" ok ")
    assert not Path("results/runs").exists()
    assert not Path("results/cache").exists()


def test_the_baseline_says_what_why_and_where(pinned):
    document = json.loads(BASELINE.read_text())
    assert [update["reason"] for update in document["updates"]] == ["first"]
    assert document["environment"]["versions"]["torch"]
    assert document["environment"]["threads"] == 1
    case = document["cases"]["toy tiny toyreal W4A8 full seed 0"]
    assert case["images"] == 40
    assert len(case["correct"]) == 8  # 5 bytes in base64
    assert case["facts"]["weight sites"] == 1
    assert case["facts"]["image size"] == "4×4×1"
    assert "aaaa" in BASELINE.read_text()
    size = BASELINE.stat().st_size
    assert size < 10_000
    pinned("--update-baseline", "second")
    reasons = [update["reason"] for update in json.loads(BASELINE.read_text())["updates"]]
    assert reasons == ["first", "second"]


def test_a_fault_fails_and_names_the_cells(broken, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    output = broken("--junit", "out/gate.xml", code=1).output
    line = re.search(r"^FAIL (toy tiny toyreal W4A8 full seed 0: 22\.50 → \d+\.\d\d)$", output, re.MULTILINE)
    assert line
    assert "FAIL toy tiny toynoise" not in output
    assert re.search(r"::error title=toy tiny toyreal W4A8 full seed 0%3A 22\.50 → ", output)
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("before\n### Regression gate, suite toy")
    assert f"**FAIL {line[1]}**" in summary
    suite = ET.parse("out/gate.xml").find("testsuite")
    assert int(suite.get("failures")) >= 1
    assert suite.find("testcase/failure").get("message").startswith("FAIL toy tiny toyreal")


@pytest.mark.slow
def test_nothing_stored_is_believed(pinned, monkeypatch):
    """Records and images of a healthy run do not hide a fault."""
    import dfq_toy_impl

    pinned("--out", "kept")
    assert len(Store(Path("kept")).records()) == 5
    monkeypatch.setattr(dfq_toy_impl.Noise, "images", lambda self, *a, **k: dfq_toy_impl.torch.ones(1, 1, 4, 4) / 100)
    assert "FAIL toy tiny toynoise W4A8" in pinned("--out", "kept", code=1).output


def test_a_renewed_baseline_accepts_what_is_there(broken):
    assert "FAIL toy tiny toyreal" in broken("--update-baseline", "brighter on purpose").output
    assert "5 cases: 5 ok." in broken().output


def test_a_known_failure_passes_and_a_healed_one_fails(pinned, suite):
    suite('xfail = "issue 7: too bright"\n', methods='["toyreal"]', bits='["W4A8"]')
    assert "keeps its old value, since it is expected to fail" in pinned("--update-baseline", "only real").output
    healed = pinned(code=1).output
    assert "XPASS toy tiny toyreal W4A8 full seed 0: 22.50 → 22.50" in healed
    assert "it was expected to fail (issue 7: too bright) and passes; remove its xfail from the suite" in healed


def test_a_known_failure_is_no_failure(broken, suite):
    suite('xfail = "issue 7: too bright"\n', methods='["toyreal"]', bits='["W4A8"]')
    broken("--update-baseline", "only real")
    output = broken().output
    assert "XFAIL toy tiny toyreal W4A8 full seed 0: 22.50 → " in output
    assert "expected: issue 7: too bright" in output


def test_elsewhere_is_shown_and_has_the_wider_tolerance(broken):
    document = json.loads(BASELINE.read_text())
    document["environment"]["versions"]["torch"] = "1.0"
    BASELINE.write_text(json.dumps(document))
    output = broken(code=1).output
    assert re.search(r"torch\s+│ 1\.0 ", output)
    assert "The environment is not that of the baseline" in output
    assert re.search(r"toyreal W8A8.*│ +7\.5 elsewhere │", output)
    assert "Tolerances are elsewhere: torch differs (5 of 5 cases)." in output


def test_changed_facts_fail(pinned, monkeypatch):
    import dfq_toy_impl

    monkeypatch.setattr(dfq_toy_impl, "_summary", lambda bits, sites=1, plain=dfq_toy_impl._summary: plain(bits, 2))
    assert "weight sites: 1 → 2" in pinned(code=1).output


def test_failed_and_skipped_cells_end_with_3(pinned, suite):
    suite(MISBEHAVING)
    before = BASELINE.read_bytes()
    output = pinned("--update-baseline", "more", code=3).output
    assert "MISSING toy tiny toyraise W4A8 full seed 0: ValueError: a toy error" in output
    assert "MISSING toy tiny toyskip W4A8 full seed 0: skipped: it makes no sense" in output
    assert BASELINE.read_bytes() == before


@pytest.mark.slow
def test_a_cell_that_fails_later_ends_with_3(pinned, monkeypatch):
    import dfq_toy_impl

    def fail(*_, **__):
        raise ValueError("no images")

    monkeypatch.setattr(dfq_toy_impl.Real, "images", fail)
    output = pinned("--junit", "gate.xml", code=3).output
    assert "MISSING toy tiny toyreal W4A8 full seed 0: 22.50 → no number" in output
    assert ET.parse("gate.xml").find("testsuite").get("errors") == "2"
    monkeypatch.setattr(dfq_toy_impl.Noise, "images", lambda self, *a, **k: dfq_toy_impl.torch.ones(1, 1, 4, 4) / 100)
    assert "FAIL toy tiny toynoise" in pinned(code=1).output  # a regression is known, whatever failed


def test_a_run_that_measures_nothing_ends_with_4(pinned, monkeypatch):
    monkeypatch.setenv("TOY_NO_LOAD", "tiny")
    before = BASELINE.read_bytes()
    assert "Nothing was measured." in pinned(code=4).output
    assert "Nothing was measured." in pinned("--update-baseline", "nothing", code=4).output
    assert BASELINE.read_bytes() == before


def test_without_a_baseline_it_says_how_to_make_one(regress):
    assert 'measure it with regress --update-baseline "why"' in regress(code=2).stderr


@pytest.mark.parametrize("option", ["--update-baseline", "--history"])
def test_an_empty_reason_is_refused(regress, option):
    assert f"{option} needs a text that says why" in regress(option, "  ", code=2).stderr
    assert not BASELINE.exists()


def test_suite_and_baseline_must_have_the_same_cases(pinned, suite):
    suite(bits='["W8A8", "W3A3"]')
    message = pinned(code=2).stderr
    assert "lacks 'toy tiny toynoise W3A3 full seed 0', 'toy tiny toyreal W3A3 full seed 0' of" in message
    assert "embedded.toml lacks 'toy tiny toynoise W4A8 full seed 0'" in message
    assert "renew the baseline" in message


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"suite": "toy"}, "", "embedded.toml cannot be read"),
        ({"reason": '" "'}, "", "reason"),
        ({"tolerance": "-1"}, "", "cases.0.tolerance: Input should be greater than or equal to 0"),
        ({"bits": "[]"}, "", "cases.0.bits"),
        ({"preset": '"quik"'}, "", "embedded.toml: unknown preset 'quik'; did you mean 'quick'?"),
        ({"methods": '["toynose"]'}, "", "embedded.toml: unknown method 'toynose'; did you mean 'toynoise'?"),
        ({}, "colour = 1\n", "cases.0.colour is not known"),
        ({}, SUITE[SUITE.index("[[cases]]") :], "'toy tiny toynoise W8A8 full seed 0' is in two groups"),
    ],
)
def test_a_malformed_suite_is_one_sentence(regress, suite, change, more, message):
    suite(more, **change)
    assert message in regress("--update-baseline", "why", code=2).stderr


def test_a_missing_suite_is_one_sentence(regress):
    assert "there is no suite nowhere.toml" in regress("--baseline", "nowhere.json", code=2).stderr


def _value(document):
    document["cases"]["toy tiny float"]["value"] += 2.5


def _bits(document):
    document["cases"]["toy tiny float"]["correct"] = "AAAA"


def _letters(document):
    document["cases"]["toy tiny float"]["correct"] = "AA!A"


def _name(document):
    document["cases"]["toy tiny flaot"] = document["cases"].pop("toy tiny float")


def _version(document):
    document["schema_version"] = 2


def _reasons(document):
    document["updates"] = []


@pytest.mark.fast(change=_value)
@pytest.mark.parametrize("change", [_value, _bits, _letters, _name, _version, _reasons])
def test_a_baseline_edited_by_hand_is_refused(pinned, change):
    document = json.loads(BASELINE.read_text())
    change(document)
    BASELINE.write_text(json.dumps(document))
    message = pinned(code=2).stderr
    assert "embedded.json is not valid (" in message
    assert "restore it from git" in message


def test_a_truncated_baseline_is_one_sentence(pinned):
    BASELINE.write_bytes(BASELINE.read_bytes()[:200])
    assert "embedded.json is not valid" in pinned(code=2).stderr


def test_the_history_gets_a_row_a_case(pinned):
    frame = history.read(Path("results/history.csv"))
    assert len(frame) == 5
    assert set(frame["label"]) == {"first"}
    assert set(frame["date"]) == {"2026-01-02T03:04:05+00:00"}
    pinned("--history", "nightly")
    frame = history.read(Path("results/history.csv"))
    assert frame.groupby("run")["label"].first().to_dict() == {1: "first", 2: "nightly"}
    assert frame["value"].iloc[:5].tolist() == frame["value"].iloc[5:].tolist()


@pytest.mark.slow
def test_in_a_process_of_its_own(regress, tmp_path):
    """With a worker, as it is run by nox."""
    regress("--update-baseline", "first")
    path = os.pathsep.join((str(ROOT), str(PLUGINS)))
    done = subprocess.run(
        [sys.executable, "-m", "harness", "regress"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 cases: 5 ok." in done.stdout


def test_the_data_root_reaches_the_suite(regress, suite, tmp_path):
    suite(suite='"embedded"', task='"classification"')
    assert "takes no data root" in regress("--update-baseline", "why", "--data-root", str(tmp_path), code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--baseline", "."), "--baseline . is a folder; give a file"),
        (("--junit", "."), "--junit . is a folder; give a file"),
        (
            ("--baseline", "results/baselines/embedded.2026"),
            "embedded.2026 is no .json file; the suite is the",
        ),
        (("--baseline", "results/baselines/embedded.toml"), "embedded.toml is no .json file"),
        (("--trust-configs",), "--trust-configs: no model of toy has a config; leave it out"),
        (("--update-baseline", "why", "--history", "label"), "leave --history out"),
    ],
)
def test_options_that_cannot_be_meant(pinned, arguments, message):
    assert message in pinned(*arguments, code=2).stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": "W44"}, "'W44'"),
        ({"model": "tinny"}, "unknown model 'tinny'"),
        ({"scheme": "ful"}, "did you mean 'full'"),
        ({"method": "float"}, "the float reference is not quantized"),
        ({"method": "toyskip"}, "a whole toy model cannot be exported"),
    ],
)
def test_an_exported_cell_that_cannot_be_is_refused_before_anything_is_measured(regress, suite, changed, message):
    """It was said to be not checked, behind all that is measured, and the gate was green for good."""
    said = {"model": "tiny", "method": "toynoise", "bits": "W8A8", "scheme": "full"} | changed
    suite("\n[exported]\ninteger = 1\n" + "".join(f'{name} = "{value}"\n' for name, value in said.items()))
    found = regress("--update-baseline", "why", code=2)
    assert re.search(rf"\[exported\] of suite \S*embedded\.toml: [^\n]*{re.escape(message)}", found.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("", r"ok exported vit noise W8A8 matmul: codes are torch's", 0),
        ("harness.export.remake.remake", r"FAIL exported vit noise W8A8 matmul: it is broken", 1),
        ("harness.export.runtimes.check_installed", r"NOT CHECKED exported vit noise W8A8 matmul: it is broken", 0),
    ],
)
def test_only_a_missing_extra_leaves_the_exported_cell_unchecked(regress, suite, monkeypatch, case):
    broken, said, code = case
    more = '\n[exported]\nmodel = "vit"\nmethod = "noise"\nbits = "W8A8"\nscheme = "matmul"\ninteger = 13\n'
    change = {"models": '["vit"]', "methods": '["noise"]', "preset": '"quick"'}
    path = suite(suite='"tiny"', task='"classification"', **change)
    path.write_text(path.read_text().replace('["W8A8", "W4A8"]', '["W8A8"]') + more)

    def fail(*_args, **_options):
        raise UsageError("it is broken")

    if broken:
        monkeypatch.setattr(broken, fail)
    assert re.search(said, regress("--update-baseline", "why", code=code).output)


@pytest.mark.slow
def test_a_kept_folder_stands_for_nothing_that_fails_now(pinned, monkeypatch):
    import dfq_toy_impl

    pinned("--out", "kept")

    def fail(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr(dfq_toy_impl.Real, "images", fail)
    output = pinned("--out", "kept", code=3).output
    assert output.count("MISSING") >= 2
    assert "ValueError: broken" in output


@pytest.mark.parametrize("arguments", [("--history", "nightly"), ("--update-baseline", "why")])
def test_what_cannot_be_written_after_measuring_is_said_before(pinned, monkeypatch, arguments):
    """No hour is spent, and no baseline renewed, before a malformed history is found."""
    Path("results/history.csv").write_text("nonsense\n", encoding="utf-8")
    monkeypatch.setattr("harness.regress.gate._measure", lambda *_, **__: pytest.fail("it measured"))
    assert "history" in pinned(*arguments, code=2).stderr
    Path("file").touch()
    assert "--junit" in pinned("--junit", "file/report.xml", code=2).stderr
