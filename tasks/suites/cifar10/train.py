"""Train the CIFAR-10 zoo: `nox -s zoo -- cifar10`.

The embedded zoo's loop (`embedded.train`: Muon, linear decay to zero, the last step's weights) in bfloat16 where
torch's autocast has it, with mirrored and shifted images: what a few CPU hours allow. The stem's batch norms are folded
into its convolutions at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tasks.models.attention import unfused
from tasks.models.class_order import in_turn
from tasks.suites.cifar10.architectures import build, fold
from tasks.suites.cifar10.dataset import normalise, open_splits
from tasks.suites.embedded.train import Recipe, accuracy, fit, halved

if TYPE_CHECKING:
    from pathlib import Path

RECIPES = {
    "vit": Recipe(epochs=17, full_epochs=2, patch_drop=0.5, lr=3e-3, bfloat16=True),
    "swin": Recipe(epochs=12, full_epochs=12, patch_drop=0.0, lr=3e-3, bfloat16=True),
}


def augment(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Flip each image (b, c, h, w) left-right with probability 1/2 and move it by up to `shift` pixels.

    What moves in from outside is the image's reflection.
    """
    b, _, h, w = images.shape
    padded = functional.pad(images, (shift,) * 4, mode="reflect")
    flip = torch.rand(b, 1, generator=generator) < 0.5
    dy, dx = torch.randint(0, 2 * shift + 1, (2, b, 1), generator=generator)
    rows, cols = torch.arange(h)[None] + dy, torch.arange(w)[None] + dx
    cols = torch.where(flip, cols.flip(1), cols)
    return padded[torch.arange(b)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def train(name: str, data_root: Path | None, work: Path) -> dict[str, Any]:
    """Train zoo model `name`, resuming from `work/cifar10_<name>.ckpt` when it is there.

    Returns:
        The card's facts (recipe, seconds, learning curve, full-test accuracy) with the weights under `state`.

    Raises:
        UsageError: CIFAR-10 is not in `data_root`; see `tasks.suites.cifar10.dataset.open_splits`.
    """
    recipe = RECIPES[name]
    train_split, test_split, _ = open_splits(data_root)
    # In the packed form the splits lie class by class, and the curve is of the first 1,000 test images.
    orders = range(len(train_split.labels)), in_turn(test_split.labels)
    training, test = (
        (normalise(split.images(order)), torch.from_numpy(split.labels[list(order)]))
        for split, order in zip((train_split, test_split), orders, strict=True)
    )
    torch.manual_seed(recipe.seed)
    # The fused attention's backward pass takes twice as long as the plain products on a CPU.
    model = unfused(build(name, folded=False))
    facts = fit(model, f"cifar10_{name}", recipe, training=training, test=test, vary=augment, work=work)
    state = halved(fold(model))
    net = build(name)
    net.load_state_dict(state)
    return {"state": state, **facts, "top1_full_test": accuracy(net, *test)}
