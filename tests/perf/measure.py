"""Performance claims, measured: `nox -s perf`. Every figure is a ratio between two ways in one process.

Nothing here is a test: times depend on the machine, so they are printed, not asserted.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from harness.memory import MemoryMeter
from harness.spec import BitSpec
from methods.clamp.contrast import output_contrast
from methods.clamp.segments import SegmentRunner, cut
from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.intercept import Interceptor, OpKey, tap_transforms, unfused
from methods.core.observers import MinMax
from methods.core.quantized import Quantized
from methods.core.sites import find_sites
from methods.core.structure import find_blocks
from methods.core.trace import trace
from methods.psaq.similarity import entropy, patch_similarity

SHAPE = (3, 224, 224)


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
    points = [block.context for block in find_blocks(trace(random_net(name), SHAPE))]
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
    """Time of one search candidate from caches, against a forward pass from the image, over all layers."""
    net = random_net(name)
    graph = trace(net, SHAPE)
    sites = find_sites(graph, "full", BitSpec(4, 8))
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    model = _Bare(net)
    activations = activation_quantizers(sites, observe(model, images, sites, MinMax, batch))  # type: ignore[arg-type]
    quantized = Quantized(net, sites, weight_quantizers(model, sites, symmetric=False), activations)  # type: ignore[arg-type]
    blocks = find_blocks(graph)
    fast = slow = 0.0
    layers, worst = 0, 0.0
    with SegmentRunner(quantized, blocks, images) as runner:
        for segment in cut(graph, blocks, sites.weights):
            runner.enter(segment)
            for site in segment.layers:
                reference = runner.record(segment)
                quantized.set_weight(site.parameter, quantized.weights[site.parameter].scaled(0.97))
                start = time.perf_counter()
                output = runner.candidate(segment, site)
                value = float(output_contrast(output, reference, 0.1))
                fast += time.perf_counter() - start
                layers += 1
                if segment.is_block:  # the same candidate the straightforward way
                    found: dict[OpKey, Tensor] = {}
                    with quantized.interceptor(record=found):
                        start = time.perf_counter()
                        quantized.net(images)
                        slow += time.perf_counter() - start
                    whole = found[blocks[segment.index].output].reshape(output.shape)
                    worst = max(worst, abs(float(output_contrast(whole, reference, 0.1)) - value))
                else:
                    start = time.perf_counter()
                    quantized.net(images)
                    slow += time.perf_counter() - start
    what = f"search candidate, {name}, {batch} images, mean of {layers} layers"
    table.add_row(
        what, "milliseconds", f"{1e3 * fast / layers:.1f}", f"{1e3 * slow / layers:.1f}", f"{fast / slow:.3f}"
    )
    table.add_row(what, "largest fitness difference", f"{worst:.1e}", "", "")


class _Bare:
    """As much of a VisionModel as calibration needs."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_small_patch16_224", help="timm model of the PSAQ-ViT step")
    parser.add_argument("--search-model", default="deit_tiny_patch16_224", help="timm model of the search")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for column in ("what", "figure", "dfqbench", "straightforward", "ratio"):
        table.add_column(column)
    psaq(table, args.model, args.batch)
    search(table, args.search_model, args.batch)
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
