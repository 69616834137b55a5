"""What must hold for a cell's number to mean something; where it does not, the cell fails in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.api.contracts import QuantSummary, VisionModel
from harness.api.errors import BadResult
from harness.api.images import PROBES, probes
from harness.api.sealing import sealed_data
from harness.results.record import Layer, Quantization
from harness.run.unchanged import Change, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.api.contracts import QuantizedModel
    from harness.api.spec import BitSpec


def check_handed_over(model: VisionModel, task: str) -> None:
    """Check a float model that a task has loaded.

    Raises:
        BadResult: it is not as `VisionModel` says; the task is to blame, not the method that gets it.
    """
    import torch

    faults = {
        "in train mode; it is to call eval()": any(module.training for module in model.net.modules()),
        "with parameters that require gradients": any(p.requires_grad for p in model.net.parameters()),
        "with parameters that are not float32": any(p.dtype != torch.float32 for p in model.net.parameters()),
    }
    for fault, present in faults.items():
        if present:
            raise BadResult(f"task '{task}' hands over model '{model.name}' {fault}")


def check_untouched(name: str, change: Change | None) -> None:
    """Raise BadResult if the float model was changed: the next cell would use it."""
    if change is None:
        return
    if change.path.rpartition(".")[2] == "training":
        raise BadResult(f"method '{name}' left the float model in train mode")
    if change.after is not None and change.after.startswith("trained") and not str(change.before).startswith("trained"):
        raise BadResult(f"method '{name}' left parameters of the float model requiring gradients")
    if "_hooks" in change.path:
        raise BadResult(f"method '{name}' left hooks on the float model")
    raise BadResult(f"method '{name}' changed the float model that it was given: {change}")


def summarise(name: str, summary: QuantSummary) -> Quantization:
    """The summary as it is recorded.

    Raises:
        BadResult: nothing was quantized.
    """
    if summary.weight_sites <= 0 and summary.activation_sites <= 0:
        raise BadResult(f"method '{name}' quantized nothing: no weight and no activation site")
    return Quantization(
        weight_sites=summary.weight_sites,
        activation_sites=summary.activation_sites,
        weight_mib=summary.weight_mib,
        float_values=summary.float_values,
        layers=[
            Layer(
                name=layer.name,
                size=layer.size,
                bits=layer.bits,
                format=None if layer.format is None else str(layer.format),
                scale_bits=layer.scale_bits,
            )
            for layer in summary.layers
        ],
        activation_ranges={site: (float(low), float(high)) for site, (low, high) in summary.activation_ranges.items()},
        activation_bits=dict(summary.activation_bits),
        bit_operations=summary.bit_operations or None,
        activation_formats={site: str(shown) for site, shown in summary.activation_formats.items()},
        activation_scale_bits=dict(summary.activation_scale_bits),
        activation_scaled_values=dict(summary.activation_scaled_values),
        float_products=summary.float_products,
    )


def check_metrics(metrics: Mapping[str, float], primary: str) -> None:
    """Raise BadResult unless all metrics are finite and the primary one is there."""
    if primary not in metrics:
        raise BadResult(f"the evaluation gave no '{primary}', which the suite ranks by")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise BadResult(f"metric '{name}' is {value}")


@dataclass
class Known:
    """What checks of several results of one float model have in common, found out when it is first needed."""

    output: Any = None  # of the float model, for the probes
    graph: Any = None  # its trace, made for the checks alone: methods hold one of their own


class Evaluated:
    """A model as the evaluation calls it: its outputs are checked, and it sees no data but what it is called with.

    Args:
        model: the float model.
        call: it, or a method's result.
        name: how messages call it, with its kind.
        known: what is known of the float model already; filled in.
    """

    unverified: str | None = None  # why it could not be held against what was asked for

    def __init__(self, model: VisionModel, call: Callable[..., Any], name: str, known: Known | None = None) -> None:
        self._call = call
        self._name = name
        self._images = probes(model)
        self._known = Known() if known is None else known
        if self._known.output is None:
            self._known.output = self._alone(model.net, self._images)
        self._reference = self._known.output

    def __call__(self, images: Tensor, **more: Any) -> Any:
        """Output for normalised `images`, and `more` that the suite gives its networks.

        Raises:
            BadResult: it has not the form of the float model's, or is not finite.
            DataFreeViolation: something reached for the task's data meanwhile.
        """
        with sealed_data(self._name, "while it was evaluated"):
            output = self._call(images, **more)
        # Dense models answer an evaluation in forms of their own.
        self._check(output, images, whole=type(output) is type(self._reference))
        return output

    def probe(self, run: Callable[[Tensor], Any] | None = None) -> Any:
        """Output for images that have nothing to do with the evaluation's, by `run` or a plain call."""
        output = self._alone(run or self._call, self._images)
        self._check(output, self._images, whole=True)
        return output

    def check_unchanged(self) -> None:
        """To be called after the evaluation; nothing to check of the float model."""

    def _alone(self, call: Callable[[Tensor], Any], images: Tensor) -> Any:
        import torch

        with sealed_data(self._name, "while it was evaluated"), torch.no_grad():
            return call(images.clone())

    def _check(self, output: Any, images: Tensor, *, whole: bool) -> None:
        import torch

        found = leaves(output)
        for place, leaf in found:
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise BadResult(f"{self._name} gives NaN or infinite values{place and ' in ' + place}")
        if not whole:
            return
        expected = leaves(self._reference)
        if [place for place, _ in found] != [place for place, _ in expected]:
            raise BadResult(f"{self._name} gives {_form(output)}, where the float model gives {_form(self._reference)}")
        for (place, leaf), (_, like) in zip(found, expected, strict=True):
            shape = tuple(like.shape)
            if shape[:1] == (PROBES,):
                shape = (len(images), *shape[1:])
            # Axes behind the channels follow the images' size.
            known = len(shape) if images.shape[1:] == self._images.shape[1:] else 2
            if leaf.dim() != like.dim() or tuple(leaf.shape[:known]) != shape[:known]:
                raise BadResult(
                    f"{self._name} gives {tuple(leaf.shape)}{place and ' in ' + place} for {len(images)} images, where "
                    f"the float model gives {shape}"
                )


