"""Image synthesis: gradient descent on pixels under a loss of the frozen float model (PSAQ-ViT's procedure).

Optimizer, schedule, augmentation and clamping are PSAQ-ViT's (reference code, `zkkli/PSAQ-ViT`); the loss is the
caller's. Pixel quantities that the reference fixes for 224x224 images are scaled to the model's image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.api.contracts import RunContext, VisionModel
from methods.core.graph.structure import windowed
from methods.core.graph.trace import Trace
from methods.core.synthesis.filters import low_pass
from methods.core.synthesis.options import SynthesisOptions, VariationOptions

BETAS = (0.5, 0.9)  # of PSAQ-ViT's Adam
SHOWN = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # shares of all steps after which images are shown: they form early
REFERENCE_SIZE = 224  # the image side that PSAQ-ViT's pixel constants belong to

Augment = Callable[[Tensor, int, int], Tensor]  # of images, the steps that are done, and all steps


def optimise_images(
    model: VisionModel,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    options: SynthesisOptions,
    *,
    name: str,
    lr: float,
    rounds: int,
    steps: int,
    generator: torch.Generator,
    ctx: RunContext,
    curve: bool = True,
    mirror: float = 0.5,
    floor: float = 0.0,
    decay: float = 0.0,
    betas: tuple[float, float] = BETAS,
    augment: Augment | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Descend `loss` from `images` (n, c, h, w), normalised; return the new images, valid pixels in [0, 1].

    `name` labels progress and the loss curve (`synthesize`, `refresh-0`, ...), which is kept if `curve`. Snapshots are
    kept of `synthesize` only, which alone starts from noise.

    Adam with `betas` and decoupled weight decay `decay` (AdamW if it is not 0), its state kept over rounds;
    per round linear warm-up, then cosine to `floor`, a share of the learning rate; each step
    rolls the batch by one offset on both axes (up to `jitter`, growing by as much each round) and mirrors it with
    probability `mirror`; after each step pixels are clamped to the normalised [0, 1] box. PSAQ-ViT (ECCV 2022),
    section 3 and code.

    A loss that is not finite raises FloatingPointError.

    `augment` takes the place of rolling and mirroring. `prior` is a loss of the images as they are, which is added to
    `loss`. Images that are handed on have gone through the low-pass filter of the options, if they have one.
    """
    low, high = model.pixel_bounds()
    pixels = images.detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([pixels], lr=lr, betas=betas, eps=1e-8, weight_decay=decay)
    losses: list[float] = []
    shown = {round(share * rounds * steps) for share in SHOWN} if name == "synthesize" else set()
    if shown:
        ctx.snapshot(0, pixels)
    for round_ in range(rounds):
        limit = round(options.jitter * (round_ + 1) * pixels.shape[-1] / REFERENCE_SIZE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * _schedule(step, steps, options.warmup, floor)
            if augment is None:
                offset = int(torch.randint(-limit, limit + 1, (), generator=generator))
                mirrored = bool(torch.rand((), generator=generator) < mirror)
                batch = torch.roll(pixels, (offset, offset), (2, 3))
                value = loss(batch.flip(3) if mirrored else batch)
            else:
                value = loss(augment(pixels, round_ * steps + step, rounds * steps))
            if prior is not None:
                value = value + prior(pixels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(min=low, max=high)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss of synthesis is {losses[-1]} in step {len(losses)}; are the model's outputs finite?"
                )
            done = round_ * steps + step + 1
            if done in shown:
                ctx.snapshot(done, pixels)
            ctx.progress(name, done / (rounds * steps))
    ctx.count(synthesis_steps=rounds * steps, image_gradients=rounds * steps * len(pixels))
    if curve:
        every = max(1, len(losses) // 50)
        ctx.diagnostics(f"{name}_loss", {"every": every, "values": [round(v, 5) for v in losses[::every]]})
    made = pixels.detach()
    return made if options.low_pass is None else low_pass(made, options.low_pass)


def synthesize(
    model: VisionModel,
    loss: Callable[[Tensor], Tensor],
    options: SynthesisOptions,
    *,
    lr: float,
    generator: torch.Generator,
    ctx: RunContext,
    mirror: float = 0.5,
    floor: float = 0.0,
    decay: float = 0.0,
    betas: tuple[float, float] = BETAS,
    augment: Augment | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Images from noise, as many and by as many rounds and steps as `options` say; see `optimise_images`."""
    return optimise_images(
        model,
        start_images(model, options.images, ctx),
        loss,
        options,
        name="synthesize",
        lr=lr,
        rounds=options.rounds,
        steps=options.steps,
        generator=generator,
        ctx=ctx,
        mirror=mirror,
        floor=floor,
        decay=decay,
        betas=betas,
        augment=augment,
        prior=prior,
    )


def start_images(model: VisionModel, count: int, ctx: RunContext) -> Tensor:
    """Gaussian noise N(0, 1) in normalised space (count, *input_shape), the same for every source of a repetition."""
    generator = ctx.generator("calibration-images")
    return torch.randn(count, *model.input_shape, generator=generator).to(model.device)


def learning_rate(options: SynthesisOptions, graph: Trace) -> float:
    """The chosen rate, or PSAQ-ViT's for the architecture: 0.25 for Swin, 0.20 for DeiT."""
    if options.lr is not None:
        return options.lr
    return 0.25 if windowed(graph) else 0.20


def _schedule(step: int, steps: int, warmup: float, floor: float) -> float:
    ramp = warmup * steps
    if step < ramp:
        return min(1.0, (step + 1) / ramp)  # above it in the last step of a ramp that is no whole number
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - ramp) / max(1.0, steps - ramp)))


def total_variation(images: Tensor) -> Tensor:
    """Sum over four difference directions of the Frobenius norm over the whole batch (PSAQ-ViT's code)."""
    right, down, falling, rising = frobenius_norms(images)
    return right + down + falling + rising


def frobenius_norms(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norms over the whole batch of the differences to the right, down, along falling and along rising diagonals."""
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    return right.norm(), down.norm(), falling.norm(), rising.norm()


def variation_loss(images: Tensor, target: float) -> Tensor:
    """L_TV = | TV - target |, the target given for a batch of 32x3x224x224 (PSAQ-ViT, equation 9 and code)."""
    return (total_variation(images) - target * tv_scale(images)).abs()


def variation_target(options: VariationOptions, generator: torch.Generator) -> float:
    """The target of `variation_loss`, uniform between the two ends (PSAQ-ViT's code)."""
    return options.tv_low + (options.tv_high - options.tv_low) * float(torch.rand((), generator=generator))


def tv_scale(images: Tensor) -> float:
    """Factor from PSAQ-ViT's batch of 32 RGB images of 224x224 pixels to this batch: the norm grows with the root of
    the number of values.
    """
    return math.sqrt(images.numel() / (32 * 3 * REFERENCE_SIZE**2))
