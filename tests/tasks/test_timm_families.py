"""The generated table of timm's families says what its data say, and the data what planning says."""

from __future__ import annotations

import pytest
import timm

from harness.catalog import Catalog
from harness.errors import UsageError
from harness.requirements import unmet
from tasks.families import DOCUMENT, SCHEMES, STAND_FOR, Family, documented, families
from tasks.timm_cls import ClassificationSuite


class Classes:
    classes = 1000


def test_the_document_is_made_from_the_data():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert documented(text) == text, "run nox -s families, or tasks.families.documented on docs/models.md"
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
        assert 1 <= family.traced <= family.models
        for method in STAND_FOR:
            assert 0 <= family.possible(method) <= family.traced
            assert (family.possible(method) < family.traced) <= (method in family.why)
        assert family.verdict == "refused" or any(family.works.values())


@pytest.mark.parametrize("name", ["beit", "mlp_mixer", "cait", "resnet"])
def test_the_data_say_what_planning_says(name):
    """Of one example of several kinds: what works in the data is what planning finds now."""
    (family,) = [family for family in families() if family.family == name]
    methods = Catalog.default().resolve_all(STAND_FOR, "quick", {})
    try:
        found = unmet(ClassificationSuite("families", Classes(), ()), f"timm:{family.example}", methods, SCHEMES)
    except UsageError:
        assert family.verdict == "refused"
        return
    for method, resolved in zip(STAND_FOR, methods, strict=True):
        works = any((resolved.name, scheme) not in found for scheme in SCHEMES)
        assert works == bool(family.possible(method))


@pytest.mark.parametrize(
    ("works", "verdict"),
    [
        (dict.fromkeys(STAND_FOR, 3), "all methods"),
        ({}, "refused"),
        ({"minmax": 3, "repq": 3}, "calibrators without blocks only"),
        ({method: 3 for method in STAND_FOR if method != "clamp"}, "all but clamp"),
        (dict.fromkeys(STAND_FOR, 2), "all methods (2 of 3 traced)"),
        ({**dict.fromkeys(STAND_FOR, 3), "clamp": 1}, "all methods (1 to 3 of 3 traced)"),
    ],
)
def test_verdicts(works, verdict):
    counts = {f"{method}/full": count for method, count in works.items()}
    assert Family(family="A", models=3, traced=3, example="a", works=counts).verdict == verdict


def test_listing_shows_families(capsys):
    from rich.console import Console

    from harness.listing import show_list

    show_list("models", Catalog.default(), Console(width=200))
    shown = capsys.readouterr().out
    assert "timm:NAME@random" in shown
    assert all(f"timm:{family.example}" in shown for family in families())
    assert "mlp_mixer" in shown
