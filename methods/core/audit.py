"""What a method hands back, held against what was asked for: scheme and precision, site by site, as it computes.

Nothing of this relies on what a method says of itself. Sites are sought in the float model; then the method's model
runs on a few images while two modes watch. One is entered before the method's own and so sees each operation with the
arguments that it is really computed with. The other is entered by the method's network as it starts, after all others:
it sees operations as the network calls them, knows their names, and gets what the network gets back.

What is handed back has to be what the network gave, and no multiplication may be left over: a second path in float,
inside of the network, beside it or in place of one of its operations, multiplies more than the float model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.api.contracts import Grid, QuantizedModel, QuantSummary, VisionModel
from harness.api.spec import MAX_BITS, MIN_BITS, BitSpec
from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, KeyedMode, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.lowest import LowestLevel
from methods.core.graph.operations import macs_of, operands
from methods.core.graph.sites import Point, Sites, find_sites
from methods.core.graph.trace import Trace, trace_net
from methods.core.numerics.levels import fault, sample, slices, spread

VALUES, SLICES = 1024, 8  # looked at in a tensor, and channels of one: enough to tell a float from 256 values
SMALLEST_GROUP = 16  # weights that share a scale; with fewer the scales would weigh more than the weights
_PER_TENSOR = Grid()


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


def traced(model: VisionModel) -> Trace:
    """The graph of the float model, which audits of several results may share.

    Raises:
        Uninspectable: it cannot be traced.
    """
    try:
        return trace_net(model.net, model.input_shape, model.part)
    except RuntimeError as error:
        raise Uninspectable(f"the float model cannot be traced ({error})") from error


def audit(
    model: VisionModel,
    result: QuantizedModel,
    images: Tensor,
    *,
    scheme: str,
    spec: BitSpec,
    thorough: bool = False,
    graph: Trace | None = None,
) -> tuple[Any, list[str]]:
    """Run `result` on normalised `images` (n, c, h, w) and hold it against what was asked for.

    Args:
        model: the float model.
        result: what the method made of it.
        images: a few.
        scheme: which tensors are to be quantized.
        spec: to how many bits.
        thorough: look at all values instead of a sample.
        graph: the float model's, if it is known.

    Returns:
        Output, and findings, each the end of a sentence that begins with the method; empty if all is as it should be.

    Raises:
        Uninspectable: the result cannot be looked into.
    """
    expected = Expected.of(graph or traced(model), scheme, spec)
    net = network_of(result)
    stated = Stated.of(result, expected)
    watch = _Watch(expected, stated, net, None if thorough else (VALUES, SLICES))
    with torch.no_grad(), watch.entered():
        output = result(images)
    unseen = watch.unseen()
    if unseen and not watch.findings:
        raise Uninspectable(
            f"{len(unseen)} operations of the float model did not run in its `net`, the first is {unseen[0]}"
        )
    if not watch.findings:
        watch.check_whole(output)
    total = sum(p.numel() for p in model.net.parameters())
    return output, [*stated.findings, *check_summary(result.summary, expected, total), *watch.findings]


def network_of(result: Any) -> nn.Module:
    """The network that `result` runs.

    Raises:
        Uninspectable: it has none.
    """
    net = result if isinstance(result, nn.Module) else getattr(result, "net", None)
    if isinstance(net, nn.Module):
        return net
    raise Uninspectable("it has no attribute `net`, the network that it runs")


@dataclass(frozen=True)
class Stated:
    """Widths and grids that the method gives, as far as they are not fixed by what was asked for."""

    weights: Mapping[str, int]
    activations: Mapping[Point, int]
    grids: Mapping[str, Grid]
    labels: Mapping[Point, str]
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
        findings = [
            f"names a site '{label}', which the network or the scheme does not have"
            for label in [*summary.activation_bits, *summary.activation_ranges]
            if label not in points
        ]
        findings += [
            f"gives activation site '{label}' {given[point]} bits, where {expected.spec} gives {fixed[point]}"
            for label, point in points.items()
            if point in given and point in fixed and given[point] != fixed[point]
        ]
        grids = dict(getattr(result, "grids", None) or {})
        labels = {point: label for label, point in points.items()}
        return cls(weights, asked | given | fixed, grids, labels, list(dict.fromkeys(findings)))


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
        findings.append(f"lists '{foreign[0]}' as a quantized weight, which is none")
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


Call = tuple[Any, ...]  # positional arguments of an operation


class _Network(KeyedMode):
    """Operations as the network calls them, with all calls of their kind that were made to compute each."""

    def __init__(self, net: nn.Module, graph: Set[OpKey], ran: Callable[[OpKey, list[Call], Any], None]) -> None:
        super().__init__(net)
        self._graph = graph
        self._ran = ran
        self._current: OpKey | None = None
        self._calls: list[Call] = []
        self.macs = 0  # of all operations of the float model that were called

    def enter_root(self, net: nn.Module) -> None:
        """Count the network itself as running: it had already started when this mode was entered."""
        self._enter("")(net)

    def computed(self, kind: str, args: Call) -> None:
        """Hear of a call. Quantizers may make some of the same kind as the operation that they are for."""
        if self._current is not None and self._current.kind == kind:
            self._calls.append(args)

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._current, self._calls = key, []
        try:
            result = func(*args, **kwargs)
        finally:
            self._current, calls, self._calls = None, self._calls, []
        if key in self._graph:
            self.macs += macs_of(key.kind, args, result)
        with (
            torch._C.DisableTorchFunction(),
            torch._C._DisableTorchDispatch(),
        ):  # what is looked at is no business of the modes, and faster so
            self._ran(key, calls, result)
        return result


class _Computed(KeyedMode):
    """Operations as they are computed, with whatever the method makes of their arguments."""

    def __init__(self, net: nn.Module, network: _Network) -> None:
        super().__init__(net)
        self._network = network

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._network.computed(key.kind, args)
        return func(*args, **kwargs)


class _Watch:
    """Looks at all that the network computes while `entered`."""

    def __init__(self, expected: Expected, stated: Stated, net: nn.Module, sample: tuple[int, int] | None) -> None:
        self._expected = expected
        self._stated = stated
        self._net = net
        self._values = None if sample is None else sample[0]
        self._slices = None if sample is None else sample[1]
        self._network = _Network(net, expected.graph.by_key.keys(), self._ran)
        self._lowest = LowestLevel(lambda *_: None)
        self._given: list[Any] = []  # what the network gave back, call by call
        self._computed = _Computed(net, self._network)
        self._axes = {site.parameter: site.axis for site in expected.sites.weights}
        self._outputs = {site.point for site in expected.sites.activations if site.slot == OUTPUT}
        self._outputs |= {point for point in stated.activations if point[1] == OUTPUT}
        self._seen: set[OpKey] = set()
        self._weighed: set[str] = set()
        self._made: dict[OpKey, tuple[Tensor, int]] = {}  # outputs as they were looked at, and their version then
        self._late: dict[OpKey, str] = {}  # outputs that may still be quantized behind the operation
        self._reported: set[Any] = set()
        self.findings: list[str] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Watch what runs inside."""
        own = vars(self._net).get("forward")
        forward = self._net.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._network:
                self._network.enter_root(self._net)
                self._given.append(forward(*args, **kwargs))
                return self._given[-1]

        self._net.forward = watched
        try:
            with self._lowest, self._computed:
                yield
        finally:
            if own is None:
                del self._net.forward
            else:
                self._net.forward = own
        for key, text in self._late.items():
            self._report((key, OUTPUT), text)

    def unseen(self) -> list[str]:
        """Sites whose operations did not run."""
        sites = self._expected.sites
        needed = [*(site.op for site in sites.weights), *(site.op for site in sites.activations)]
        return [str(key) for key in dict.fromkeys(needed) if key not in self._seen]

    def check_whole(self, output: Any) -> None:
        """See to it that `output` is what the network gave, perhaps in several batches, and all that was computed.

        Raises:
            Uninspectable: it is not.
        """
        given = [[leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)] for part in self._given]
        handed = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if any(len(part) != len(handed) for part in given) or not all(
            torch.equal(leaf, parts[0] if len(parts) == 1 else torch.cat(parts))
            for leaf, *parts in zip(handed, *given, strict=True)
        ):
            raise Uninspectable("it hands back something else than its `net` gives")
        beside = self._lowest.macs - self._network.macs
        if beside > 0:
            raise Uninspectable(f"it computes {beside} multiply-accumulates beside those of the float model")

    def _ran(self, key: OpKey, calls: list[Call], result: Any) -> None:
        """Check one run of an operation; of several calls the one with the fewest faults is taken for it."""
        op = self._expected.graph.by_key.get(key)
        if op is None or not self._expected.graph.inside(key):
            return
        if calls or key.kind not in (*LAYERS, "matmul"):
            self._seen.add(key)
        checked = [self._received(op, args) for args in calls]
        for where, text, what in min(checked, key=len, default=[]):
            self._report(where, text, what)
        if (key, OUTPUT) in self._outputs and isinstance(result, Tensor):
            self._returned(key, result)

    def _returned(self, key: OpKey, result: Tensor) -> None:
        found = self._fault(key, OUTPUT, result)
        consumers = self._expected.graph.consumers.get(key, [])
        if found is None:
            if not result.is_inference():  # those keep no count of what was written to them
                self._made[key] = result, result._version
            return
        if consumers and all(any(operand.ops == {key} for operand in c.operands) for c in consumers):
            self._late.setdefault(key, found)  # a module behind this one may quantize it; its consumers will tell
        else:
            self._report((key, OUTPUT), found)

    def _received(self, op: Op, args: Call) -> list[tuple[str | Point, str, str]]:
        """Where an operation's arguments are not as they should be, why, and how to call the place."""
        faults: list[tuple[str | Point, str, str]] = []
        if op.weight in self._axes and op.key.kind in LAYERS and (text := self._weigh(op.weight, args[1])):
            faults.append((op.weight, text, ""))
        for slot, tensor in enumerate(operands(op.key.kind, args)[: len(op.operands)]):
            sources = op.operands[slot].ops
            if (op.key, slot) in self._stated.activations:
                text = self._fault(op.key, slot, tensor)
                what = ""
            elif len(sources) == 1 and (source := next(iter(sources)), OUTPUT) in self._outputs:
                text = self._moved(op.key, source, tensor)
                what = f"what {op.key} receives in slot {slot} from {source}"
            else:
                continue
            if text is not None:
                faults.append(((op.key, slot), text, what))
        return faults

    def _moved(self, key: OpKey, source: OpKey, tensor: Tensor) -> str | None:
        """Check an operand that was quantized where it was made, or behind that, and moved since."""
        if self._grid((source, OUTPUT)) != _PER_TENSOR:
            return None  # channels may lie along any axis by now; they were looked at where they were made
        made, version = self._made.get(source, (None, 0))
        if made is not None and _shares(tensor, made) and tensor._version == version:
            return None  # the same values, if in another order
        multiplied = key.kind in (*LAYERS, "matmul")
        if not multiplied and source not in self._late:
            return None
        found = fault(spread(tensor, self._values), self._stated.activations[source, OUTPUT])
        if found is None:
            self._late.pop(source, None)
        return found if multiplied and source not in self._late else None

    def _fault(self, key: OpKey, slot: int, tensor: Tensor) -> str | None:
        grid = self._grid((key, slot))
        bits = self._stated.activations[key, slot]
        if grid.axis is None:
            return fault(spread(tensor, self._values), bits)
        batched = self._expected.graph.by_key[key].batched
        if grid.group is not None or not -tensor.dim() <= grid.axis < tensor.dim():
            return f"has a grid {grid} that {tensor.dim()} axes of activations cannot have"
        if grid.axis % tensor.dim() == 0 and batched:
            return "has a grid for every image, which only the images that it is evaluated on can give"
        return fault(slices(tensor, grid.axis, self._slices), bits)

    def _grid(self, point: Point) -> Grid:
        return self._stated.grids.get(self._stated.labels.get(point, ""), _PER_TENSOR)

    def _weigh(self, name: str, weight: Tensor) -> str | None:
        if name in self._weighed:
            return None
        grid = self._stated.grids.get(name, Grid(self._axes[name]))
        rows = slices(weight, self._axes[name] if grid.axis is None else grid.axis, self._slices)
        if grid.group is not None:
            if grid.group < SMALLEST_GROUP or rows.shape[1] % grid.group:
                return f"has a grid for every {grid.group} of {rows.shape[1]} values, which cannot be"
            rows = rows.reshape(-1, grid.group)
        bits = self._stated.weights[name]
        found = fault(rows, bits)
        if found is None and grid.group is None and self._slices is not None:  # some values of every channel
            every = weight.detach().movedim(self._axes[name] if grid.axis is None else grid.axis, 0).flatten(1)
            few = sample(every, 2 ** (bits + 1) + 1)
            found = None if few is None else fault(few, bits)
        if found is None:
            self._weighed.add(name)
            return None
        return f"has values that in one {'group' if grid.group else 'output channel'} {found}"

    def _report(self, where: str | Point, text: str, what: str = "") -> None:
        if where in self._reported:
            return
        self._reported.add(where)
        if isinstance(where, str):
            self.findings.append(f"weight '{where}' {text}")
        elif text.startswith("has"):
            self.findings.append(f"site '{self._stated.labels[where]}' {text}")
        else:
            named = what or f"site '{self._stated.labels[where]}'"
            self.findings.append(f"the values of {named} {text}")


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
