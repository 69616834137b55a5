"""What scheme and precision ask of a network, and what a method states of its result beside that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.api.contracts import Grid, QuantizedModel, QuantSummary
from harness.api.spec import MAX_BITS, MIN_BITS, BitSpec
from methods.core.graph.intercept import OUTPUT
from methods.core.graph.sites import Point, Sites, find_sites
from methods.core.graph.trace import Trace


class Uninspectable(RuntimeError):
    """A result that cannot be looked into; the message says why, in words that follow "cannot be checked:"."""


@dataclass(frozen=True)
class Expected:
    """What scheme and precision ask of a network: its operations and its sites."""

    graph: Trace
    sites: Sites
    spec: BitSpec

    @classmethod
    def of(cls, graph: Trace, scheme: str, spec: BitSpec) -> Expected:
        """For the float model of `graph`.

        Raises:
            Uninspectable: it has no sites.
        """
        try:
            return cls(graph, find_sites(graph, scheme, spec), spec)
        except RuntimeError as error:
            raise Uninspectable(f"the sites of the float model cannot be found ({error})") from error


@dataclass(frozen=True)
class Stated:
    """Widths and grids that the method gives, as far as they are not fixed by what was asked for."""

    weights: Mapping[str, int]
    activations: Mapping[Point, int]
    grids: Mapping[str, Grid]
    labels: Mapping[Point, str]
    dynamic: Mapping[Point, str]  # how quantizers depend on the values that they round
    findings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, result: QuantizedModel, expected: Expected) -> Stated:
        """What `result` states. Only softmax outputs may be quantized beyond the scheme."""
        summary = result.summary
        points = {f"{op.key}:out": (op.key, OUTPUT) for op in expected.graph.of_kind("softmax")}
        points |= {str(site): site.point for site in expected.sites.activations}
        asked = {site.point: site.bits for site in expected.sites.activations}
        given = {points[label]: bits for label, bits in summary.activation_bits.items() if label in points}
        free = expected.spec.mixed and expected.spec.activation is None
        fixed = {} if free else asked
        fixed |= {site.point: site.bits for site in expected.sites.activations if site.fixed}
        weights = {site.parameter: site.bits for site in expected.sites.weights}
        if expected.spec.mixed:
            weights |= {layer.name: layer.bits for layer in summary.layers if layer.name in weights}
        told = dict(getattr(result, "dynamic", None) or {})
        findings = [
            f"names a site '{label}', which the network or the scheme does not have"
            for label in [*summary.activation_bits, *summary.activation_ranges, *told]
            if label not in points
        ]
        findings += [
            f"gives activation site '{label}' {given[point]} bits, where {expected.spec} gives {fixed[point]}"
            for label, point in points.items()
            if point in given and point in fixed and given[point] != fixed[point]
        ]
        grids = dict(getattr(result, "grids", None) or {})
        labels = {point: label for label, point in points.items()}
        dynamic = {points[label]: text for label, text in told.items() if label in points}
        return cls(weights, asked | given | fixed, grids, labels, dynamic, list(dict.fromkeys(findings)))


def check_summary(summary: QuantSummary, expected: Expected, total: int) -> list[str]:
    """Findings on the numbers that a method gives of a network of `total` parameters."""
    sites, spec = expected.sites, expected.spec
    findings = []
    layers = {layer.name: layer for layer in summary.layers}
    missing = [site.parameter for site in sites.weights if site.parameter not in layers]
    foreign = sorted(set(layers) - {site.parameter for site in sites.weights})
    if missing:
        findings.append(f"says nothing of {len(missing)} weights that are to be quantized, the first is '{missing[0]}'")
    if foreign:
        findings.append(f"lists '{foreign[0]}' as a quantized weight, though it is not to be quantized")
    for layer in summary.layers:
        low, high = (MIN_BITS, MAX_BITS) if spec.mixed else (int(spec.weight), int(spec.weight))
        if not low <= layer.bits <= high:
            findings.append(f"gives weight '{layer.name}' {layer.bits} bits, where {spec} was asked for")
    quantized = sum(layer.size for layer in summary.layers)
    if spec.mixed and sum(layer.size * layer.bits for layer in summary.layers) > spec.weight * quantized * (1 + 1e-9):
        mean = sum(layer.size * layer.bits for layer in summary.layers) / quantized
        findings.append(f"gives weights {mean:.4f} bits on average, above the budget of {spec}")
    if quantized + summary.float_values != total and not (missing or foreign):
        findings.append(f"accounts for {quantized + summary.float_values} parameters, where the model has {total}")
    extra = sum(label.endswith(":out") and "/softmax." in label for label in summary.activation_bits)
    inside = sum(site.op.kind == "softmax" and site.slot == OUTPUT for site in sites.activations)
    counts = {
        "weights": (summary.weight_sites, len(sites.weights)),
        "activation sites": (summary.activation_sites, len(sites.activations) + extra - inside),
    }
    findings += [f"counts {said} {what}, where there are {are}" for what, (said, are) in counts.items() if said != are]
    return findings
