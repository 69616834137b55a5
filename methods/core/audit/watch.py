"""Two modes that watch a network of a method as it computes, and what they find.

One mode is entered before the method's own and so sees each operation with the arguments that it is really computed
with. The other is entered by the method's network as it starts, after all others: it sees operations as the network
calls them, knows their names, and gets what the network gets back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.api.contracts import Grid
from methods.core.audit.expected import Expected, Stated, Uninspectable
from methods.core.graph.flow import Op
from methods.core.graph.intercept import OUTPUT, KeyedMode, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.lowest import LowestLevel
from methods.core.graph.operations import MULTIPLYING, macs_of, operands
from methods.core.graph.sites import Point
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.levels import block_fault, fault, outlier_fault, sample, slices, spread
from methods.core.numerics.microscaling import cut

SMALLEST_GROUP = 16  # weights that share a scale; with fewer the scales would weigh more than the weights
SMALLEST_SHARE = 2  # of them that may hold an outlier and the 0 that pays for it
_PER_TENSOR = Grid()

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
        self._enter([""])(net)

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

    def __init__(self, net: nn.Module, network: _Network, lowest: LowestLevel) -> None:
        super().__init__(net)
        self._network = network
        self._lowest = lowest

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._network.computed(key.kind, args)
        with self._lowest.within(key.kind):
            return func(*args, **kwargs)


class Watch:
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
        self._computed = _Computed(net, self._network, self._lowest)
        self._axes = {site.parameter: site.axis for site in expected.sites.weights}
        self._formats = {site.parameter: site.format for site in expected.sites.weights if site.format is not None}
        self._blocks = {s.point: (s.format, s.axis) for s in expected.sites.activations if s.format is not None}
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
        if calls or key.kind not in MULTIPLYING:
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
        finer = self._blocks.keys() | self._stated.dynamic.keys()
        if (source, OUTPUT) in finer or self._grid((source, OUTPUT)) != _PER_TENSOR:
            return None  # channels may lie along any axis by now; they were looked at where they were made
        made, version = self._made.get(source, (None, 0))
        if made is not None and _shares(tensor, made) and tensor._version == version:
            return None  # the same values, if in another order
        multiplied = key.kind in MULTIPLYING
        if not multiplied and source not in self._late:
            return None
        found = fault(spread(tensor, self._values), self._stated.activations[source, OUTPUT])
        if found is None:
            self._late.pop(source, None)
        return found if multiplied and source not in self._late else None

    def _fault(self, key: OpKey, slot: int, tensor: Tensor) -> str | None:
        if (key, slot) in self._stated.dynamic:
            return None  # no number of levels holds there, which `audit` says of the whole
        if (key, slot) in self._blocks:
            stored, axis = self._blocks[key, slot]
            return block_fault(cut(tensor.detach(), axis, stored.group or 1), stored, self._values)
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
        if name in self._formats:
            stored = self._formats[name]
            channels = PerChannel(self._axes[name]).rows(weight.detach())
            found = block_fault(cut(channels, -1, stored.group or 1), stored, None)
            if found is None:
                self._weighed.add(name)
            return None if found is None else f"has values that {found}"
        grid = self._stated.grids.get(name, Grid(self._axes[name]))
        rows = slices(weight, self._axes[name] if grid.axis is None else grid.axis, self._slices)
        if grid.group is not None and grid.outliers is not None:
            return self._weigh_outliers(name, rows, grid.group, grid.outliers)
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

    def _weigh_outliers(self, name: str, rows: Tensor, group: int, micro: int) -> str | None:
        if group < SMALLEST_GROUP or micro < SMALLEST_SHARE:
            return f"has outliers among {micro} of {group} values, which cannot be"
        found = outlier_fault(cut(rows, -1, group), self._stated.weights[name], micro)
        if found is None:
            self._weighed.add(name)
        return None if found is None else f"has values that {found}"

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
