from __future__ import annotations

import contextlib
import re

import pytest

from harness.api.errors import UsageError
from harness.api.plugins import PluginInfo
from harness.catalog import registry
from harness.catalog.catalog import Catalog
from harness.catalog.registry import FEW, Registry, check_known
from harness.cli.options import parse_overrides
from harness.identity.cell import Cell


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
        ("psaq+rotate+minmax", "psaq+rotate+minmax"),
        ("rotate[values=false]+repq", "real+rotate[values=false]+repq"),
        ("float", "float"),
        (" toynoise [ count = 5 ] + toyround", "toynoise[count=5]"),
        ("toynoise[count=4]", "toynoise"),
        ("toyswitch[text=rough,count=1]", "toyswitch[count=1,text=rough]"),
        ('toyswitch[text="rough"]', "toyswitch[text=rough]"),
        ("toyswitch[count=3.0,scale=2.0,smooth=no]", "toyswitch[count=3,scale=2,smooth=false]"),
        ('toyswitch[text="1",scale=1e-5]', 'toyswitch[scale=1e-05,text="1"]'),
        ('toyswitch[value={"b": [1, 2.0], "a": "x]"}]', 'toyswitch[value={"a":"x]","b":[1,2]}]'),
        ("psaq[steps=10]+minmax", "psaq[steps=10]"),
        ("minmax[weights=asymmetric]", "real+minmax[weights=asymmetric]"),
        ("psaq[steps=10]+minmax[weights=asymmetric]", "psaq[steps=10]+minmax[weights=asymmetric]"),
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
        ("clamp+psaq", "'psaq' in 'clamp+psaq' is not a calibrator; a cross is SOURCE+CALIBRATOR"),
        ("minmax+toynoise[count=3]", "has its parts in the wrong order; write toynoise[count=3]+minmax"),
        ("toynoise+minmax+minmax", "'toynoise+minmax+minmax' has 3 parts; a cross is SOURCE+CALIBRATOR"),
        (
            "rotate",
            "'rotate': transform 'rotate' stands once, in front of a calibrator; write SOURCE+rotate+CALIBRATOR",
        ),
        ("psaq+rotate", "stands once, in front of a calibrator"),
        ("rotate+psaq+minmax", "stands once, in front of a calibrator"),
        ("omse+rotate+minmax", "'omse' in 'omse+rotate+minmax' is not a source"),
        ("toybroken", "cannot be imported"),
        ("", "unknown method ''"),
        ("clmap[steps=1]", "did you mean 'clamp'?"),
        ("toynoise[cuont=1]", "toynoise has no option 'cuont'; did you mean 'count'? it has: count"),
        ("toynoise[count=many]", "option toynoise.count: "),
        ("toyswitch[scale=NaN]", "option toyswitch.scale: Input should be a finite number"),
        ("toyswitch[count=60]", "option toyswitch: Value error, so many images"),
        ("toynoise[count=1,count=2]", "option 'count' is set twice in 'toynoise[count=1,count=2]'"),
        ("float[count=1]", "takes no options: 'float[count=1]'"),
        *(
            (text, f"the brackets of '{text}' are malformed; write NAME[OPTION=VALUE]")
            for text in ("toynoise[", "toynoise]", "toynoise[]", "toynoise[count]", "toynoise[=1]", "[count=1]")
        ),
        *(
            (text, f"the brackets of '{text}' are malformed")
            for text in ("toynoise[count=1]x", "toynoise[count=1][count=2]", "toynoise[count=1+toyround")
        ),
    ],
)
def test_bad_names(catalog, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        catalog.resolve(text)


def test_of_many_names_a_sentence_has_the_close_one_alone():
    many = [f"method{number}" for number in range(FEW + 1)]
    for known, said in (
        (many, "did you mean 'method9'?"),
        (many[:10], f"did you mean 'method9'? known: {', '.join(many[:10])}"),
    ):
        with pytest.raises(UsageError) as refused:
            check_known("method", "mehtod9", known)
        assert str(refused.value) == f"unknown method 'mehtod9'; {said}"
    with pytest.raises(UsageError, match="unknown method 'x'; known: method0, "):
        check_known("method", "x", many)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"psaq": {"steps": 1}}, "--option names 'psaq', which no method of this run uses; "),
        ({"toynoise": {"cuont": 1}}, "toynoise has no option 'cuont'; did you mean 'count'?"),
        ({"toynoise": {"count": "many"}}, "option toynoise.count"),
    ],
)
def test_bad_options(catalog, overrides, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        catalog.resolve_all(["toynoise"], "default", overrides)


def test_brackets_come_before_options_and_options_before_the_preset(catalog):
    names = ["toyswitch[count=9]", "toyswitch", "toynoise"]
    variant, base, other = catalog.resolve_all(names, "quick", {"toyswitch": {"count": 5, "scale": 3}})
    assert (variant.parts[0][1].count, variant.parts[0][1].scale) == (9, 3)
    assert (base.parts[0][1].count, other.parts[0][1].count) == (5, 2)


def cell_key(method) -> str:
    coordinates = {"suite": "toy", "task": "toy", "model": "tiny", "weights": "w", "data": "d", "limit": None}
    own = {"method": method.name, "options": method.options, "bits": "W4A8", "scheme": "full", "seed": 0}
    return Cell(**coordinates, **own).key


def test_k2_brackets_and_options_name_one_computation(catalog):
    """FAULTS K2 "`psaq[steps=10]` and `--option psaq.steps=10`"."""
    variant = catalog.resolve("psaq[steps=10]")
    option = catalog.resolve("psaq", "default", {"psaq": {"steps": 10}})
    assert (variant.name, option.name) == ("psaq[steps=10]", "psaq")
    assert cell_key(variant) == cell_key(option) != cell_key(catalog.resolve("psaq"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("toyswitch[count=10]", "toyswitch[count=10.0]"),
        ("toyswitch[count=10]", 'toyswitch[count="10"]'),
        ("toyswitch[scale=3]", "toyswitch[scale=3.0]"),
        ("toyswitch[value=3]", "toyswitch[value=3.0]"),
        ('toyswitch[value={"a":[1,{"b":2}]}]', 'toyswitch[value={"a":[1.0,{"b":2.0}]}]'),
        ("toyswitch[count=1,smooth=no]", "toyswitch[smooth=false,count=1]+toyround"),
        ("toyswitch[count=4]", "toyswitch"),
        ("psaq[steps=75]", "psaq+minmax"),
        ("psaq+minmax[weights=symmetric]", "psaq"),
    ],
)
def test_one_computation_has_one_key(catalog, first, second):
    one, other = catalog.resolve(first), catalog.resolve(second)
    assert one.name == other.name
    assert cell_key(one) == cell_key(other)


def test_an_option_that_came_later_moves_no_key(catalog):
    """It is in what cells and images are known by where it differs from its default, and read back from there."""
    usual, filtered = catalog.resolve("psaq[low_pass=null]"), catalog.resolve("psaq[low_pass=8]")
    (source, calibrator) = usual.parts
    assert "low_pass" in source[1].model_dump()
    assert "low_pass" not in usual.options["parts"]["source:psaq"]
    assert (usual.name, filtered.name) == ("psaq", "psaq[low_pass=8]")
    assert cell_key(usual) == cell_key(catalog.resolve("psaq")) != cell_key(filtered)
    assert usual.images == catalog.resolve("psaq").images != filtered.images
    for method in (usual, filtered):
        assert catalog.restore(method.name, method.options).parts == method.parts
    assert calibrator[1].identified() == calibrator[1].model_dump(mode="json")


def test_values_of_another_kind_are_other_computations(catalog):
    keys = {cell_key(catalog.resolve(f"toyswitch[value={value}]")) for value in ("3", '"3"', "3.5", "[3]", "true")}
    assert len(keys) == 5


def test_options_of_any_type_are_one_value_however_they_are_given(catalog):
    option = catalog.resolve("toyswitch", "default", {"toyswitch": {"value": 3.0}})
    assert cell_key(option) == cell_key(catalog.resolve("toyswitch[value=3]"))


def test_a_variant_that_changes_nothing_is_no_variant(catalog):
    names = ["toyswitch", "toyswitch[count=4]", "toyswitch[count=4.0]+toyround"]
    (base,) = catalog.resolve_all(names, "default", {})
    assert base.name == "toyswitch"
    base, variant = catalog.resolve_all(names[:2], "default", {"toyswitch": {"count": 9}})
    assert (base.name, variant.name) == ("toyswitch", "toyswitch[count=4]")  # it says something new beside --option


def test_brackets_that_alone_make_an_option_fit_stay_in_the_name(catalog):
    method = catalog.resolve("toyswitch[smooth=false]", "default", {"toyswitch": {"count": 60}})
    assert method.name == "toyswitch[smooth=false]"


def test_installed_packages_are_scanned_once(catalog, monkeypatch):
    """CODE_REVIEW A11: every look-up scanned all of them."""
    scans = []
    scan = registry.entry_points
    monkeypatch.setattr("harness.catalog.registry.entry_points", lambda **group: scans.append(group) or scan(**group))
    registry._installed.cache_clear()
    fresh = Catalog.default()
    for _ in range(3):
        for name in fresh.method_names():
            with contextlib.suppress(UsageError):
                fresh.find(name)
    assert sorted(scan["group"] for scan in scans) == sorted(
        f"dfqbench.{kind}" for kind in ("methods", "sources", "transforms", "calibrators")
    )


def test_ablations_have_canonical_names(catalog):
    assert catalog.ablations("toyswitch", "quick") == {
        "toyswitch[smooth=false]": "not smooth",
        "toyswitch[count=1]": "one image",
    }
    assert list(catalog.ablations("toyswitch+omse")) == ["toyswitch[smooth=false]+omse", "toyswitch[count=1]+omse"]
    assert list(catalog.ablations("toyswitch", "quick", {"toyswitch": {"count": 1}})) == ["toyswitch[smooth=false]"]
    assert catalog.ablations("toynoise") == catalog.ablations("float") == {}
    assert "toyswitch" in catalog.ablated()


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("toyodd", {}, "ablation 'typo' of source 'toyodd' is broken: toyodd has no option 'cuont'"),
        ("toyswitch[count=1]", {}, "'toyswitch[count=1]' is a variant"),
        (
            "toyswitch",
            {"toyswitch": {"scale": "wide"}},
            "ablation 'not smooth' of source 'toyswitch' is broken: option",
        ),
    ],
)
def test_bad_ablations(catalog, text, overrides, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        catalog.ablations(text, "default", overrides)


def test_options_of_parts_that_share_a_name(catalog):
    overrides = {"clamp": {"passes": 3}}
    alone, crossed = catalog.resolve_all(["clamp", "clamp+minmax"], "default", overrides)
    assert alone.parts[0][1].passes == 3
    assert crossed == catalog.resolve("clamp+minmax")
    with pytest.raises(UsageError, match="clamp has no option 'passes'"):
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


@pytest.mark.parametrize(
    ("text", "fitted"),
    [
        ("psaq", "psaq+repq"),
        ("psaq[steps=9]", "psaq[steps=9]+repq"),
        ("clamp", "clamp+repq"),
        # What is the method's alone is no option of its images.
        ("clamp[steps=9,held_out=none]", "clamp[steps=9]+repq"),
        ("psaq+minmax", "psaq+repq"),
        ("minmax", "real+repq"),
        ("real", "real+repq"),
        ("psaq+adalog", "psaq+adalog"),
        ("repq", "repq"),
        ("psaq2", "psaq2"),
        ("psaq+rotate+minmax", "psaq+rotate+minmax"),
    ],
)
def test_images_are_run_under_a_calibrator_that_fits_them(text, fitted):
    catalog = Catalog.default()
    assert catalog.fitted([text]) == [fitted]
    assert catalog.resolve(fitted)
