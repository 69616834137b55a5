"""The recipes of the papers, pinned: options that presets give, constants of the code, and the schedules that come of
them. A change of one of these numbers changes what a method is, so it has to be made here as well, on purpose.

`python tests/methods/test_recipes.py` writes `recipes.json` anew.
"""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model

from harness.api.plugins import KINDS, PRESETS
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.core.synthesis.descent import optimise_images
from methods.core.synthesis.options import SynthesisOptions

RECIPES = Path(__file__).with_name("recipes.json")
METHODS = Path(__file__).parents[2] / "methods"
NO_RECIPES = ("core/graph/", "core/audit/", "core/numerics/levels.py", "core/numerics/chunks.py")


def options_of_presets() -> dict[str, Any]:
    """`kind:plugin` -> preset -> its options, of all built-in plugins."""
    from methods.catalog import CALIBRATORS, METHODS, SOURCES, TRANSFORMS

    catalog, names = Catalog.default(), dict(zip(KINDS, (METHODS, SOURCES, TRANSFORMS, CALIBRATORS), strict=True))
    return {
        f"{kind}:{name}": {
            preset: catalog.of(kind).get(name).resolve(preset, {}).model_dump(mode="json") for preset in PRESETS
        }
        for kind in KINDS
        for name in names[kind]
    }


def constants() -> dict[str, Any]:
    """`module.NAME` -> value, of all constants of `methods` that hold numbers; what watches networks has no recipe."""
    found = {}
    for path in sorted(METHODS.rglob("*.py")):
        if path.relative_to(METHODS).as_posix().startswith(NO_RECIPES):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            numbers = [part for part in ast.walk(node.value) if _is_number(getattr(part, "value", None))]
            is_plugin = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "PluginInfo"
            if isinstance(target, ast.Name) and target.id.strip("_").isupper() and numbers and not is_plugin:
                module = path.relative_to(METHODS).with_suffix("").as_posix().replace("/", ".")
                found[f"{module}.{target.id}"] = ast.unparse(node.value)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def present() -> dict[str, Any]:
    return {"options": options_of_presets(), "constants": constants()}


@pytest.mark.parametrize("part", ["options", "constants"])
def test_k6_recipes_are_those_that_are_written_down(part):
    """FAULTS K6: recipes of which nothing held the values."""
    pinned, found = json.loads(RECIPES.read_text(encoding="utf-8"))[part], present()[part]
    changed = sorted(name for name in pinned.keys() | found.keys() if pinned.get(name) != found.get(name))
    assert not changed, {name: (pinned.get(name), found.get(name)) for name in changed}


# --- schedules of synthesis ------------------------------------------------------------------------------------------


