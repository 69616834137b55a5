"""`check`, on the plugins of the guides as they stand there, and on plugins that break their contract."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from harness.api.contracts import Evaluation
from harness.api.errors import UsageError
from harness.api.plugins import PluginInfo, TaskInfo
from harness.catalog.catalog import Catalog
from harness.catalog.registry import Registry
from harness.check import plugin as check_module
from harness.check.plugin import check
from methods import api

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = [(DOCS / name).read_text("utf-8") for name in ("add-a-method.md", "add-a-task.md", "add-a-number-format.md")]


@pytest.fixture
def look(monkeypatch, tmp_path, capsys):
    """Check a plugin that is the attribute of a module here, with a module's text or objects; returns what is said."""
    monkeypatch.setattr(check_module, "EXECUTOR", "in-process")
    monkeypatch.setattr(check_module, "TIMEOUT", None)
    monkeypatch.setattr(check_module, "WIDTHS", ("W4A4",))

    def run(name: str, kind: str, target: str) -> tuple[bool, str]:
        default = Catalog.default()
        parts = {"methods": default.methods, "sources": default.sources, "calibrators": default.calibrators}
        parts["tasks"] = default.tasks
        expected = TaskInfo if kind == "tasks" else PluginInfo
        parts[kind] = Registry(kind, {**parts[kind]._builtin, name: target}, "none", expected)
        console = Console(width=400)
        fine = check(name, Catalog(**parts), console)
        return fine, capsys.readouterr().out

    monkeypatch.syspath_prepend(str(tmp_path))
    return run


@pytest.fixture
def guide(tmp_path):
    """The guides' modules, importable."""
    codes = [code for text in GUIDES for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    for name, code in zip(("smooth", "sigma", "stripes", "mxfp4"), codes, strict=True):
        (tmp_path / f"{name}.py").write_text(code, "utf-8")
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.slow
def test_the_guides_source_keeps_its_contract(look, guide):
    fine, text = look("smooth", "sources", "smooth:SMOOTH")
    assert fine, text
    assert "unverified" not in text


@pytest.mark.slow
def test_the_guides_calibrator_keeps_its_contract(look, guide):
    fine, text = look("sigma", "calibrators", "sigma:SIGMA")
    assert fine, text
    assert text.count("ok     ") == 2 + 2 * 2 * 2  # description and construction; sources x models x schemes
    assert "unverified" not in text


@pytest.mark.slow
def test_the_guides_number_format_keeps_its_contract(look, guide):
    fine, text = look("mxfp4", "calibrators", "mxfp4:MXFP4")
    assert fine, text
    assert "unverified" not in text


def test_the_guides_number_format_is_what_it_says(guide, monkeypatch):
    monkeypatch.syspath_prepend(str(guide))
    quantizer = importlib.import_module("mxfp4").MxFp4(4)
    weight = torch.tensor([5.1, -6.0, 0.7, 0.2] * 32).view(2, 64)
    assert quantizer(weight)[0, :4].tolist() == [6.0, -6.0, 0.5, 0.0]
    assert quantizer.stored_as(4)[1] == 4 * 8


def test_the_guides_task_keeps_its_contract(look, guide):
    fine, text = look("stripes", "tasks", "stripes:STRIPES")
    assert fine, text
    assert text.count("ok     ") == 5


def test_every_public_name_is_documented_and_there():
    assert sorted(api.__all__) == sorted(set(api.__all__))
    for name in api.__all__:
        assert hasattr(api, name)
    lines = re.findall(r"from methods.api import (.*)", "\n".join(GUIDES))
    used = {part.strip() for line in lines for part in line.split(",")}
    assert used
    assert used <= set(api.__all__)


class Unruly:
    """A source: noise of another kind each time."""

    def __init__(self, options):
        pass

    def images(self, model, *, spec, scheme, calib, ctx):
        return torch.rand(4, *model.input_shape, generator=torch.Generator().manual_seed(next(COUNT))) - 0.5


COUNT = iter(range(1000))
UNRULY = PluginInfo("unruly", "source", "another noise each time", f"{__name__}:Unruly")
SILENT = PluginInfo("silent", "source", "", f"{__name__}:Unruly")
REBUILT = PluginInfo("rebuilt", "source", "rebuilt", f"{__name__}:Unruly", origin="reconstruction")


@pytest.mark.slow
def test_random_numbers_of_its_own_are_found(look):
    fine, text = look("unruly", "sources", f"{__name__}:UNRULY")
    assert not fine
    assert "take random numbers from ctx.generator" in text


class Unmade:
    def __init__(self, options):
        raise RuntimeError("not today")


UNMADE = PluginInfo("unmade", "source", "cannot be made", f"{__name__}:Unmade")


def test_a_class_that_cannot_be_made_is_found_before_anything_runs(look):
    fine, text = look("unmade", "sources", f"{__name__}:UNMADE")
    assert not fine
    assert "construction: with preset 'quick': RuntimeError: not today" in text
    assert "W4A4" not in text


@pytest.mark.fast(name="silent")
@pytest.mark.parametrize(
    ("name", "message"), [("silent", "summary is empty"), ("rebuilt", "must list in `deviations`")]
)
def test_what_it_does_not_say_of_itself_is_found(look, name, message):
    fine, text = look(name, "sources", f"{__name__}:{name.upper()}")
    assert not fine
    assert message in text


def broken(guide, change: str):
    """The guide's task with one thing wrong."""
    import stripes

    class Broken(stripes.Stripes):
        def load(self, model, device):
            loaded = super().load(model, device)
            if change == "train mode":
                loaded.net.train()
            if change == "distance":
                return replace(loaded, output_distance=lambda a, b: (a - b).abs().mean() + 1)
            if change == "gradient":
                loaded.net.requires_grad_(True)
            return loaded

        def evaluate(self, model, forward, limit):
            found = super().evaluate(model, forward, limit)
            if change == "fraction":
                return Evaluation({"top1": found.metrics["top1"] / 100}, found.outcomes)
            if change == "no correct":
                return Evaluation(found.metrics, found.outcomes.drop(columns="correct"))
            if change == "rows":
                return Evaluation(found.metrics, found.outcomes[1:])
            return found

        def calibration(self, model):
            return stripes.Pool() if change == "unsealed" else super().calibration(model)

    return Broken()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fraction", "metrics are in points"),
        ("no correct", "outcomes have no column 'correct', and TaskInfo.resampling names no metric"),
        ("train mode", "is in train mode; call net.eval()"),
        ("rows", "outcomes have 3 rows for 4 images"),
        ("distance", "output_distance of an output from itself is 1, not 0"),
        ("gradient", "requires a gradient"),
        ("unsealed", "calibration images are handed out while data are sealed"),
    ],
)
def test_k4_what_a_task_does_wrong_is_named(look, guide, monkeypatch, change, message):
    """FAULTS K4: a metric given as a fraction, a missing column `correct`, a model handed over in train mode."""
    import stripes

    monkeypatch.setattr(stripes, "open_suite", lambda suite, data_root=None: broken(guide, change))
    fine, text = look("stripes", "tasks", "stripes:STRIPES")
    assert not fine
    assert message in text


def test_an_unknown_plugin_is_refused(look):
    with pytest.raises(UsageError, match="did you mean 'psaq'"):
        check("psqa", Catalog.default(), Console())


def test_the_command_ends_with_three_if_something_is_wrong(cli, monkeypatch):
    monkeypatch.setattr("harness.check.plugin.check", lambda *_: False)
    cli("check", "noise", code=3)
