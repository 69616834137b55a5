from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.identity.code import Code
from harness.results.record import Stage
from harness.run.context import Context
from harness.run.memory import MemoryMeter


def code(fingerprint: str, **versions: str) -> Code:
    return Code(fingerprint, tuple(versions.items()))


CODE = code("c", torch="2")


@pytest.fixture
def context(settings, toy_cell):
    def make(method: str = "toynoise", *, given: Mapping[str, Any] = MappingProxyType({}), **changes) -> Context:
        cell = toy_cell(method, **changes)
        return Context(cell, **(common(settings) | dict(given)))

    return make


def common(settings) -> dict[str, Any]:
    return {
        **{"cache": settings.cache, "code": CODE, "code_of": lambda info: code("of " + info.name), "threads": 1},
        **{"device": torch.device("cpu"), "report": lambda *_: None},
    }


def test_stages_add_up_to_the_whole(context, monkeypatch):
    ctx = context()
    ticks = iter([0.0, 1.0, 3.0, 4.0, 10.0, 15.0])
    monkeypatch.setattr(ctx, "_now", lambda: next(ticks))
    with ctx.stage("search"), ctx.stage("synthesize"):
        pass
    with ctx.stage("search"):
        pass
    assert {name: stage.seconds for name, stage in ctx.stages.items()} == {"search": 7.0, "synthesize": 2.0}


def test_generators_depend_on_the_repetition_and_not_on_the_method(context):
    def draw(ctx, *names):
        return torch.rand(3, generator=ctx.generator(*names)).tolist()

    assert draw(context(), "images") == draw(context("toyreal", bits="W8A8"), "images")
    assert draw(context(), "images") != draw(context(seed=1), "images")
    assert draw(context(), "images") != draw(context(model="tiny2"), "images")
    assert draw(context(), "images") != draw(context(), "targets")


def test_diagnostics_must_be_json(context):
    ctx = context()
    ctx.diagnostics("loss", {"curve": torch.ones(2), "last": 3})
    assert ctx.kept_diagnostics == {"loss": {"curve": [1.0, 1.0], "last": 3}}
    with pytest.raises(TypeError, match="JSON-able"):
        ctx.diagnostics("bad", {"x": object()})
    with pytest.raises(ValueError, match="JSON"):
        ctx.diagnostics("bad", {"x": math.nan})


def test_memory_of_reused_results_counts():
    meter = MemoryMeter("cpu")
    meter.include(1e6)
    assert meter.added_mib == 1e6
    assert meter.peak_mib > 1e6


def test_snapshots_survive_the_cache(context):
    def make(ctx):
        def images():
            pixels = torch.zeros(6, 1, 4, 4)
            for step in (0, 2):
                pixels.fill_(step)
                ctx.snapshot(step, pixels)
            return pixels + 1

        return images

    model = SimpleNamespace(mean=(0.5,), std=(0.1,))
    miss, hit = context(), context("toyreal")
    miss.cached_images({"source": "x"}, make(miss))
    hit.cached_images({"source": "x"}, lambda: pytest.fail("a hit makes nothing"))
    for ctx in (miss, hit):
        found = ctx.kept_snapshots(model)
        assert list(found) == [0, 2]
        assert {step: (images.shape, set(images.ravel().tolist())) for step, images in found.items()} == {
            0: ((4, 4, 4, 1), {128}),
            2: ((4, 4, 4, 1), {178}),
        }


def test_a_snapshot_is_a_copy_and_the_first_of_a_step_counts(context):
    ctx = context()
    pixels = torch.zeros(2, 1, 4, 4)
    ctx.snapshot(3, pixels)
    pixels.fill_(1.0)
    ctx.snapshot(3, pixels)
    (images,) = ctx.kept_snapshots(SimpleNamespace(mean=(0.0,), std=(1.0,))).values()
    assert images.max() == 0


def test_a_part_of_the_model_is_another_scope_but_the_same_seed(context):
    whole, part = context(), context(scheme="full:backbone")
    assert part.scope == {**whole.scope, "part": "backbone"}
    assert part.seed("images") == whole.seed("images")


def test_cached_images_cost_what_making_them_took(context, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("harness.run.context.time.perf_counter", lambda: float(next(clock)))
    miss, hit = context(), context("toyreal")
    for ctx in (miss, hit):
        with ctx.stage("other"):
            next(clock)
            ctx.cached_images({"source": "x"}, lambda: torch.zeros(1, 1, 4, 4))
    assert hit.stages["synthesize"] == Stage(seconds=miss.stages["synthesize"].seconds, cached=True)
    assert not hit.stages["other"].cached  # what the outer stage took before is none of the images' cost


def test_held_out_images_are_cached_apart_and_calibrate_nothing(context):
    def drawn(ctx, **more):
        return ctx.cached_images({"source": "x"}, lambda: torch.rand(1, 1, 4, 4), **more)

    miss, hit = context(), context("toyreal")
    found = [(drawn(ctx, held_out=True), drawn(ctx), ctx.images_from) for ctx in (miss, hit)]
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    assert set(hit.stages) == {"held-out", "synthesize"}
    other = context()
    drawn(other, held_out=True)
    assert other.stages["held-out"].cached
    assert other.images_from is None
    assert (found[0][2] is None, found[1][2] is None) == (True, False)


def test_random_numbers_do_not_depend_on_the_code(context):
    """Only on what the images are for: an edit elsewhere must not move a method that draws torch's own numbers."""
    drawn = []
    for fingerprint in ("c", "d"):
        ctx = context(given={"code": code(fingerprint)})
        images = ctx.cached_images({"source": "x"}, lambda: torch.rand(1, 1, 4, 4))
        drawn.append((images.tolist(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