@pytest.fixture
def adam(monkeypatch) -> list[dict[str, Any]]:
    """The settings of the optimizer at each of its steps."""
    seen: list[dict[str, Any]] = []

    class Recording(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append({k: self.param_groups[0][k] for k in ("lr", "betas", "eps", "weight_decay")})
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return seen


def rates(peak: float, steps: int, rounds: int, *, warmup: float, floor: float) -> list[float]:
    """A share of a round up in a straight line, then half a cosine down to `floor` of the peak; every round alike."""
    up = round(warmup * steps)
    rise = [(i + 1) / up for i in range(up)]
    fall = [floor + (1 - floor) * (1 + math.cos(math.pi * i / (steps - up))) / 2 for i in range(steps - up)]
    return [peak * share for share in (rise + fall) * rounds]


PSAQ_VIT = {"warmup": 0.2, "floor": 0.0, "decay": 0.0, "betas": (0.5, 0.9)}  # and what takes its optimizer over
MIMIQ = {"peak": 0.1, "warmup": 0.0, "floor": 0.01, "decay": 1e-6, "betas": (0.9, 0.999)}  # and MaskAQ's


@pytest.mark.parametrize(
    ("source", "network", "recipe"),
    [
        ("psaq", "vit", {"peak": 0.20, **PSAQ_VIT}),
        ("psaq", "swin", {"peak": 0.25, **PSAQ_VIT}),
        ("clamp", "vit", {"peak": 0.20, **PSAQ_VIT}),
        ("clamp", "swin", {"peak": 0.25, **PSAQ_VIT}),
        ("sardfq", "vit", {"peak": 0.20, **PSAQ_VIT}),
        ("fdd", "swin", {"peak": 0.25, **PSAQ_VIT}),
        ("mimiq", "vit", MIMIQ),
        ("maskaq", "vit", MIMIQ),
    ],
)
def test_k6_learning_rates_of_every_source(adam, source, network, recipe):
    """FAULTS K6: synthesis without its warm-up passed every test."""
    info = Catalog.default().sources.get(source)
    rounds = info.resolve("paper", {}).rounds
    options = info.resolve("paper", {"images": 2, "steps": 10})
    info.load()(options).images(tiny_model(network), spec=BitSpec(4, 8), scheme="full", calib=None, ctx=FakeContext())
    recipe = dict(recipe)
    peak, decay, betas = (recipe.pop(name) for name in ("peak", "decay", "betas"))
    assert [step["lr"] for step in adam] == pytest.approx(rates(peak, 10, rounds, **recipe), rel=1e-9, abs=1e-15)
    assert {step["betas"] for step in adam} == {betas}
    assert {step["eps"] for step in adam} == {1e-8}
    assert {step["weight_decay"] for step in adam} == {decay}


@pytest.mark.parametrize(
    ("calibrator", "constant", "falling"),
    [
        ("adaround", 1e-3, ()),
        ("brecq", 1e-3, ()),
        ("qdrop", 1e-3, (4e-5,)),
        ("aphq", 1e-3, (4e-5,)),
        ("fimaq", 1e-3, (4e-5,)),
        ("lsvit", 1e-3, (4e-5,)),
        ("isvit", None, (4e-5,)),
        ("glfq", None, (2e-5, 2e-4)),
    ],
)
def test_learning_rates_of_what_trains(monkeypatch, calibrator, constant, falling):
    """Rounding at a constant rate; activation scales, and weights themselves, along half a cosine down to zero."""
    seen: list[list[float]] = []

    class Recording(torch.optim.Adam):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    info = Catalog.default().calibrators.get(calibrator)
    short = {"steps": 4, "scale_steps": 1, "mlp": "gelu"}
    options = info.resolve("paper", {name: value for name, value in short.items() if name in info.options.model_fields})
    model = tiny_model("vit")
    info.load()(options).calibrate(model, images(4), spec=BitSpec(4, 4), scheme="matmul", ctx=FakeContext())
    for step, rates_ in enumerate(seen[:4]):
        cosine = [rate * (1 + math.cos(math.pi * step / 4)) / 2 for rate in falling]
        assert rates_ == pytest.approx(([] if constant is None else [constant]) + cosine)


def augmentations(rounds: int, steps: int, jitter: int, side: int, mirror: float = 0.5) -> list[tuple[int, int, bool]]:
    """(round, roll in pixels, mirrored) of every step, read off an image with two marked pixels."""
    model = tiny_model("vit")
    marked = torch.zeros(1, 1, side, side)
    marked[0, 0, 0, 0], marked[0, 0, 0, 1] = 1.0, 0.5
    seen: list[tuple[int, int, bool]] = []

    def loss(batch: torch.Tensor) -> torch.Tensor:
        row, column = divmod(int(batch.detach().argmax()), side)
        mirrored = bool(batch.detach()[0, 0, row, (column - 1) % side] > 0.25)
        seen.append((len(seen) // steps, (row + side // 2) % side - side // 2, mirrored))
        return batch.sum() * 0.0

    optimise_images(
        model,
        marked,
        loss,
        SynthesisOptions(images=1, rounds=rounds, steps=steps, jitter=jitter),
        name="synthesize",
        lr=1e-9,
        rounds=rounds,
        steps=steps,
        generator=torch.Generator().manual_seed(0),
        ctx=FakeContext(),
        mirror=mirror,
    )
    return seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_one_sentence(value):
    """As of a network whose weights hold NaN."""
    model = tiny_model("vit")
    with pytest.raises(
        FloatingPointError, match=rf"^the loss of synthesis is {value} in step 1; are the model's outputs"
    ):
        optimise_images(
            model,
            images(2),
            lambda x: x.square().sum() * value,
            SynthesisOptions(),
            name="x",
            lr=0.1,
            rounds=1,
            steps=2,
            generator=torch.Generator(),
            ctx=FakeContext(),
        )


@pytest.mark.parametrize(("side", "jitter"), [(224, 15), (32, 15), (112, 30)])
def test_k6_jitter_grows_with_every_round(side, jitter):
    """FAULTS K6: a jitter that no longer grows with the round passed every test."""
    seen = augmentations(3, 120, jitter, side)
    for round_ in range(3):
        rolls = {abs(roll) for number, roll, _ in seen if number == round_}
        reach = min(round(jitter * (round_ + 1) * side / 224), side // 2)
        assert reach - 2 <= max(rolls) <= reach


def test_half_of_the_steps_see_the_mirrored_image():
    mirrored = [flag for _, _, flag in augmentations(1, 400, 0, 16)]
    assert 0.42 < sum(mirrored) / len(mirrored) < 0.58
    assert not any(flag for _, _, flag in augmentations(1, 50, 0, 16, mirror=0.0))


if __name__ == "__main__":
    RECIPES.write_text(json.dumps(present(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