class Inspected(Evaluated):
    """A method's result, held against what was asked for before it is evaluated, and against itself afterwards."""

    def __init__(
        self,
        model: VisionModel,
        result: QuantizedModel,
        method: str,
        *,
        scheme: str,
        spec: BitSpec,
        leave_out: tuple[type, ...] = (),
        known: Known | None = None,
    ) -> None:
        import torch

        # The one place where methods' own knowledge of networks is asked: what scheme and precision mean for one.
        from methods.core.audit import Uninspectable, audit, traced

        super().__init__(model, result, f"method '{method}'", known)
        self._result = result
        self._leave_out = (VisionModel, *leave_out)
        self._before = Snapshot(result, self._leave_out)

        def look(images: Tensor) -> tuple[Any, list[str]]:
            if self._known.graph is None:
                self._known.graph = traced(model)
            return audit(model, result, images, scheme=scheme, spec=spec, graph=self._known.graph)

        self._look, self._uninspectable = look, Uninspectable
        self._first = self.probe(self._audited)
        # The first batch of the evaluation is looked at too: other images, and another number of them. Dense models
        # answer those in forms of their own.
        self._due = isinstance(self._first, torch.Tensor)

    def __call__(self, images: Tensor, **more: Any) -> Any:
        """Output for normalised `images`; as for any model, and the first are looked at as the probes were."""
        if not self._due or more or images.shape[1:] != self._images.shape[1:]:
            return super().__call__(images, **more)
        self._due = False
        self._call = self._audited
        try:
            return super().__call__(images)
        finally:
            self._call = self._result

    def _audited(self, images: Tensor) -> Any:
        """Output for `images`, looked into where that is possible."""
        if self.unverified is not None:
            return self._result(images)
        try:
            output, found = self._look(images)
        except self._uninspectable as reason:
            self.unverified = str(reason)
            return self._result(images)
        # The form of the output comes first: what is wrong with it explains the rest.
        self._check(output, images, whole=True)
        if found:
            more = f" (and {len(found) - 1} more such findings)" if len(found) > 1 else ""
            raise BadResult(f"{self._name} {found[0]}{more}")
        return output

    def check_unchanged(self) -> None:
        """To be called after the evaluation.

        Raises:
            BadResult: what was evaluated is another model by now.
        """
        import torch

        change = self._before.change(Snapshot(self._result, self._leave_out))
        if change is not None:
            raise BadResult(
                f"{self._name} changed its quantized model while that was evaluated, so that it may learn from "
                f"evaluation images: {change}"
            )
        for (place, before), (_, after) in zip(leaves(self._first), leaves(self.probe()), strict=True):
            if not torch.equal(before, after):
                raise BadResult(
                    f"{self._name} gives other outputs{place and ' in ' + place} for the same images after the "
                    "evaluation than before it"
                )


def leaves(output: Any, place: str = "") -> list[tuple[str, Tensor]]:
    """Tensors in tuples, lists and mappings, and where they are; what else there is does not count."""
    import torch

    if isinstance(output, torch.Tensor):
        return [(place, output)]
    if isinstance(output, Mapping):
        return [leaf for key, value in output.items() for leaf in leaves(value, f"{place}[{key!r}]")]
    if isinstance(output, (tuple, list)):
        return [leaf for i, value in enumerate(output) for leaf in leaves(value, f"{place}[{i}]")]
    return []


def _form(output: Any) -> str:
    found = leaves(output)
    return f"a {type(output).__name__} of {len(found)} tensors" if len(found) != 1 else f"{tuple(found[0][1].shape)}"
