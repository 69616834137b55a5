"""`reproduce` on a made-up table and random pictures: planned, measured, resumed and judged; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from commands import later
from miniature_data import make_imagenet
from typer.testing import CliRunner

from harness.cli.main import app
from harness.results.published import COLUMNS

RECIPE = """
paper = "Nobody, A Made-Up Table, 2026"
sources = ["made up"]
floats = ["made up"]
preset = "quick"
seeds = 2
images = 12
[methods]
"Noise" = "noise[images=4]"
[bits]
"MP4.5A6" = "W4A6"
[tolerance]
points = 0.4
of = "own"
source = "made up, too"
[settings]
"images" = "4 of noise"
[open]
"seeds" = "2 are taken"
"""
NAMES = """
[models]
"Tiny" = "timm:test_vit@random"
[bits]
"W32A32" = "FP32"
[methods]
[schemes]
"full" = "full"
"none" = "none"
[calibration]
"""
ROWS = (
    ("float", "Tiny", "W32A32", "none", 0.0, "made up, table 1"),
    ("Noise", "Tiny", "W8A8", "full", 0.0, "made up, table 1"),
    ("Noise", "Tiny", "W8A8", "full", 99.0, "another paper"),
    ("Noise", "Tiny", "MP4.5A6", "full", 0.0, "made up, table 1"),
    ("Noise", "Tiny", "W4A4", "unknown", 50.0, "made up, table 1"),
    ("Noise", "Nameless", "W8A8", "full", 50.0, "made up, table 1"),
    ("Other", "Tiny", "W8A8", "full", 50.0, "made up, table 1"),
)
RUN = ("--data-root", "data", "--published", "table", "--out", "run", "--in-process", "--threads", "1")


def write_table(folder: Path, rows=ROWS, recipe: str = RECIPE) -> None:
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    (folder / "recipes" / "madeup.toml").write_text(recipe)
    (folder / "names.toml").write_text(NAMES)
    full = [
        (m, name, "classification", "imagenet", "top1", b, s, v, source, "P", "") for m, name, b, s, v, source in rows
    ]
    pd.DataFrame(full, columns=COLUMNS).to_csv(folder / "numbers.csv", index=False)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """A command in this process and in an empty folder; checks the exit code, and that an error is one sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.report.write_report", lambda *_: None)  # its figures take seconds

    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(app, ["reproduce", *later(arguments)])
        assert result.exit_code == code, result.output
        assert code == 0 or len(result.stderr.splitlines()) == 1
        return result

    return run


@pytest.fixture
def table(tmp_path) -> Path:
    make_imagenet(tmp_path / "data")
    write_table(tmp_path / "table")
    return tmp_path / "table"


def judged(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "run" / "report" / "reproduced_madeup.csv").set_index("bits")


@pytest.mark.slow
def test_a_table_is_planned_measured_resumed_and_judged(cli, tmp_path, table) -> None:
    shown = cli("madeup", *RUN, "--dry").output
    assert "5 of 5 cells to run" in shown
    assert "Left open by the paper:\n- seeds: 2 are taken" in shown
    assert "0.4 points, the paper's own spread: made up, too" in shown
    assert "- Noise on Nameless at W8A8: names.toml knows no such model" in shown
    assert "- Noise on Tiny at W4A4: its source does not say which tensors are quantized (scheme 'unknown')" in shown
    assert "- Other: not in the recipe (1 number)" in shown
    assert not (tmp_path / "run").exists()

    # One precision with one seed first; the whole table then measures what is missing and no more.
    cli("madeup", *RUN, "--bits", "W8A8", "--seeds", "1")
    again = cli("madeup", *RUN).output
    assert "3 of 5 cells to run, about " in again
    records = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
    assert len(records) == 5
    first = judged(tmp_path)
    assert first.loc["MP4.5A6", "measured_bits"] == "W4A6"
    assert first["seeds"].tolist() == [2, 2]
    assert first.loc["W8A8", "highest"] == 99.4

    # The table is what was measured here, but for one number: nothing is run, and the verdicts say so.
    float_ours, ours = first["float_ours"].iloc[0], first["ours"]
    rows = [(*row[:4], float_ours if row[0] == "float" else ours.get(row[2], row[4]), row[5]) for row in ROWS]
    rows[1] = (*rows[1][:4], ours["W8A8"] + 0.3, rows[1][5])
    rows[2] = (*rows[2][:4], ours["W8A8"] + 0.1, rows[2][5])
    write_table(table, rows)
    shown = cli("madeup", *RUN).output
    assert "all of them done: nothing to run" in shown
    assert "2 numbers: 2 reproduced." in shown
    assert re.search(r"\| Tiny +\| W8A8 +\| Noise +\| .*-0\.30 \|", shown)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")} == records
    assert (tmp_path / "run" / "report" / "reproduced_madeup.md").read_text() in shown


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ("",), "name a paper; there are recipes of madeup"),
        (None, ("nobody",), "unknown paper 'nobody'; known: madeup"),
        (None, ("evolq",), "'evolq' has no recipe, since no checked numbers of its paper on imagenet are in table"),
        (None, ("madeup", "--models", "Huge"), "unknown model of this paper's"),
        (
            None,
            ("madeup", "--models", "Tiny,Nameless", "--bits", "W4A4"),
            "Nameless in --models has no number with the",
        ),
        (None, ("madeup", "--bits", "W8A8,W4A4", "--models", "Nameless"), "but, for one, Noise on Tiny at W4A4; leave"),
        (
            None,
            ("madeup", "--models", "Tiny=timm:a@x,Tiny=timm:a@y"),
            "two checkpoints for Tiny (timm:a@x and timm:a@y)",
        ),
        (None, ("madeup", "--models", "Tiny,Tiny=timm:a@x"), "two checkpoints for Tiny (the usual one and timm:a@x)"),
        (None, ("madeup", "--models", "Tiny="), "'Tiny=' in --models is not of the form NAME or NAME=MODEL"),
        (None, ("madeup", "--models", "=timm:a@x"), "'=timm:a@x' in --models is not of the form NAME or NAME=MODEL"),
        (None, ("madeup", "--seeds", "0"), "--seeds must be 1 to 1,000 repetitions, not 0"),
        (("sources = [", 'sources = ["no such", '), ("madeup",), "'no such' in sources, which stands for none of the"),
        (("floats = [", 'quoted = ["no such"]\nfloats = ['), ("madeup",), "'no such' in quoted, which stands for none"),
        (
            ("floats = [", 'floats = ["another paper", '),
            ("madeup",),
            "'another paper' in floats, which stands for none",
        ),
        (("[bits]", '"Nois" = "noise"\n[bits]'), ("madeup",), "'Nois' in [methods], which stands for none"),
        (("[bits]", '[models]\n"Tny" = "x"\n[bits]'), ("madeup",), "'Tny' in [models], which stands for none"),
        (("[bits]", '[bits]\n"MP4.6A6" = "W4A6"'), ("madeup",), "'MP4.6A6' in [bits], which stands for none"),
        (('["made up"]\nfloats', '["no such"]\nfloats'), ("madeup",), "no published numbers of Nobody"),
        (('"noise[images=4]"', '"nois"'), ("madeup",), "the recipe of Nobody, A Made-Up Table, 2026 cannot be used"),
        (("points = 0.4", "points = -1"), ("madeup",), "is not valid (tolerance.points: "),
        (("seeds = 2", "sedes = 2"), ("madeup",), "is not valid (sedes: is not known)"),
        (('[settings]\n"images" = "4 of noise"', "[settings]"), ("madeup",), "is not valid (settings: "),
        (None, ("madeup", "--models", "Nameless"), "none of these numbers of Nobody"),
        (None, ("madeup", "--models", "Tiny=timm:test_vitt@random"), "timm has no model 'test_vitt'"),
        (None, ("madeup", "--models", "Tiny=timm:test_vit"), "Tiny cannot be loaded: model 'timm:test_vit' knows 1000"),
        (None, ("madeup", "--data-root", "table"), "data root table has no folder val/"),
        (None, ("madeup", "--data-root", "nowhere"), "data root nowhere is not a folder"),
        (None, ("madeup", "--published", "data"), "there are no recipes of papers in data/recipes"),
    ],
)
def test_what_is_refused(cli, table, change, arguments, sentence) -> None:
    if change is not None:
        assert change[0] in RECIPE
        write_table(table, recipe=RECIPE.replace(*change))
    paper, *options = arguments
    assert sentence in cli(paper, *RUN, *options, code=2).stderr  # of an option that stands twice the last counts
    assert not (table.parent / "run").exists()
