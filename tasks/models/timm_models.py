"""timm's image classifiers by name, ready to be quantized. Knows nothing of data sets.

No architecture is refused by its class: whether one can be quantized is seen from its trace (`PluginInfo.requires`).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.errors import UsageError, first_line
from tasks.models.attention import unfused
from tasks.models.checkpoint_settings import Settings, read_settings, split_brackets
from tasks.models.checkpoint_use import load_checkpoint, ready_made, tag_of
from tasks.models.facts import PREFIX, RANDOM, Facts
from tasks.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

RANDOM_SEED = 0


def build_timm(
    reference: str, *, classes: int, fixed: Preprocessing | None = None, class_names: Sequence[str] = ()
) -> tuple[nn.Module, Facts]:
    """Build `timm:NAME`, `timm:NAME@FILE`, `timm:NAME@FILE[KEY=VALUE,...]` or `timm:NAME@random` on the CPU.

    Args:
        reference: the model as the user names it.
        classes: number of classes that the data have.
        fixed: input format of the suite; None takes the model's own. Pretrained weights fit only their own.
        class_names: of the data, if they have names; the model's outputs come in their order.

    Raises:
        UsageError: an unknown or unsupported model, weights that cannot be had, or a bad checkpoint.
    """
    name, options, weights, settings = _read(reference, classes, fixed)
    if weights is None:
        net = _build_pretrained(name, classes)
        return net, ready_made(net, class_names)
    net = _create(name, **options)
    if weights == RANDOM:
        return net, Facts("the suite" if fixed else f"timm's {tag_of(net)}", weights=RANDOM)
    return net, load_checkpoint(net, Path(weights).expanduser(), settings, class_names if fixed is None else ())


def untrained_timm(
    reference: str, *, classes: int, fixed: Preprocessing | None = None
) -> tuple[nn.Module, Preprocessing]:
    """What `build_timm` builds, but without its weights, which are neither read nor downloaded, and its input format.

    It lies on the meta device (no memory, no arithmetic), or on the CPU with random weights where timm's code does not
    run there. It has run once, so that it is known to be a classifier that takes such images.

    Raises:
        UsageError: as `build_timm`, apart from what only the weights can show; or the model cannot run on images of
            this shape, or is not a classifier.
    """
    name, options, weights, _ = _read(reference, classes, fixed)
    options = {} if weights is None else options
    try:
        net, preprocessing, output = _run_once(name, options, fixed, "meta")
    except Exception:  # a network's code may raise anything, above all where it looks at values
        net, preprocessing, output = _run_once(name, options, fixed, "cpu")
    if weights is None:
        _check_classes(name, net, classes)
    if not isinstance(output, torch.Tensor) or output.shape != (2, classes):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UsageError(f"timm model '{name}' is not a classifier: for two images it returns {found}")
    return net, preprocessing


@torch.no_grad()
def _run_once(
    name: str, options: dict[str, Any], fixed: Preprocessing | None, device: str
) -> tuple[nn.Module, Preprocessing, Any]:
    """The network on `device`, how images reach it, and what it returns for two blank ones."""
    with torch.device(device):
        net = _create(name, **options).eval().requires_grad_(False)
    preprocessing = fixed or Preprocessing.of(net)
    try:
        return net, preprocessing, unfused(net)(torch.zeros(2, *preprocessing.input_shape, device=device))
    except Exception as error:
        shape = "x".join(map(str, preprocessing.input_shape))
        raise UsageError(f"timm model '{name}' cannot run on {shape} images: {first_line(error)}") from None


def _read(
    reference: str, classes: int, fixed: Preprocessing | None
) -> tuple[str, dict[str, Any], str | None, Settings]:
    """The name in timm, options to build it with, the checkpoint or `random` (None for pretrained weights), and what is
    said of the checkpoint.
    """
    name, separator, weights = reference.removeprefix(PREFIX).partition("@")
    _check_known(name)
    if not separator:
        if fixed is not None:
            raise UsageError(
                f"model '{reference}' is pretrained on other images than this suite's "
                f"{'x'.join(map(str, fixed.input_shape))}; give weights: {reference}@FILE, or {reference}@random"
            )
        return name, {}, None, Settings()
    if not weights:
        raise UsageError(f"model '{reference}' names no checkpoint after '@'; give a file or 'random'")
    options: dict[str, Any] = {"num_classes": classes}
    if fixed is not None:
        options |= {"in_chans": fixed.input_shape[0], "img_size": fixed.input_shape[1]}
    file, brackets = split_brackets(weights)
    if file == RANDOM and brackets:
        raise UsageError(f"model '{reference}': brackets say what a checkpoint is used with; leave them out")
    settings = Settings()
    if file != RANDOM:
        settings = read_settings(Path(file).expanduser(), brackets, name, prepared=fixed is not None)
    if settings.preprocessing:
        options["pretrained_cfg_overlay"] = dict(settings.preprocessing)
    return name, options, file, settings


def _check_known(name: str) -> None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(PREFIX + c for c in close)}?" if close else "timm.list_models() lists all"
        raise UsageError(f"timm has no model '{name}'; {hint}")


def _create(name: str, **options: Any) -> nn.Module:
    """Build it. Networks that take images of any size (ConvNeXt) know no option for it."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        try:
            return timm.create_model(name, **options)
        except TypeError as error:
            if "img_size" not in options or "img_size" not in str(error):
                raise UsageError(f"timm cannot build '{name}' with {options}: {error}") from None
        except (AssertionError, RuntimeError, ValueError) as error:
            if options.get("pretrained"):
                raise  # the hub's, of a host that cannot be reached
            raise UsageError(f"timm cannot build '{name}' with {options}: {error}") from None
    return _create(name, **{key: value for key, value in options.items() if key != "img_size"})


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
    _check_classes(name, net, classes)
    return net


def _check_classes(name: str, net: nn.Module, classes: int) -> None:
    if net.num_classes != classes:
        raise UsageError(f"model '{PREFIX}{name}' knows {net.num_classes} classes, but the data have {classes}")


def vision_model(
    name: str,
    net: nn.Module,
    preprocessing: Preprocessing,
    device: torch.device,
    said: Mapping[str, Any] | None = None,
) -> VisionModel:
    """Wrap the classifier `net` for methods; changes `net` in place (eval mode, no gradients, unfused attention).

    `said` goes into the record, as `VisionModel.preprocessing`.
    """
    unfused(net).eval().requires_grad_(False).to(device)
    timm: Any = net
    classes = int(timm.num_classes)

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
        preprocessing=said or {},
    )


def kl_divergence(quantized: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(quantized)) of logits (n, classes), averaged over images; a scalar in nats."""
    return functional.kl_div(
        quantized.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )
