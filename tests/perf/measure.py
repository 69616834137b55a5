"""Performance claims, measured: `nox -s perf`. Every figure is a ratio between two ways in one process.

Nothing here is a test: times depend on the machine, so they are printed, not asserted.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from allocation import measured as ways_with_memory
from jobs import measured as side_by_side
from rich.console import Console
from rich.table import Table
from startup import measured
from torch import Tensor
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import BitSpec
from harness.run.memory import MemoryMeter
from methods.calibrators.clamp_search.fitness import Fitness
from methods.calibrators.clamp_search.genes import Gene
from methods.calibrators.clamp_search.info import SearchStage
from methods.calibrators.clamp_search.network_fitness import NetworkFitness
from methods.calibrators.clamp_search.search import Search
from methods.calibrators.clamp_search.vectors import VectorEvolution
from methods.calibrators.clamp_search.working import Working
from methods.calibrators.minmax.info import INFO as MINMAX
from methods.calibrators.ptq4vit.info import INFO as PTQ4VIT
from methods.calibrators.repq.info import INFO as REPQ
from methods.core.contrast import output_contrast
from methods.core.graph.intercept import Interceptor, OpKey, tap_transforms
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks
from methods.core.graph.trace import trace, trace_net
from methods.core.synthesis.descent import start_images
from methods.core.synthesis.similarity import entropy, patch_similarity
from methods.end_to_end.clamp.info import INFO as METHOD
from methods.end_to_end.clamp.info import ClampOptions
from methods.sources.clamp.source import Stage1, weight_only
from tasks.models.attention import unfused

SHAPE = (3, 224, 224)


def commands(table: Table) -> None:
    """CPU time of commands on a folder of results, as multiples of the time in which `list methods` starts and ends."""
    start = 0.0
    for what, _, seconds in measured():
        start = start or seconds
        table.add_row(
            what, "CPU seconds; beside it start-up", f"{seconds:.2f}", f"{start:.2f}", f"{seconds / start:.1f}"
        )


def random_net(name: str) -> torch.nn.Module:
    """A timm model with random weights, ready to be intercepted."""
    torch.manual_seed(0)
    net = unfused(timm.create_model(name, pretrained=False).eval())
    return net.requires_grad_(False)


def broadcast_entropy(context: Tensor, images: int, bandwidth: float, points: int) -> Tensor:
    """PSAQ-ViT's entropy the way its reference computes it: broadcast cosine similarity, all kernels at once."""
    f = context.mean(1)[:, 1:]
    similarity = functional.cosine_similarity(f[:, :, None], f[:, None], dim=-1).reshape(images, -1)
    low, high = similarity.detach().aminmax()
    grid = torch.linspace(0, 1, points, dtype=context.dtype) * (high - low) + low
    kernels = torch.exp(-0.5 * ((grid[:, None, None] - similarity) / bandwidth) ** 2)
    p = (kernels / (bandwidth * math.sqrt(2 * math.pi))).mean(-1).T + 1e-4
    return torch.trapezoid(-p * p.log(), grid, dim=1).mean()


def gram_entropy(context: Tensor, images: int, bandwidth: float, points: int) -> Tensor:
    """The project's form."""
    return entropy(patch_similarity(context, images), bandwidth, points)


def psaq_step(
    name: str, batch: int, form: Callable[[Tensor, int, float, int], Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float, float]:
    """One generation step's image gradient of the similarity entropy plus cross-entropy; seconds and added MiB."""
    net = random_net(name).to(dtype)
    points = [block.context for block in find_blocks(trace_net(random_net(name), SHAPE))]
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    labels = torch.arange(batch)
    found: dict[tuple[OpKey, int], Tensor] = {}
    gc.collect()
    meter, start = MemoryMeter("cpu"), time.perf_counter()
    with Interceptor(net, tap_transforms(points, found)):
        output = net(images)
        total = torch.stack([form(found.pop(point), batch, 0.01, 10) for point in points]).sum()
        (functional.cross_entropy(output, labels) - total).backward()
    seconds, added = time.perf_counter() - start, meter.added_mib
    assert images.grad is not None
    return images.grad, seconds, added


def psaq(table: Table, name: str, batch: int) -> None:
    """Memory, time and gradient of both forms of one PSAQ-ViT step."""
    # The smaller first: freed memory that the allocator keeps would flatter whatever runs second.
    ours, seconds, memory = psaq_step(name, batch, gram_entropy)
    theirs, slow, large = psaq_step(name, batch, broadcast_entropy)
    # In float32 both forms carry rounding errors that the narrow kernels enlarge, so equality is judged in float64.
    exact, other = (psaq_step(name, 2, form, torch.float64)[0] for form in (gram_entropy, broadcast_entropy))
    single = [psaq_step(name, 2, form)[0] for form in (gram_entropy, broadcast_entropy)]
    what = f"PSAQ-ViT step, {name}, batch {batch}"
    table.add_row(what, "added peak memory, MiB", f"{memory:,.0f}", f"{large:,.0f}", f"{memory / large:.3f}")
    table.add_row(what, "seconds", f"{seconds:.1f}", f"{slow:.1f}", f"{seconds / slow:.2f}")
    table.add_row(what, "relative gradient difference, float32", f"{_relative(ours, theirs):.1e}", "", "")
    what = f"PSAQ-ViT step, {name}, batch 2"
    table.add_row(what, "relative gradient difference, float64", f"{_relative(exact, other):.1e}", "", "")
    errors = [f"{_relative(gradient, exact):.1e}" for gradient in single]
    table.add_row(what, "float32 gradient, distance from float64", *errors, "")


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def search(table: Table, name: str, batch: int) -> None:
    """Candidates a second of the search, against running the whole model from the image for each, over all layers."""
    model = bare_model(name)
    graph = trace(model)
    spec = BitSpec(4, 8)
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    options = SearchStage(passes=1, output_loss="accept")
    working = Working(model, find_sites(graph, "full", spec), spec, options, images)
    fitness = Fitness(model, graph, working, options, images)
    blocks = fitness.blocks
    genes = [Gene(4, 1.0 - 0.02 * i) for i in range(options.population)]
    fast = slow = 0.0
    layers, worst = 0, 0.0
    runner = fitness.runner
    for segment in fitness.segments:
        for site in segment.layers:
            with runner:
                runner.enter(segment)
                runner.record(segment)
                start = time.perf_counter()
                values = fitness.values(segment, site, genes)
                fast += time.perf_counter() - start
            # The straightforward way: one of the candidates in the whole model, from the image.
            number = layers % len(genes)
            working.set({site.parameter: genes[number]})
            found: dict[OpKey, Tensor | None] = {}
            start = time.perf_counter()
            with torch.no_grad(), working.quantized.interceptor(record=found):
                output = working.quantized.net(images)
                reference = fitness.reference(segment)
                if segment.is_block:
                    output = found[blocks[segment.index].output]
                elif segment.index < len(blocks):
                    output = None  # its output has no key of its own; the time is what is wanted
                if output is not None:
                    value = float(output_contrast(output.reshape(reference.shape), reference, 0.1))
                    worst = max(worst, abs(value - values[number]))
            slow += time.perf_counter() - start
            working.set({site.parameter: Gene(4, 1.0)})
            layers += 1
    what = f"search, {name}, {batch} images, mean of {layers} layers"
    fast_rate, slow_rate = layers * len(genes) / fast, layers / slow
    table.add_row(what, "candidates per second", f"{fast_rate:.1f}", f"{slow_rate:.2f}", f"{fast_rate / slow_rate:.1f}")
    table.add_row(what, "largest fitness difference", f"{worst:.1e}", "", "")


def network(table: Table, name: str, batch: int) -> None:
    """Children a second of the search of whole networks, against running the whole model from the image for each."""
    model = bare_model(name)
    graph, spec, options = trace(model), BitSpec(4, 8), SearchStage(search="network", population=5)
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    working = Working(model, find_sites(graph, "full", spec), spec, options, images)
    losses = Fitness(model, graph, working, options, images)
    fitness = NetworkFitness(losses, working, graph, blocks_alone=False, whole=True)
    evolution = VectorEvolution(options, working.widths, torch.Generator().manual_seed(0))
    population = evolution.start(tuple(working.genes[site.parameter] for site in fitness.layers))
    fast = slow = worst = 0.0
    count = 0
    for layer in range(0, len(fitness.layers), len(fitness.layers) // 4):
        children = evolution.children(population, layer)
        with losses.runner:
            fitness.scores(population)  # as they are when their children are run
            start = time.process_time()
            scores = fitness.scores(children)
            fast += time.process_time() - start
        for child, score in zip(children, scores, strict=True):
            start = time.process_time()
            working.set({site.parameter: gene for site, gene in zip(fitness.layers, child, strict=True)})
            output = losses.whole_loss()
            slow += time.process_time() - start
            worst = max(worst, abs(output - score.output))
        count += len(children)
    what = f"search of networks, {name}, {batch} images, {count} children"
    table.add_row(what, "children per CPU second", f"{count / fast:.2f}", f"{count / slow:.2f}", f"{slow / fast:.2f}")
    table.add_row(what, "largest output loss difference", f"{worst:.1e}", "", "")


def calibrators(table: Table, name: str, batch: int, preset: str) -> None:
    """Time and memory of calibrators at W4A4 in scheme matmul, against min-max on the same images."""
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    baseline = 0.0
    for plugin in (MINMAX, REPQ, PTQ4VIT):
        model = bare_model(name)
        calibrator = plugin.load()(plugin.resolve(preset, {}))
        gc.collect()
        meter, start = MemoryMeter("cpu"), time.perf_counter()
        calibrator.calibrate(model, images, spec=BitSpec(4, 4), scheme="matmul", ctx=Quiet())
        seconds, added = time.perf_counter() - start, meter.added_mib
        baseline = baseline or seconds
        what = f"{plugin.name}, preset {preset}, {name}, {batch} images"
        table.add_row(
            what, "seconds; beside it min-max", f"{seconds:.1f}", f"{baseline:.1f}", f"{seconds / baseline:.1f}"
        )
        table.add_row(what, "added peak memory, MiB", f"{added:,.0f}", "", "")


def layer_pass(table: Table, name: str, batch: int, steps: int) -> None:
    """Memory and time of CLAMP-ViT's stages at the `paper` preset's sizes, and what the whole preset would take."""
    model = bare_model(name)
    graph = trace(model)
    spec = BitSpec(4, 8)
    o = METHOD.resolve("paper", {"images": batch})
    assert isinstance(o, ClampOptions)
    stage1 = Stage1(model, graph, o, Quiet())
    meter, start = MemoryMeter("cpu"), time.perf_counter()
    anchor = weight_only(model, find_sites(graph, "full", spec))
    images = stage1.optimise(start_images(model, batch, Quiet()), anchor, rounds=1, steps=steps, name="synthesize")
    step = (time.perf_counter() - start) / steps
    working = Working(model, find_sites(graph, "full", spec), spec, o, images)
    start = time.perf_counter()
    evolution = Search(model, graph, working, spec, o, Quiet(), images)
    evolution.run_pass(0)
    one_pass = time.perf_counter() - start
    total = step * (o.rounds * o.steps + (o.passes - 1) * o.refresh_steps) + one_pass * o.passes
    what = f"CLAMP-ViT, preset paper, {name}, {batch} images"
    table.add_row(what, "peak memory of the process, MiB", f"{meter.peak_mib:,.0f}", "", "")
    table.add_row(what, f"seconds a synthesis step (mean of {steps})", f"{step:.1f}", "", "")
    table.add_row(what, f"seconds per search pass ({evolution.evaluated} candidates)", f"{one_pass:,.0f}", "", "")
    table.add_row(what, "hours of the whole preset, extrapolated", f"{total / 3600:.1f}", "", "")


def bare_model(name: str) -> VisionModel:
    """A classifier of random weights."""
    return VisionModel(
        name=name,
        task="classification",
        net=random_net(name),
        input_shape=SHAPE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_classes=1000,
        sample_targets=lambda n, generator: torch.randint(1000, (n,), generator=generator),
        target_loss=functional.cross_entropy,
        output_distance=lambda q, f: functional.kl_div(q.log_softmax(-1), f.softmax(-1), reduction="batchmean"),
    )


class Quiet:
    """As much of a run context as the stages need."""

    scope: Mapping[str, Any] = MappingProxyType({})

    def generator(self, *names: str) -> torch.Generator:
        return torch.Generator().manual_seed(len("".join(names)))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def count(self, **amounts: int) -> None: ...

    def cached_images(
        self, identity: Mapping[str, Any], make: Callable[[], Tensor], by: Any = None, *, held_out: bool = False
    ) -> Tensor:
        return make()

    def keep_images(self, images: Tensor) -> None: ...

    def snapshot(self, step: int, images: Tensor) -> None: ...

    def diagnostics(self, name: str, values: Mapping[str, Any]) -> None: ...

    def progress(self, text: str, fraction: float) -> None: ...


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="deit_small_patch16_224", help="timm model of the PSAQ-ViT step and the paper preset"
    )
    parser.add_argument(
        "--search-model", default="deit_tiny_patch16_224", help="timm model of the search and the calibrators"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="synthesis steps that the paper preset's time is taken of")
    parser.add_argument(
        "--only",
        choices=["startup", "jobs", "memory", "psaq", "search", "network", "calibrators", "paper"],
        help="one of them",
    )
    parser.add_argument("--preset", default="paper", help="preset of the calibrators")
    args = parser.parse_args()
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for column in ("what", "figure", "dfqbench", "straightforward", "ratio"):
        table.add_column(column)
    if args.only in (None, "startup"):
        commands(table)
    if args.only == "jobs":  # half an hour, so only when it is asked for
        for what, many, one, ratio in side_by_side():
            table.add_row(what, "seconds", f"{many:.0f}", f"{one:.0f}", f"{ratio:.2f}")
    if args.only in (None, "memory"):
        for method, text, ours, other in ways_with_memory():
            table.add_row(f"a cell of {method}; {text}", "CPU s", f"{ours:.1f}", f"{other:.1f}", f"{other / ours:.2f}")
    if args.only in (None, "psaq"):
        psaq(table, args.model, args.batch)
    if args.only in (None, "search"):
        search(table, args.search_model, args.batch)
    if args.only in (None, "network"):
        network(table, args.search_model, args.batch)
    if args.only in (None, "calibrators"):
        calibrators(table, args.search_model, args.batch, args.preset)
    if args.only in (None, "paper"):
        layer_pass(table, args.model, args.batch, args.steps)
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
