"""The verdicts on a paper's numbers, and the recipes that are here."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import timm

from harness.catalog.catalog import Catalog
from harness.plan.plan import Plan
from harness.plan.reproduction import Choice, Printed, Reproduction, Target, plan_reproduction
from harness.report.sections.reproduced import accepted, behind, judge, margin, markdown, reproduced
from harness.results import published
from harness.results.recipes import Recipe, read_recipe, recipe_names
from harness.results.store import Store


def test_verdicts() -> None:
    assert judge(70.4, 70.0, [], 0.5, 0.0) == "reproduced"
    assert judge(69.0, 70.0, [68.8], 0.5, 0.0) == "as others"
    assert judge(69.0, 70.0, [], 0.5, 0.6) == "open"
    assert judge(69.0, 70.0, [], 0.5, 0.1) == "lower"
    assert judge(71.0, 70.0, [68.0], 0.5, 0.1) == "higher"
    assert accepted(70.0, [68.0, 71.0], 0.5) == (67.5, 71.5)


def test_a_margin_is_of_seeds_and_of_images_left_out() -> None:
    assert margin([70.0], 50_000, 50_000) == 0
    # Student's t of two degrees of freedom is 4.303.
    values = [70.0, 70.2, 70.4]
    assert margin(values, 50_000, 50_000) == pytest.approx(4.303 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-3)
    assert margin([70.0], 1000, 50_000) == pytest.approx(196 * math.sqrt(0.7 * 0.3 / 1000))
    both = margin(values, 1000, 50_000)
    assert both == pytest.approx(math.hypot(margin(values, 50_000, 50_000), margin([70.2], 1000, 50_000)), rel=2e-3)


def target(**changes) -> Target:
    fields = {"method": "M", "model": "DeiT-S", "bits": "MP4.5A6", "scheme": "full", "note": "", "measured": "m"}
    fields |= {"printed": Printed(70.0, "a paper"), "others": (Printed(68.0, "another"),), "keys": ("a", "b", "c")}
    fields |= {"float_printed": Printed(79.85, "a paper"), "measured_bits": "MP4.5", "float_key": "float"}
    return Target(**{**fields, **changes})


def cell(key: str, accuracy: float, **changes) -> dict[str, object]:
    row = {"key": key, "status": "ok", "accuracy": accuracy, "images": 50_000, "verified": True}
    return row | {"mean_weight_bits": 4.49, "mean_activation_bits": 6.2} | changes


def test_numbers_are_shown_with_missing_seeds_marks_and_widths() -> None:
    recipe = read_recipe("psaq")
    plan = Reproduction(recipe, Plan(()), (target(), target(model="Swin-S", keys=("d",))), ("something: a reason",))
    cells = [cell("a", 69.0, verified=False), cell("b", 69.2), cell("c", 0.0, status="failed"), cell("float", 79.8)]
    frame = reproduced(plan, pd.DataFrame(cells))
    assert frame["verdict"].tolist() == ["as others", "not measured"]
    text = markdown(plan, frame)
    row = (
        r"\| DeiT-S \| MP4.5A6 .*\| 69.10 ± 0.14 \[2/3\] § .*-0.90 \| 67.55 … 70.45 .*79.85, 79.80 .*MP4.5: W4.49 A6.20"
    )
    assert re.search(row, text)
    assert "2 numbers: 1 as others, 1 not measured." in text
    for sentence in (
        "`§` marks a result",
        "- something: a reason",
        "M on DeiT-S at MP4.5A6, M on Swin-S at MP4.5A6: 68.00",
    ):
        assert sentence in text
    assert behind(plan)[0] == (
        "Tolerance",
        [f"0.45 points, the spread of others who ran the method again: {recipe.tolerance.source}"],
    )
    other = reproduced(plan, pd.DataFrame([cell("a", 70.0), cell("float", 80.1)]))
    assert other["verdict"].tolist() == ["other float", "not measured"]


@pytest.fixture(scope="module")
def numbers() -> published.Published:
    return published.read()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_methods_models_and_bits_that_are_here(name, numbers, tmp_path, monkeypatch) -> None:
    """Without data: the suite's answers are made up, the recipe's names are looked up."""
    recipe, asked = read_recipe(name), []

    def plan(request, catalog, store):
        asked.append(request)
        raise LookupError

    monkeypatch.setattr("harness.plan.reproduction.make_plan", plan)
    with pytest.raises(LookupError):
        plan_reproduction(recipe, numbers, Choice(), Catalog.default(), Store(tmp_path))
    (request,) = asked
    assert request.preset == "paper"
    assert set(request.methods) == set(recipe.methods.values())
    known = set(timm.list_models(pretrained=True))
    for model in request.models:
        assert model.removeprefix("timm:") in known | {each.partition(".")[0] for each in known}
    tested = numbers.numbers
    own = tested["source"].str.startswith((*recipe.sources, *recipe.quoted))
    rows = tested[own & tested["method"].isin(recipe.methods)]
    assert set(rows.loc[rows["dataset"] == "imagenet", "bits"].replace(dict(recipe.bits))) == set(request.bits)
    assert set(recipe.methods) == set(rows["method"])
    assert set(recipe.models) <= set(rows["model"])
    assert set(recipe.bits) <= set(rows["bits"])
    floats = tested[(tested["method"] == "float") & tested["source"].str.startswith(recipe.floats)]
    assert set(rows.loc[rows["dataset"] == "imagenet", "model"]) <= set(floats["model"])


def test_tolerances_that_stand_on_numbers_here_are_those(numbers) -> None:
    psaq = numbers.numbers[numbers.numbers["method"].eq("PSAQ-ViT") & numbers.numbers["scheme"].eq("full")]
    both = psaq.assign(own=psaq["source"].str.startswith("PSAQ-ViT README")).pivot_table(
        index=["model", "bits"], columns="own", values="value"
    )
    assert len(both.dropna()) == 10
    spread = math.sqrt(((both[True] - both[False]) ** 2).mean())
    assert read_recipe("psaq").tolerance.points == pytest.approx(spread, abs=0.01)
    assert read_recipe("fdd").tolerance.points == read_recipe("psaq").tolerance.points


def test_a_recipe_needs_what_makes_a_verdict() -> None:
    fields = Recipe.model_json_schema()["required"]
    assert {"paper", "sources", "methods", "tolerance", "settings"} == set(fields)
