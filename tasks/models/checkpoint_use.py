"""Puts a checkpoint into a network of timm as its settings say, and says what was taken for granted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.api.errors import UsageError
from tasks.models.checkpoints import Taken, load_weights
from tasks.models.class_order import check_one_order, outputs_of
from tasks.models.facts import Facts

if TYPE_CHECKING:
    from tasks.models.checkpoint_settings import Settings

DATA = "the data root"
USUALLY_SAID = ("mean", "std", "crop_pct", "interpolation")  # the network itself tells the size of its images
SORTED = "the class folders' names, sorted"


def load_checkpoint(net: nn.Module, path: Path, settings: Settings, class_names: Sequence[str]) -> Facts:
    """Load the weights in `path` into `net`, and put its outputs in the order of the data's classes.

    Args:
        net: built with the settings' preprocessing.
        path: the checkpoint.
        settings: what is said of it.
        class_names: of the data, in order; empty if the suite numbers its classes and prepares its images itself.

    Raises:
        UsageError: the checkpoint or its classes do not fit, or nothing says the order of the classes.
    """
    taken = load_weights(net, path, settings.which)
    notices = () if settings.which else _of_weights(path, taken)
    if not class_names:
        if settings.unused:
            notices += (_not_used(path, settings),)
        return Facts("the suite", weights=taken.entry, notices=notices)
    names_from = settings.names_from or SORTED
    if settings.class_names:
        sort_outputs(net, outputs_of(class_names, settings.class_names, names_from, DATA))
    else:
        check_one_order(class_names, DATA, f"give its names, one per line: {path}[classes=FILE]")
    origin = settings.origin or f"timm's {tag_of(net)}"
    missing = [key for key in USUALLY_SAID if key not in settings.preprocessing]
    if missing:
        notices += (_taken_for_granted(net, path, settings.origin, missing),)
    return Facts(origin, names_from, taken.entry, notices)


def ready_made(net: nn.Module, class_names: Sequence[str]) -> Facts:
    """Put the outputs of a pretrained network in the order of the data's classes.

    Folders may be called by WordNet's numbers, as ImageNet's are, or by the outputs' own numbers.

    Raises:
        UsageError: they are called otherwise, so that their order says nothing.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    origin = f"timm's {tag_of(net)}"
    subset = infer_imagenet_subset(net)
    if not class_names or subset is None:
        return Facts(origin, SORTED if class_names else "")
    if all(name.isdecimal() for name in class_names):
        numbers = [int(name) for name in class_names]
        if sorted(numbers) == list(range(len(numbers))):
            sort_outputs(net, numbers)
            return Facts(origin, "the class folders' numbers")
    sort_outputs(net, outputs_of(class_names, ImageNetInfo(subset).label_names(), "the pretrained model", DATA))
    return Facts(origin, "WordNet's numbers")


def sort_outputs(net: nn.Module, order: Sequence[int]) -> None:
    """Make output `order[i]` of the classifier `net` its i-th, by moving rows of its last layers.

    Raises:
        UsageError: the last layer is not linear.
    """
    if list(order) == list(range(len(order))):
        return
    timm: Any = net
    found = timm.get_classifier()
    for head in found if isinstance(found, tuple) else (found,):
        if not isinstance(head, nn.Linear) or head.out_features != len(order):
            raise UsageError("the model's classes cannot be put in the data's order: its last layer is not linear")
        with torch.no_grad():
            for values in (head.weight, head.bias):
                if values is not None:
                    values.copy_(values[list(order)])


def tag_of(net: nn.Module) -> str:
    """Timm's name of the pretrained weights whose preprocessing the network has."""
    timm: Any = net
    config = timm.pretrained_cfg
    return ".".join(str(config[key]) for key in ("architecture", "tag") if config.get(key))


def _of_weights(path: Path, taken: Taken) -> tuple[str, ...]:
    if not taken.others:
        return ()
    return (
        f"checkpoint {path} holds several sets of weights; '{taken.entry}' is taken, not '{taken.others[0]}'; "
        f"{path}[weights=raw] or [weights=ema] chooses",
    )


def _not_used(path: Path, settings: Settings) -> str:
    return (
        f"checkpoint {path}: what {settings.origin} says of it ({', '.join(settings.unused)}) is not used, since this "
        "suite prepares its images and numbers its classes itself"
    )


def _taken_for_granted(net: nn.Module, path: Path, origin: str, missing: Sequence[str]) -> str:
    if origin:
        return (
            f"checkpoint {path}: {origin} do not say {', '.join(missing)}, which are as for timm's {tag_of(net)}, "
            f"so that images have {summary(net)}"
        )
    return (
        f"checkpoint {path} does not say how its images are prepared; they are as for timm's {tag_of(net)}: "
        f"{summary(net)}; if it was trained otherwise, put timm's config beside it as {path.stem}.json, or write "
        f"{path}[mean=...,std=...,crop_pct=...]"
    )


def summary(net: nn.Module) -> str:
    """The preprocessing of a network of timm, in few words."""
    from timm.data import resolve_data_config

    config = resolve_data_config(model=net)
    mean, std = ("/".join(f"{value:g}" for value in config[key]) for key in ("mean", "std"))
    size = "x".join(map(str, config["input_size"][1:]))
    return (
        f"mean {mean}, std {std}, {size} pixels, crop_pct {config['crop_pct']:g}, {config['crop_mode']}, "
        f"{config['interpolation']}"
    )
