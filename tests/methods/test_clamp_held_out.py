"""CLAMP-ViT's search is never worse than its start, by held-out images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, FakeContext, images, tiny_model
from tiny_options import TINY

from harness.api.spec import BitSpec
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.working import Working
from methods.core.audit import audit
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.held_out import HeldOutContext, output_distance
from methods.end_to_end.clamp.held_out import SOURCES, held_out_images, nearer
from methods.end_to_end.clamp.info import INFO, ClampOptions
from methods.end_to_end.clamp.method import Clamp

SMALL = {k: v for k, v in TINY.items() if k in ClampOptions.model_fields} | {"held_out_steps": 2}


def quantized(name: str, bits: str, seed: int, **options: Any) -> tuple[Any, FakeContext]:
    ctx = FakeContext(seed)
    method = Clamp(ClampOptions(**SMALL | options))
    return method.quantize(tiny_model(name), spec=BitSpec.parse(bits), scheme="full", calib=None, ctx=ctx), ctx


@pytest.mark.usual(name="vit", seed=[0, 1])
@pytest.mark.usual(name="swin", seed=0, bits=["W8A8", "W4A8"])
@pytest.mark.fast(bits=["W4A8"], seed=[0, 1])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "MP4.5"])
@pytest.mark.parametrize("search", ["layer", "network"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_never_further_from_float_than_the_start(name, search, bits, seed):
    """The search loses more often than not here, by InfoNCE; with it the result is the start, or else nearer."""
    model = tiny_model(name)
    literal = {"search": search, "local_loss": "infonce", "search_temperature": 0.1}
    found, ctx = quantized(name, bits, seed, **literal)
    free, _ = quantized(name, bits, seed, **literal, held_out="none")
    told = ctx.found["held_out"]
    judges = held_out_images(
        "psaq", ClampOptions(**SMALL), model, spec=BitSpec.parse(bits), scheme="full", ctx=FakeContext(seed)
    )
    distance, searched = (output_distance(model, each, judges["psaq"]) for each in (found, free))
    start = told["start"]["psaq"]
    assert told["search"] == {"psaq": searched}
    assert told["kept"] == (searched < start)
    assert distance == min(start, searched)
    x = images()
    assert torch.equal(found(x), free(x)) == told["kept"]
    if told["kept"]:
        return
    if bits != "MP4.5":  # else the start has the widths of the sensitivities
        graph, spec = trace(model), BitSpec.parse(bits)
        o = ClampOptions(**SMALL)
        start = Working(model, find_sites(graph, "full", spec), spec, o, ctx.kept)
        assert torch.equal(found(x), start.quantized(x))


@pytest.mark.slow
def test_both_verdicts_come_about():
    verdicts = {
        quantized("vit", "W4A8", seed, local_loss=form)[1].found["held_out"]["kept"]
        for seed in range(3)
        for form in ("infonce", "relational", "mse")
    }
    assert verdicts == {True, False}


@pytest.mark.parametrize("better", [True, False])
def test_a_model_goes_back_to_its_start_to_the_bit(better, monkeypatch):
    model, x = tiny_model("vit"), images()
    graph, spec = trace(model), BitSpec.parse("MP5")
    working = Working(model, find_sites(graph, "full", spec), spec, ClampOptions(), x)
    start, before, summary = working.state, working.quantized(x), working.quantized.summary
    working.observe(x * 2)
    working.set({name: Gene(3 + i % 5, 0.9) for i, name in enumerate(working.genes)})
    after = working.quantized(x)
    # Two judges, the searched model first: it must be better by both.
    distances = iter([1.0, 1.0, 2.0, 2.0] if better else [1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("methods.end_to_end.clamp.held_out.output_distance", lambda *_: next(distances))
    ctx = FakeContext()
    assert nearer(model, working, start, {"psaq": x, "clamp": x}, ctx) is better
    assert torch.equal(working.quantized(x), after if better else before)
    assert better or working.quantized.summary == summary
    assert ctx.found["held_out"]["kept"] is better


@pytest.mark.parametrize("source", SOURCES)
def test_held_out_images_are_of_another_seed_and_leave_no_trace(source):
    model, o, spec = tiny_model("vit"), ClampOptions(**SMALL), BitSpec.parse("W4A8")
    ctx = FakeContext()
    found = held_out_images(source, o, model, spec=spec, scheme="full", ctx=ctx)[source]
    assert found.shape == (4, *model.input_shape)
    assert not ctx.found
    assert not ctx.snapshots
    assert ctx.kept is None
    info = SOURCES[source]
    values = {k: v for k, v in {"images": 4, "rounds": 1, "steps": 2}.items() if k in info.options.model_fields}
    own = info.load()(info.resolve("paper", values)).images(model, spec=spec, scheme="full", calib=None, ctx=ctx)
    assert own.shape == found.shape
    assert not torch.allclose(own, found)
    more = {name: held_out_images(name, o, model, spec=spec, scheme="full", ctx=ctx) for name in ("none", "both")}
    assert {name: set(images_) for name, images_ in more.items()} == {"none": set(), "both": {"psaq", "clamp"}}
    if source in more["both"]:
        assert torch.equal(more["both"][source], found)


def test_a_held_out_context_hands_on_what_belongs_to_the_run():
    ctx = FakeContext(3)
    held_out = HeldOutContext(ctx)
    held_out.count(images=2)
    with held_out.stage("synthesize"):
        held_out.progress("synthesize", 0.5)
    assert (ctx.counters["images"], ctx.stages, held_out.scope) == (2, ["synthesize"], ctx.scope)
    draws = [torch.rand((), generator=each.generator("noise")) for each in (ctx, held_out, HeldOutContext(ctx))]
    assert draws[1] == draws[2] != draws[0]


@pytest.mark.usual(name="vit")
@pytest.mark.usual(bits="W4A8")
@pytest.mark.fast(bits=["MP4.5"])
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "MP4.5"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_search_keeps_the_contract_of_methods(name, bits):
    model, x = tiny_model(name), images(3, seed=5)
    results = [quantized(name, bits, 0, search="network", held_out="none")[0] for _ in range(2)]
    assert torch.equal(results[0](x), results[1](x))
    audited, findings = audit(model, results[0], x, scheme="full", spec=BitSpec.parse(bits), thorough=True)
    assert not findings
    assert torch.equal(audited, results[0](x))
    layers = results[0].summary.layers
    assert sum(s.size * s.bits for s in layers) <= float(bits[2:] if bits[0] == "M" else bits[1]) * sum(
        s.size for s in layers
    )


def test_describe_says_that_keeping_the_better_is_ours():
    assert "ours" in (INFO.options.model_fields["held_out"].description or "")
    assert any("never worse than its start" in text for text in INFO.deviations)
    assert {INFO.resolve(preset, {}).held_out for preset in ("quick", "default", "paper")} == {"psaq"}
