"""What plugins require of a network, found out before weights are downloaded or images are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.api.contracts import Suite, VisionModel
from harness.api.errors import UsageError, first_line
from harness.api.plugins import import_target
from harness.api.spec import BitSpec, split_scheme
from harness.catalog.catalog import ResolvedMethod

Unmet = dict[tuple[str, str], str]  # method and scheme -> why it cannot run there


class Requirements:
    """What is known of one network: each requirement is looked into once per scheme."""

    def __init__(self, model: VisionModel) -> None:
        self._model = model
        self._known: dict[tuple[str, str], str | None] = {}

    def unmet(self, targets: Iterable[str], scheme: str) -> str | None:
        """The first of `targets` (`PluginInfo.requires`) that the network does not meet, in one sentence, or None.

        Raises:
            UsageError: the network cannot be quantized in this scheme, whatever the method.
        """
        tensors, part = split_scheme(scheme)
        model = self._model.restricted(part)
        for target in targets:
            if (target, scheme) not in self._known:
                self._known[target, scheme] = _asked(target, model, tensors)
            reason = self._known[target, scheme]
            if reason is not None:
                return reason
        return None


def _asked(target: str, model: VisionModel, tensors: str) -> str | None:
    try:
        reason: str | None = import_target(target)(model, tensors)
    except UsageError:
        raise
    except Exception as error:  # a plugin's code may raise anything; it costs that plugin's cells
        return f"{target} does not say what is required ({type(error).__name__}: {first_line(error)})"
    return reason


def unsuited(method: ResolvedMethod, spec: BitSpec, scheme: str) -> str | None:
    """Why the method is not for this precision or this scheme (perhaps of a part), in one sentence, or None."""
    tensors, _ = split_scheme(scheme)
    for info in method.infos:
        if tensors not in info.schemes:
            return f"{info.name} is for scheme {' or '.join(info.schemes)}, not {tensors}"
    if spec.mixed and not any(info.mixed for info in method.infos):
        return f"all layers get one width, and {spec} needs a method that chooses them, such as clamp"
    for part, stored in (("weights", spec.weights), ("activations", spec.activations)):
        # Images and transformed float models are made without them.
        finds = [info for info in method.infos if info.kind in ("method", "calibrator")]
        if stored is not None and not all(info.blocks in (part, "all") for info in finds):
            return (
                f"{part}' scales are searched in a way of its own, and {spec} has microscaling {part}, whose scales "
                "follow from the values; minmax does that"
            )
    return None


def unmet(suite: Suite, model: str, methods: Sequence[ResolvedMethod], schemes: Iterable[str]) -> Unmet:
    """Why methods cannot run on `model`; empty if the suite does not show its architecture.

    Raises:
        UsageError: there is no such model, or none of the methods can quantize it in any of the schemes.
    """
    sketch = suite.untrained(model) if hasattr(suite, "untrained") else None
    if sketch is None:
        return {}
    requirements = Requirements(sketch)
    found: Unmet = {}
    refusals: dict[str, UsageError] = {}  # by scheme
    for scheme in schemes:
        for method in methods:
            try:
                reason = requirements.unmet(method.requires, scheme)
            except UsageError as error:
                refusals.setdefault(scheme, error)
                reason = str(error)
            if reason is not None:
                found[method.name, scheme] = reason
    if refusals and len(found) == len(methods) * len(set(schemes)):
        raise next(iter(refusals.values()))
    return found
