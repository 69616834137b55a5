"""The checks of `check` for a task: its suites and models against the contracts of `Suite` and `VisionModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from harness.api.contracts import Suite, VisionModel
from harness.api.errors import DataFreeViolation, UsageError
from harness.api.images import probes
from harness.api.plugins import TaskInfo
from harness.api.sealing import sealed_data
from harness.check.plugin import FAILED, NOTE, OK, Finding
from harness.results.verify import SLACK, metric_of
from harness.run.checks import leaves

if TYPE_CHECKING:
    import torch

IMAGES = 4  # evaluated of each suite


class _Contract(AssertionError):
    """What a task does otherwise than the contract says."""


def check_task(info: TaskInfo) -> Iterator[Finding]:
    """Findings on every suite that opens without a data root, and on its first model."""
    for name in info.suites:
        try:
            suite = info.open_suite(name, None)
        except UsageError as error:
            yield Finding(f"suite {name}", NOTE, f"not checked, it does not open by itself: {error}")
            continue
        yield from _suite(info, suite)


def _suite(info: TaskInfo, suite: Suite) -> Iterator[Finding]:
    import torch

    device = torch.device("cpu")
    checks: list[tuple[str, Callable[[], None]]] = [
        ("names and identities", lambda: _identity(info, suite)),
        ("model", lambda: _model(suite.load(suite.models()[0], device))),
        ("pseudo-targets and losses", lambda: _losses(suite.load(suite.models()[0], device))),
        ("evaluation", lambda: _evaluation(info, suite, suite.load(suite.models()[0], device))),
        ("sealed data", lambda: _sealed(suite, suite.load(suite.models()[0], device))),
    ]
    for what, run in checks:
        try:
            run()
        except _Contract as error:
            yield Finding(f"suite {suite.name}: {what}", FAILED, str(error))
        except Exception as error:  # a task may raise anything
            yield Finding(f"suite {suite.name}: {what}", FAILED, f"{type(error).__name__}: {error}")
        else:
            yield Finding(f"suite {suite.name}: {what}", OK)


def _demand(holds: object, otherwise: str) -> None:
    if not holds:
        raise _Contract(otherwise)


def _identity(info: TaskInfo, suite: Suite) -> None:
    _demand(suite.task == info.name, f"its task is '{suite.task}', the plugin's name is '{info.name}'")
    _demand(suite.models(), "it has no models of its own")
    again = info.open_suite(suite.name, None)
    _demand(suite.data_identity() == again.data_identity(), "data_identity is another one when it is opened again")
    model = suite.models()[0]
    same = suite.model_identity(model) == again.model_identity(model)
    _demand(same, f"model_identity of '{model}' is another one when the suite is opened again")
    try:
        suite.model_identity("no such model")
    except UsageError:
        pass
    else:
        raise _Contract("an unknown model raises no UsageError")
    try:
        suite.check_limit(10**9)
    except UsageError:
        return
    raise _Contract("check_limit accepts a billion images")


def _model(model: VisionModel) -> None:
    import torch

    training = [name for name, module in model.net.named_modules() if module.training]
    _demand(not training, f"module '{(training or [''])[0] or 'the network'}' is in train mode; call net.eval()")
    gradients = [name for name, parameter in model.net.named_parameters() if parameter.requires_grad]
    _demand(not gradients, f"parameter '{(gradients or [''])[0]}' requires a gradient; call net.requires_grad_(False)")
    other = [name for name, parameter in model.net.named_parameters() if parameter.dtype != torch.float32]
    _demand(not other, f"parameter '{(other or [''])[0]}' is not float32")
    channels = model.input_shape[0]
    _demand(len(model.mean) == len(model.std) == channels, f"mean and std must have one value for {channels} channels")
    with torch.no_grad():
        first, second = (_floats(model.net(probes(model, 2))) for _ in range(2))
    _demand(first, "its output holds no floating-point tensor")
    _demand(all(x.isfinite().all() for x in first), "its output on noise is not finite")
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    _demand(same, "it gives another output for the same images")


def _losses(model: VisionModel) -> None:
    import torch

    images = probes(model, 2).requires_grad_(True)
    output = model.net(images)
    targets = model.sample_targets(len(images), torch.Generator().manual_seed(0))
    loss = model.target_loss(output, targets)
    _demand(loss.dim() == 0 and loss.isfinite(), "target_loss is not a finite scalar")
    (gradient,) = torch.autograd.grad(loss, images)
    _demand(gradient.isfinite().all() and gradient.abs().sum() > 0, "target_loss has no gradient for the images")
    with torch.no_grad():
        distance = float(model.output_distance(model.net(images), model.net(images)))
    _demand(abs(distance) < 1e-4, f"output_distance of an output from itself is {distance:g}, not 0")


def _evaluation(info: TaskInfo, suite: Suite, model: VisionModel) -> None:
    first, second = (suite.evaluate(model, model.net, IMAGES) for _ in range(2))
    value = first.metrics.get(suite.primary_metric)
    _demand(value is not None, f"evaluate gives no '{suite.primary_metric}', which is the primary metric")
    _demand(len(first.outcomes) == IMAGES, f"outcomes have {len(first.outcomes)} rows for {IMAGES} images")
    _demand(first.outcomes.equals(second.outcomes), "outcomes of the float model differ the second time")
    known = info.resampling or "correct" in first.outcomes
    _demand(known, "outcomes have no column 'correct', and TaskInfo.resampling names no metric to make of them")
    from_outcomes = metric_of(first.outcomes, info.resampling)
    agrees = abs(float(value or 0.0) - float(from_outcomes or 0.0)) <= SLACK
    _demand(
        agrees, f"'{suite.primary_metric}' is {value:g}, but outcomes give {from_outcomes:g}; metrics are in points"
    )


def _sealed(suite: Suite, model: VisionModel) -> None:
    import torch

    with sealed_data("check"):
        for what, touch in (
            ("calibration images", lambda: suite.calibration(model).images(1, torch.Generator().manual_seed(0))),
            ("evaluation images", lambda: suite.evaluate(model, model.net, 1)),
        ):
            try:
                touch()
            except DataFreeViolation:
                continue
            raise _Contract(f"{what} are handed out while data are sealed; call check_not_sealed first")


def _floats(output: Any) -> list[torch.Tensor]:
    return [leaf for _, leaf in leaves(output) if leaf.is_floating_point()]
