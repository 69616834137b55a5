"""Train the embedded zoo's detector and segmentors on scenes that are made as they are needed: `nox -s zoo`.

AdamW, or Muon on the backbone's matrices, with warm-up, cosine to zero and an average of the weights; no scene is seen
twice. What is trained is an ordinary mmengine config, by the loss that it defines. Nothing is selected on evaluation
scenes: the averaged weights of the last step are kept.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from tasks.suites.embedded.train import Muon, halved

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from tasks.suites.embedded.dense_tasks import DenseTask
    from tasks.suites.embedded.scenes import Scene, Scenes

log = logging.getLogger(__name__)

SAVE_SECONDS = 180.0  # at most this much work is lost when training is interrupted
POINTS = 10  # of the learning curve


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights, apart from config, library versions and thread count."""

    iterations: int
    batch: int = 16  # scenes
    lr: float = 1e-3
    weight_decay: float = 0.05  # of matrices and kernels
    warmup: int = 300  # iterations
    clip: float = 5.0  # norm of the gradient
    average: float = 0.998  # share that the averaged weights keep in one iteration
    seed: int = 0
    muon: bool = False  # for the matrices of `backbone`, instead of AdamW
    bfloat16: bool = False  # in layers where torch's autocast has it; weights, their gradients and losses stay float32

    def rate(self, step: int) -> float:
        """Learning rate of iteration `step`, from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.iterations))
        return self.lr * min((step + 1) / self.warmup, 1.0) * cosine


class Training:
    """A model on its way: weights, their average, optimizer, iterations done, seconds used, learning curve."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        self.net, self.recipe = net, recipe
        self.optimizers = _optimizers(net, recipe)
        self.average = {k: v.clone() for k, v in net.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def update(self, loss: Tensor) -> None:
        """One iteration down `loss`.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        if not loss.isfinite():
            raise FloatingPointError(f"training diverged: the loss is {loss.item()} in iteration {self.step}")
        self.net.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step)
            optimizer.step()
        self.step += 1
        kept = min(self.recipe.average, self.step / (self.step + 10))  # early weights are soon forgotten
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - kept)
            else:
                self.average[name].copy_(value)

    def averaged(self) -> nn.Module:
        """A copy of the model with the averaged weights, in eval mode."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.average)
        return net.eval()

    def save(self, file: Path) -> None:
        """Write everything that `resume` needs, all or nothing."""
        state = {key: getattr(self, key) for key in ("average", "step", "seconds", "curve")}
        temporary = file.with_suffix(".tmp")
        torch.save(
            {**state, "net": self.net.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}, temporary
        )
        temporary.replace(file)

    def resume(self, file: Path) -> None:
        """Go on where `save` was called last."""
        saved = torch.load(file, weights_only=True)
        self.net.load_state_dict(saved.pop("net"))
        for optimizer, state_dict in zip(self.optimizers, saved.pop("optimizers"), strict=True):
            optimizer.load_state_dict(state_dict)
        for key, value in saved.items():
            setattr(self, key, value)


def _optimizers(net: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One of each kind; vectors do not decay."""
    named = dict(net.named_parameters())
    # Tables of position biases are two-dimensional too, but no factors of a product; they are not named weights.
    matrices = {
        name: p
        for name, p in named.items()
        if recipe.muon and p.ndim == 2 and name.startswith("backbone.") and name.endswith("weight")
    }
    rest = [p for name, p in named.items() if name not in matrices]
    decayed = [p for p in rest if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr)]
    if matrices:
        found.append(Muon(list(matrices.values()), lr=recipe.lr, weight_decay=recipe.weight_decay))
    return found


def train(
    name: str, *, task: DenseTask, net: nn.Module, recipe: Recipe, scenes: Scenes, watched: Sequence[Scene], work: Path
) -> dict[str, Any]:
    """Train `net` on `scenes`, resuming from `work/<name>.ckpt` when it is there.

    Args:
        name: of the model, in the log and for the checkpoint.
        task: gives loss and metrics.
        net: initial weights; changed.
        recipe: how to train.
        scenes: training scenes; iteration i sees the i-th `recipe.batch` of them.
        watched: scenes of the metrics in the learning curve, on which nothing is decided.
        work: folder of the checkpoint.

    Returns:
        The card's facts (recipe, seconds with everything, learning curve) with the averaged weights, halved where they
        are floats, under `state`.
    """
    run = Training(net, recipe)
    checkpoint = work / f"{name}.ckpt"
    if checkpoint.is_file():
        run.resume(checkpoint)
        log.info("%s: resuming after iteration %d", name, run.step)
    every = max(1, recipe.iterations // POINTS)
    clock = saved = time.perf_counter()
    losses: list[float] = []
    while run.step < recipe.iterations:
        # Sampling of anchors and RoIs draws from the global generator: seeded so that a resumed run sees the same.
        torch.manual_seed(recipe.seed * 1_000_000 + run.step)
        net.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            loss = task.loss(net, list(scenes.take(run.step * recipe.batch, recipe.batch)))
        run.update(loss)
        losses.append(loss.item())
        if watch := run.step % every == 0 or run.step == recipe.iterations:
            metrics = task.evaluate(run.averaged(), watched)
            # Since the last point or resumption; training on other scenes each time, this is not a training-set loss.
            run.curve.append({"iteration": run.step, "loss": sum(losses) / len(losses), **metrics})
            losses.clear()
        now = time.perf_counter()
        run.seconds, clock = run.seconds + now - clock, now
        if watch:
            log.info("%s %s, %.0f s", name, json.dumps(run.curve[-1]), run.seconds)
        if now - saved >= SAVE_SECONDS or run.step == recipe.iterations:
            run.save(checkpoint)
            saved = now
    return {
        "state": halved(run.average),
        "recipe": asdict(recipe),
        "seconds": round(run.seconds),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "curve": run.curve,
    }
