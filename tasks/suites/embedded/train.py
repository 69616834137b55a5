"""Train the embedded zoo from the original Fashion-MNIST files: `nox -s zoo`.

The recipe is chosen for two CPU cores and an hour: Muon (orthogonalised momentum) on the matrices and AdamW on the
rest reaches a given accuracy in about half of AdamW's epochs, and a ViT that sees a random half of its patches
(PatchDropout, arXiv 2208.07220) trains twice as many images per second; its last epochs see all patches.
Nothing is selected on test images: the weights of the last step are kept.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tasks.suites.embedded.architectures import build
from tasks.suites.embedded.fashion import load_split, normalise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Examples = tuple[torch.Tensor, torch.Tensor]  # normalised images (n, c, h, w), labels (n,)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights, apart from library versions and thread count."""

    epochs: int
    full_epochs: int  # last epochs that see every patch (where some are dropped)
    patch_drop: float
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warmup_steps: int = 300
    shift: int = 2  # pixels, random translation on both axes
    seed: int = 0
    bfloat16: bool = False  # in layers where torch's autocast has it; weights, their gradients and losses stay float32


RECIPES = {
    "vit": Recipe(epochs=13, full_epochs=2, patch_drop=0.5),
    "swin": Recipe(epochs=8, full_epochs=8, patch_drop=0.0),
    "efficientvit": Recipe(epochs=3, full_epochs=3, patch_drop=0.0),
    "vim": Recipe(epochs=3, full_epochs=1, patch_drop=0.5, lr=3e-3),
}


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan 2024), for 2-D parameters.

    Own code because torch.optim.Muon and timm's iterate in bfloat16, 20 times slower than float32 on a CPU without
    bfloat16 units. The update is scaled to AdamW's root mean square (arXiv 2502.16982), so both share one rate.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition of `g` (r, c) by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: torch.Tensor = g / (g.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def augment(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Flip each image (b, 1, h, w) left-right with probability 1/2 and move it by up to `shift` pixels."""
    b, _, h, w = images.shape
    flip = torch.rand(b, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    dy, dx = torch.randint(-shift, shift + 1, (2, b, 1), generator=generator)
    # The padding border is background, so rolling it round the edge equals shifting.
    rows = (torch.arange(h)[None] + dy) % h
    cols = (torch.arange(w)[None] + dx) % w
    return images[torch.arange(b)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True))
    return 100.0 * hits / len(labels)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    head = set(model.get_classifier().parameters())  # type: ignore[operator]
    apart: Callable[[], frozenset[str]] = getattr(model, "no_matrices", frozenset)
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and p not in head and name not in apart()]
    chosen = set(hidden)
    rest = [p for p in model.parameters() if p not in chosen]
    return [
        Muon(hidden, lr=recipe.lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(name: str, data_root: Path, work: Path) -> dict[str, Any]:
    """Train zoo model `name`, resuming from `work/<name>.ckpt` when it is there.

    Returns the card's facts (recipe, seconds, learning curve, full-test accuracy) with the weights under `state`.

    Raises:
        FileNotFoundError: the original data files are not in `data_root`.
    """
    recipe = RECIPES[name]
    training, test = (
        (torch.from_numpy(normalise(x)), torch.from_numpy(y.astype(np.int64)))
        for x, y in (load_split(data_root, s) for s in ("train", "test"))
    )
    torch.manual_seed(recipe.seed)
    model = build(name)
    facts = fit(model, name, recipe, training=training, test=test, vary=augment, work=work)
    state = halved(model.state_dict())
    model.load_state_dict(state)
    return {"state": state, **facts, "top1_full_test": accuracy(model, *test)}


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with its floats in half precision."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def fit(
    model: Any,
    name: str,
    recipe: Recipe,
    *,
    training: Examples,
    test: Examples,
    vary: Callable[[torch.Tensor, int, torch.Generator], torch.Tensor],
    work: Path,
) -> dict[str, Any]:
    """Train timm's `model` (changed) by `recipe`, resuming from `work/<name>.ckpt` when it is there.

    Args:
        model: initial weights.
        name: in the log and for the checkpoint.
        recipe: how to train.
        training: what to train on.
        test: the first 1,000 are for the learning curve; nothing is decided on them.
        vary: the augmentation, called with a batch of images, `recipe.shift` and a generator.
        work: folder of the checkpoint.

    Returns:
        The card's facts: recipe, seconds without evaluation, threads, torch's version, learning curve.
    """
    (x_train, y_train), (x_test, y_test) = training, test
    optimizers = _optimizers(model, recipe)
    steps_per_epoch = len(x_train) // recipe.batch
    total = recipe.epochs * steps_per_epoch
    curve: list[dict[str, float]] = []
    seconds, first = 0.0, 0
    checkpoint = work / f"{name}.ckpt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        curve, seconds, first = saved["curve"], saved["seconds"], saved["epoch"]
        log.info("%s: resuming after epoch %d", name, first)

    for epoch in range(first, recipe.epochs):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        torch.manual_seed(recipe.seed * 1000 + epoch)  # patch dropout draws from the global generator
        if recipe.patch_drop:
            from timm.layers import PatchDropout

            keep_all = epoch >= recipe.epochs - recipe.full_epochs
            model.patch_drop = (
                nn.Identity()
                if keep_all
                else PatchDropout(
                    recipe.patch_drop,
                    num_prefix_tokens=model.num_prefix_tokens,
                    ordered=getattr(model, "ordered_tokens", False),
                )
            )
        model.train()
        order = torch.randperm(len(x_train), generator=generator)
        loss_sum = 0.0
        for step in range(steps_per_epoch):
            done = epoch * steps_per_epoch + step
            lr = recipe.lr * min((done + 1) / recipe.warmup_steps, 1.0) * (1 - done / total)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr
            index = order[step * recipe.batch : (step + 1) * recipe.batch]
            batch = vary(x_train[index], recipe.shift, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(batch).float()
            loss = functional.cross_entropy(logits, y_train[index], label_smoothing=recipe.label_smoothing)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            loss_sum += loss.item()
        seconds += time.perf_counter() - start
        # 1,000 test images for the learning curve only; no decision is taken on them.
        point = {
            "epoch": epoch + 1,
            "loss": loss_sum / steps_per_epoch,
            "top1": accuracy(model, x_test[:1000], y_test[:1000]),
        }
        curve.append(point)
        log.info("%s %s, %.0f s", name, json.dumps(point), seconds)
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "curve": curve,
                "seconds": seconds,
                "epoch": epoch + 1,
            },
            checkpoint.with_suffix(".tmp"),
        )
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    return {
        "recipe": asdict(recipe),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "curve": curve,
    }
