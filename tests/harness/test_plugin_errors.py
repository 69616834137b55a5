"""A plugin that cannot be used costs its own cells and is named; all else is listed and measured."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from pydantic import Field

from harness.api.errors import UsageError
from harness.api.plugins import ExecutorInfo, Options, PluginInfo, TaskInfo
from harness.catalog.catalog import Catalog
from harness.catalog.registry import Registry
from harness.cli.options import parse_overrides


class TooFew(Options):
    count: int = Field(0, ge=1)


class NotJson(Options):
    count: Any = len


def info(**fields) -> PluginInfo:
    return PluginInfo(**({"name": "mine", "kind": "source", "summary": "", "target": "mine:Mine"} | fields))


def registry(monkeypatch, plugin, expected=PluginInfo) -> Registry:
    module = ModuleType("mine")
    module.MINE = plugin
    monkeypatch.setitem(sys.modules, "mine", module)
    return Registry("image source", {"mine": "mine:MINE", "noise": "methods.sources.noise.info:INFO"}, "none", expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": TooFew}, "its preset 'quick' does not fit: option mine.count|default of its option count"),
        ({"options": NotJson}, "cannot be kept in a record"),
        ({"origin": "mine"}, "its origin is 'mine'; known: 'baseline', 'published code', 'reconstruction'"),
        ({"schemes": ("matmul", "half")}, r"its schemes are \('matmul', 'half'\); known: 'full', 'matmul'"),
        ({"trains": "a lot"}, "its trains is 'a lot'"),
        ({"data": "labels"}, "its data is 'labels'"),
        ({"kind": "sauce"}, "its kind is 'sauce'"),
        ({"presets": {"fast": {}}}, "it has options for preset 'fast'"),
        ({"presets": {"paper": {"steps": 1}}}, "its preset 'paper' does not fit"),
        ({"target": "mine.Mine"}, "its target 'mine.Mine' is not of the form module:attribute"),
        ({"requires": "mine.lacks"}, "its requires 'mine.lacks' is not of the form module:attribute"),
    ],
)
def test_k3_a_plugin_with_a_bad_field_is_found_when_listed(monkeypatch, fields, message):
    """FAULTS K3: an option default that does not validate, or `origin="mine"`, passed `list` and stopped the sweep."""
    found = registry(monkeypatch, info(**fields))
    usable, broken = found.load_all()
    assert list(usable) == ["noise"]
    with pytest.raises(UsageError, match=message):
        found.get("mine")
    assert broken["mine"].startswith("image source 'mine' of dfqbench is not usable")


@pytest.mark.parametrize("error", [SystemExit(0), ImportError("no"), RuntimeError("no"), GeneratorExit()])
def test_k3_a_module_that_ends_the_program_when_imported_is_unusable_alone(monkeypatch, tmp_path, error):
    """FAULTS K3: an entry point whose module calls `sys.exit` when imported left `list methods` empty."""
    name = f"ends_{type(error).__name__}"
    (tmp_path / f"{name}.py").write_text(f"raise {type(error).__name__}({', '.join(map(repr, error.args))})")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Registry(
        "image source", {"ends": f"{name}:X", "noise": "methods.sources.noise.info:INFO"}, "none", PluginInfo
    )
    usable, broken = found.load_all()
    assert list(usable) == ["noise"]
    assert f"cannot be imported ({type(error).__name__}" in broken["ends"]


def test_a_plugin_whose_check_cannot_be_passed_names_no_other(monkeypatch):
    found = registry(monkeypatch, TaskInfo("mine", "", {}, "mine:open"), TaskInfo)
    with pytest.raises(UsageError, match="'mine' of dfqbench is not usable: it has no suite"):
        found.get("mine")


def test_an_executor_accepts_what_users_can_say(monkeypatch):
    found = registry(monkeypatch, ExecutorInfo("mine", "", "mine:Mine", accepts=("jobs", "tiemout")), ExecutorInfo)
    with pytest.raises(UsageError, match=r"it accepts 'tiemout'; did you mean 'timeout'\? known: timeout, jobs, "):
        found.get("mine")


@pytest.mark.parametrize("look", [{"other": 5}, {"one": 0}, {"one": "5"}, {"one": True}, {"one": 2.5}, [5]])
def test_a_first_look_is_at_images_of_an_own_suite(look):
    with pytest.raises(UsageError, match="its first look is"):
        TaskInfo("mine", "", {"one": ""}, "mine:open", first_look=look).check()


def test_k3_a_task_whose_code_cannot_be_imported_is_one_sentence(cli, catalog, monkeypatch):
    """FAULTS K3: a task plugin with an ImportError gave 60 lines of traceback that did not name the task."""
    import dfq_toy

    monkeypatch.setattr(dfq_toy, "TASK", TaskInfo("toy", "", {"toy": "one"}, "dfq_toy_missing:open_suite"))
    arguments = ["bench", "--suite", "toy", "--tasks", "toy", "--methods", "toynoise", "--in-process"]
    error = cli(*arguments, code=2).stderr
    assert "dfq_toy_missing:open_suite of task 'toy' cannot be imported (ModuleNotFoundError" in error


@pytest.mark.parametrize("attribute", ["open_suit", "Suite"])
def test_a_task_whose_function_is_not_there_or_is_something_else(cli, catalog, monkeypatch, attribute):
    import dfq_toy

    monkeypatch.setattr(dfq_toy, "TASK", TaskInfo("toy", "", {"toy": "one"}, f"dfq_toy_suite:{attribute}"))
    arguments = ["plan", "--suite", "toy", "--tasks", "toy", "--methods", "toynoise"]
    assert "task 'toy'" in cli(*arguments, code=2).stderr


def test_a_method_whose_code_cannot_be_imported_costs_its_own_cells(cli, catalog, monkeypatch):
    import dfq_toy

    broken = info(name="toyskip", kind="method", target="dfq_toy_missing:Mine")
    monkeypatch.setattr(dfq_toy, "SKIP", broken)
    arguments = ["--suite", "toy", "--tasks", "toy", "--models", "tiny", "--methods", "toyskip,toynoise"]
    result = cli("bench", *arguments, "--in-process", "--no-references", "--bits", "W4A8", code=3)
    assert "dfq_toy_missing:Mine of method 'toyskip' cannot be imported" in " ".join(result.output.split())
    assert "toynoise W4A8 full seed 0: top1" in result.output


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, "[" * 30 + "]" * 30])
def test_k5_options_nested_deep_are_refused(text):
    """FAULTS K5: options nested 3,000 deep ended in a traceback."""
    with pytest.raises(UsageError, match="nested more than 20 deep"):
        parse_overrides([f"psaq.steps={text}"])
    with pytest.raises(UsageError, match="nested more than 20 deep"):
        Catalog.default().resolve(f"psaq[steps={text}]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1000000000"], "--seeds must be 1 to 1,000 repetitions"),
        (["--threads", "100000"], "--threads must be 1 to 1,024"),
        (["--threads", "0"], "--threads must be 1 to 1,024"),
        (["--seeds", "-1"], "--seeds must be 1 to 1,000"),
    ],
)
def test_k5_numbers_out_of_all_proportion_are_refused(cli, arguments, message):
    """FAULTS K5: `--seeds 1000000000` hung; with `--threads 100000` every cell failed."""
    toy = ["--suite", "toy", "--tasks", "toy", "--models", "tiny"]
    assert message in cli("plan", *toy, "--methods", "toynoise", *arguments, code=2).stderr
