"""The generated table of timm's families says what its data say, and the data what planning says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import timm

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.catalog.requirements import unmet
from tasks.classification.suite import ClassificationSuite
from tasks.models.families import DOCUMENT, SCHEMES, STAND_FOR, Family, documented, families

ROOT = Path(__file__).parents[2]


class Classes:
    classes = 1000


def test_the_document_is_made_from_the_data():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert documented(text) == text, "run nox -s families, or tasks.models.families.documented on docs/models.md"
    assert documented(text.replace("mlp_mixer", "another")) == text.replace(
        text[: text.index("<!--")], text[: text.index("<!--")].replace("mlp_mixer", "another")
    )
    with pytest.raises(ValueError, match="no block between"):
        documented("nothing")


def test_families_are_sorted_and_consistent():
    found = families()
    assert [family.family for family in found] == sorted({family.family for family in found})
    for family in found:
        assert timm.is_model(family.example)
        known = family.traced + family.alike
        assert 1 <= family.traced <= known <= family.models
        for method in STAND_FOR:
            assert 0 <= family.possible(method) <= known
            assert (family.possible(method) < known) <= (method in family.why)
        assert family.verdict == "refused" or any(family.works.values())


@pytest.mark.fast(name="beit")
@pytest.mark.parametrize("name", ["beit", "mlp_mixer", "cait", "resnet"])
def test_the_data_say_what_planning_says(name):
    """Of one example of several kinds: what works in the data is what planning finds now."""
    (family,) = [family for family in families() if family.family == name]
    methods = Catalog.default().resolve_all(STAND_FOR, "quick", {})
    try:
        found = unmet(ClassificationSuite("families", Classes(), ()), f"timm:{family.example}@random", methods, SCHEMES)
    except UsageError:
        assert family.verdict == "refused"
        return
    for method, resolved in zip(STAND_FOR, methods, strict=True):
        works = any((resolved.name, scheme) not in found for scheme in SCHEMES)
        assert works == bool(family.possible(method))


@pytest.mark.parametrize(
    ("works", "verdict"),
    [
        (dict.fromkeys(STAND_FOR, 4), "all methods"),
        ({}, "refused"),
        ({"minmax": 4, "repq": 4}, "calibrators without blocks only"),
        ({method: 4 for method in STAND_FOR if method != "clamp"}, "all but clamp"),
        (dict.fromkeys(STAND_FOR, 2), "all methods (2 of 4)"),
        ({**dict.fromkeys(STAND_FOR, 4), "clamp": 1}, "all methods (1 to 4 of 4)"),
    ],
)
def test_verdicts(works, verdict):
    counts = {f"{method}/full": count for method, count in works.items()}
    assert Family(family="A", models=5, traced=3, alike=1, example="a", works=counts).verdict == verdict


@pytest.fixture(scope="module")
def script():
    """The script that makes the data."""
    spec = importlib.util.spec_from_file_location("families_script", ROOT / "tests" / "perf" / "families.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("vit_tiny_patch16_224", "vit_small_patch32_384", True),
        ("vit_tiny_patch16_224", "deit3_small_patch16_224", False),  # LayerScale
        ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", False),  # registers
        ("resnet18", "resnet34", True),
        ("resnet18", "resnet50", False),
    ],
)
def test_names_that_differ_only_in_size_have_one_structure(script, name, other, same):
    first, second = (script.structure(n) for n in (name, other))
    assert (first["structure"] == second["structure"]) == same
    assert first["parameters"] != second["parameters"]


def test_facts_are_taken_over_within_a_structure_alone(script):
    structures = {
        name: {"structure": name[0], "parameters": int(name[1]), "family": name} for name in ("a1", "a2", "b1", "c1")
    }
    facts = [{"name": "a1", "lacks": {}, "family": "a1"}, {"name": "b1", "refused": "why", "family": "b1"}]
    assert script.alike(facts, structures) == [
        {"name": "a2", "lacks": {}, "family": "a2", "parameters": 2, "alike": True}
    ]


def test_names_are_looked_at_in_turn_transformers_first(script):
    names = ["swin_base_patch4_window7_224", "swin_tiny_patch4_window7_224", "resnet50", "resnet18", "pvt_v2_b0"]
    assert script.ordered(names) == ["pvt_v2_b0", names[1], names[0], "resnet18", "resnet50"]


def test_listing_shows_families(capsys):
    from rich.console import Console

    from harness.catalog.listing import show_list
    from harness.run.executors.registry import executors

    show_list("models", Catalog.default(), Console(width=200), executors)
    shown = capsys.readouterr().out
    assert "timm:NAME@random" in shown
    assert all(f"timm:{family.example}" in shown for family in families())
    assert "mlp_mixer" in shown
