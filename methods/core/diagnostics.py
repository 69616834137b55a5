"""Why one image source calibrates better than another, seen from outside.

How similar the patches of images look to the float model: what PSAQ-ViT and CLAMP-ViT optimise, for any images. And
what every activation site alone costs, with the range that some images gave it. Part of no method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.spec import MAX_BITS, BitSpec
from methods.core.graph.intercept import Interceptor, OpKey, tap
from methods.core.graph.sites import find_sites
from methods.core.graph.structure import find_blocks, patch_grid, to_grid
from methods.core.graph.trace import trace
from methods.core.numerics.quantizers import Uniform

ALL = "all sites"
BINS = 64  # of the histogram that is shown
BANDWIDTH = 0.01  # of the kernel-density estimate, PSAQ-ViT's
FINE = 64 * BINS  # bins on [-1, 1] that stand for the similarities in the estimate: 1/20 of the bandwidth wide


@dataclass(frozen=True)
class PatchSimilarity:
    """Cosine similarities between patches of an image, in every block, pooled over images unless said otherwise.

    Attributes:
        blocks: module path of each block; blocks that see a single patch are left out.
        edges: (65,) edges of the histogram's bins on [-1, 1].
        densities: (blocks, 64) share of the pairs of different patches per unit of similarity.
        entropies: (blocks,) PSAQ-ViT's differential entropy in nats, the mean over images.
        neighbours: (blocks,) mean similarity of adjacent patches (8 directions) less that of all pairs.
        centre: row and column of the centre patch in the last block's grid.
        maps: (images, height, width) its similarity to every patch there, in each image.
    """

    blocks: tuple[str, ...]
    edges: Tensor
    densities: Tensor
    entropies: Tensor
    neighbours: Tensor
    centre: tuple[int, int]
    maps: Tensor

    @property
    def density(self) -> Tensor:
        """(64,) mean of the densities over blocks."""
        return self.densities.mean(0)


@torch.no_grad()
def patch_similarity(model: VisionModel, images: Tensor) -> PatchSimilarity:
    """Similarities of attention's results where they enter the residual sum, for normalised images (n, c, h, w).

    There Swin's windows are merged, so that all pairs of an image count and not, as in PSAQ-ViT's loss, those of a
    window alone.

    Raises:
        NotATransformerError: the model has no transformer block.
    """
    graph = trace(model)
    blocks = find_blocks(graph)
    grid = patch_grid(graph)
    _, found = tap(model.net, images, [block.branch for block in blocks])
    paths, densities, entropies, neighbours = [], [], [], []
    features = images
    for block in blocks:
        features = functional.normalize(to_grid(found.pop(block.branch), grid), dim=-1)
        height, width = features.shape[1:3]
        if height * width < 2:
            continue
        counts = torch.stack([_histogram(image.flatten(0, 1)) for image in features])
        paths.append(block.path)
        coarse = counts.sum(0).unflatten(0, (BINS, -1)).sum(1)
        densities.append(coarse / coarse.sum() * BINS / 2)
        entropies.append(_entropy(counts, height * width))
        neighbours.append(_adjacent(features) - _all_pairs(features))
    row, column = features.shape[1] // 2, features.shape[2] // 2
    maps = (features * features[:, row, column][:, None, None]).sum(-1)
    return PatchSimilarity(
        blocks=tuple(paths),
        edges=torch.linspace(-1, 1, BINS + 1),
        densities=torch.stack(densities).cpu(),
        entropies=torch.stack(entropies).cpu(),
        neighbours=torch.stack(neighbours).cpu(),
        centre=(row, column),
        maps=maps.cpu(),
    )


def _histogram(patches: Tensor) -> Tensor:
    """(FINE,) counts of the similarities between different patches; `patches` are unit vectors (t, d)."""
    similarities = (patches @ patches.T).clamp_(-1, 1)
    return torch.histc(similarities.fill_diagonal_(2), FINE, min=-1, max=1).double()  # out of range: not counted


def _entropy(counts: Tensor, patches: int) -> Tensor:
    """PSAQ-ViT's entropy (equations 5 to 7) from histograms (n, FINE), the mean over images.

    Each patch counts as a pair with itself, as there. The integral is over the whole density, where PSAQ-ViT's code
    takes 10 points between the least and the greatest similarity: enough for a gradient, but it calls images whose
    patches are all alike diverse. From the histogram, since an image of 56x56 patches has ten million pairs.
    """
    counts = counts.clone()
    counts[:, -1] += patches
    step = 2 / FINE
    reach = round(6 * BANDWIDTH / step)
    offsets = step * torch.arange(-reach, reach + 1, dtype=counts.dtype, device=counts.device)
    kernel = torch.exp(-0.5 * (offsets / BANDWIDTH) ** 2) / (BANDWIDTH * math.sqrt(2 * math.pi))
    smooth = functional.conv1d(counts[:, None], kernel[None, None], padding=2 * reach)[:, 0]
    density = smooth / counts.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(density).sum(1).mean() * step
    return entropy


def _adjacent(features: Tensor) -> Tensor:
    """Mean similarity over all pairs of patches that touch at a side or corner."""
    f = features
    pairs = (
        (f[:, 1:], f[:, :-1]),
        (f[:, :, 1:], f[:, :, :-1]),
        (f[:, 1:, 1:], f[:, :-1, :-1]),
        (f[:, 1:, :-1], f[:, :-1, 1:]),
    )
    return torch.cat([(a * b).sum(-1).flatten() for a, b in pairs]).mean()


def _all_pairs(features: Tensor) -> Tensor:
    """Mean similarity over all pairs of different patches: from the length of the sum of unit vectors."""
    flat = features.flatten(1, 2)
    patches = flat.shape[1]
    own = flat.square().sum(dim=(1, 2))
    return ((flat.sum(1).square().sum(-1) - own) / (patches * (patches - 1))).mean()


@dataclass(frozen=True)
class SiteEffect:
    """What quantizing one activation site alone does to the float model's outputs.

    Attributes:
        site: label of the site, or `ALL` for all sites together.
        changed: share of the images whose greatest output changes; NaN where outputs are not a vector per image.
        distance: the task's distance of the outputs from the float ones (classification: mean KL divergence in nats).
    """

    site: str
    changed: float
    distance: float


@torch.no_grad()
def site_effects(
    model: VisionModel,
    images: Tensor,
    scheme: str,
    widths: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
) -> list[SiteEffect]:
    """Quantize each site of `scheme` alone, all else in float, with a recorded width and (low, high) range.

    First all sites together. Ranges are those of asymmetric uniform quantizers, as records hold them; sites without a
    finite range are left out. `images` (n, c, h, w) are normalised, and should be real: what a site does to images of
    the method's own making says little.
    """
    graph = trace(model)
    wanted = model.net(images)
    quantizers: dict[str, tuple[tuple[OpKey, int], Uniform]] = {}
    for site in find_sites(graph, scheme, BitSpec(MAX_BITS, MAX_BITS)).activations:
        low, high = ranges.get(str(site), (math.nan, math.nan))
        if math.isfinite(low) and math.isfinite(high):
            ends = torch.tensor(low, device=images.device), torch.tensor(high, device=images.device)
            quantizers[str(site)] = site.point, Uniform.asymmetric(*ends, widths[str(site)])

    def effect(name: str, chosen: Iterable[tuple[tuple[OpKey, int], Uniform]]) -> SiteEffect:
        with Interceptor(model.net, dict(chosen)):
            output = model.net(images)
        changed = math.nan
        if isinstance(output, Tensor) and output.dim() == 2:
            changed = float((output.argmax(1) != wanted.argmax(1)).double().mean())
        return SiteEffect(name, changed, float(model.output_distance(output, wanted)))

    return [effect(ALL, quantizers.values()), *(effect(name, [pair]) for name, pair in quantizers.items())]
