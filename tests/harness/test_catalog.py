from __future__ import annotations

import re

import pytest

from harness.cli import parse_overrides
from harness.errors import UsageError
from harness.plugins import PluginInfo
from harness.registry import Registry


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("toynoise", "toynoise"),
        ("toynoise+toyround", "toynoise"),
        (" toynoise + toyround ", "toynoise"),
        ("toyround", "toynoise"),
        ("toyreal+toyround", "toyreal"),
        ("psaq+minmax", "psaq"),
        ("omse", "real+omse"),
        ("real+minmax", "real"),
        ("clamp", "clamp"),
        ("clamp+minmax", "clamp+minmax"),
        ("float", "float"),
    ],
)
def test_every_method_has_one_name(catalog, text, name):
    resolved = catalog.resolve(text)
    assert resolved.name == name
    assert catalog.resolve(name).options == resolved.options
    assert catalog.restore(name, resolved.options) == resolved


def test_resolved_method_knows_data_and_weakest_origin(catalog):
    assert (catalog.resolve("toynoise").data, catalog.resolve("toynoise").origin) == ("none", "reconstruction")
    assert catalog.resolve("toyreal").data == "images"


def test_preset_and_overrides(catalog):
    count = {"parts": {"source:toynoise": {"count": 2}, "calibrator:toyround": {}}, "preset": "quick"}
    assert catalog.resolve("toynoise", "quick").options == count
    assert catalog.resolve("toynoise", "quick", {"toynoise": {"count": 9}}).parts[0][1].count == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clmap", "did you mean 'clamp'?"),
        ("noise+minmx", "unknown calibrator 'minmx'; did you mean 'minmax'?"),
        ("clamp+psaq", "unknown calibrator 'psaq'"),
        ("toybroken", "cannot be imported"),
        ("", "unknown method ''"),
    ],
)
def test_bad_names(catalog, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        catalog.resolve(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"psaq": {"steps": 1}}, "unknown plugin of this run in --option 'psaq'; "),
        ({"toynoise": {"cuont": 1}}, "option toynoise.cuont"),
        ({"toynoise": {"count": "many"}}, "option toynoise.count"),
    ],
)
def test_bad_options(catalog, overrides, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        catalog.resolve_all(["toynoise"], "default", overrides)


def test_options_of_parts_that_share_a_name(catalog):
    overrides = {"clamp": {"passes": 3}}
    alone, crossed = catalog.resolve_all(["clamp", "clamp+minmax"], "default", overrides)
    assert alone.parts[0][1].passes == 3
    assert crossed == catalog.resolve("clamp+minmax")
    with pytest.raises(UsageError, match=r"option clamp\.passes"):
        catalog.resolve_all(["clamp+minmax"], "default", overrides)


def test_unknown_preset(catalog):
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        catalog.resolve("toynoise", "quik")


def test_overrides_are_json_or_text():
    assert parse_overrides(["a.x=3", "a.y=text", "b.z=[1, 2]"]) == {"a": {"x": 3, "y": "text"}, "b": {"z": [1, 2]}}
    with pytest.raises(UsageError, match=r"NAME\.FIELD=VALUE"):
        parse_overrides(["a=3"])


def test_collision_names_both_origins(catalog):
    registry = Registry("task", {"toy": "somewhere:ELSE"}, "dfqbench.tasks", PluginInfo)
    with pytest.raises(UsageError, match=r"dfqbench \(somewhere:ELSE\) and package dfq-toy \(dfq_toy:TASK\)"):
        registry.get("toy")
    assert "toy" in registry.load_all()[1]


def test_a_plugin_of_another_type_is_refused(catalog):
    with pytest.raises(UsageError, match="is not a PluginInfo named 'toy'"):
        Registry("method", {}, "dfqbench.tasks", PluginInfo).get("toy")
