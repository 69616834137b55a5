"""timm's vision transformers by name, ready to be quantized. Knows nothing of data sets."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.contracts import VisionModel
from harness.errors import UsageError, first_line
from tasks.attention import unfused
from tasks.checkpoints import load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm:"
RANDOM = "random"  # after @: weights drawn anew instead of a file
RANDOM_SEED = 0


@dataclass(frozen=True)
class Preprocessing:
    """How images reach a model: channels x height x width, normalisation, and timm's resizing and cropping."""

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "none"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @classmethod
    def of(cls, net: nn.Module) -> Preprocessing:
        """Data config that timm knows for `net`."""
        from timm.data import resolve_data_config

        config = resolve_data_config(model=net)
        config["input_shape"] = config.pop("input_size")
        return cls(**config)


def build_timm(reference: str, *, classes: int, fixed: Preprocessing | None = None) -> nn.Module:
    """Build `timm:NAME`, `timm:NAME@FILE` or `timm:NAME@random` on the CPU.

    Args:
        reference: the model as the user names it.
        classes: number of classes that the data have.
        fixed: input format of the suite; None takes the model's own. Pretrained weights fit only their own.

    Raises:
        UsageError: an unknown or unsupported model, weights that cannot be had, or a bad checkpoint.
    """
    name, separator, weights = reference.removeprefix(PREFIX).partition("@")
    _check_supported(name)
    if not separator:
        if fixed is not None:
            raise UsageError(
                f"model '{reference}' is pretrained on other images than this suite's "
                f"{'x'.join(map(str, fixed.input_shape))}; give weights: {reference}@FILE, or {reference}@random"
            )
        return _build_pretrained(name, classes)
    if not weights:
        raise UsageError(f"model '{reference}' names no checkpoint after '@'; give a file or 'random'")
    options: dict[str, Any] = {"num_classes": classes}
    if fixed is not None:
        options |= {"in_chans": fixed.input_shape[0], "img_size": fixed.input_shape[1]}
    net = _create(name, **options)
    if weights != RANDOM:
        load_weights(net, Path(weights).expanduser())
    return net


def _check_supported(name: str) -> None:
    """Raise unless timm knows `name` and it is a plain ViT, DeiT or Swin."""
    import timm
    from timm.models import SwinTransformer, VisionTransformer

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(PREFIX + c for c in close)}?" if close else "timm.list_models() lists all"
        raise UsageError(f"timm has no model '{name}'; {hint}")
    try:
        with torch.device("meta"):  # the class alone: no memory, no initialisation
            net = timm.create_model(name)
    except RuntimeError as error:
        raise UsageError(f"timm cannot build '{name}': {error}") from None
    if not isinstance(net, VisionTransformer | SwinTransformer):
        raise UsageError(f"timm model '{name}' is a {type(net).__name__}; only ViT, DeiT and Swin models are supported")


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        try:
            return timm.create_model(name, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise UsageError(f"timm cannot build '{name}' with {options}: {error}") from None


def _build_pretrained(name: str, classes: int) -> nn.Module:
    try:
        net = _create(name, pretrained=True)
    except UsageError:
        raise
    # The hub, urllib and httpx each have their own errors for an unreachable host.
    except Exception as error:
        reason = first_line(error)
        raise UsageError(
            f"pretrained weights of '{name}' cannot be had ({reason}); go online, or give a local checkpoint: "
            f"{PREFIX}{name}@FILE"
        ) from None
    if net.num_classes != classes:
        raise UsageError(f"model '{PREFIX}{name}' knows {net.num_classes} classes, but the data have {classes}")
    return net


def vision_model(name: str, net: nn.Module, preprocessing: Preprocessing, device: torch.device) -> VisionModel:
    """Wrap the classifier `net` for methods; changes `net` in place (eval mode, no gradients, unfused attention)."""
    unfused(net).eval().requires_grad_(False).to(device)
    classes = int(net.num_classes)

    def sample_targets(count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(classes, (count,), generator=generator).to(device)

    return VisionModel(
        name=name,
        task="classification",
        net=net,
        input_shape=preprocessing.input_shape,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_classes=classes,
        sample_targets=sample_targets,
        target_loss=functional.cross_entropy,
        output_distance=kl_divergence,
    )


def kl_divergence(quantized: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(quantized)) of logits (n, classes), averaged over images; a scalar in nats."""
    return functional.kl_div(
        quantized.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )
