"""Follows values through one forward pass, and refuses arithmetic that could not be quantized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NoReturn, Self

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from methods.core.graph.arguments import adds_values, reduced_axes, repeats_values, stacked_axis, varying_axes
from methods.core.graph.flow import CONSTANT, INPUT, TRACED_IMAGES, UNKNOWN, Op, Operand, lies_in
from methods.core.graph.intercept import KeyedMode, OpaqueOperationError, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.lowest import LowestLevel
from methods.core.graph.operations import (
    AVERAGES,
    BINARY,
    BLENDS,
    LEAVING,
    LIKE,
    MOVES,
    MULTIPLYING,
    PRODUCTS,
    PRODUCTS_BY_NAME,
    SAME,
    SCALINGS,
    arity,
    is_data,
    macs_of,
    name_of,
    operands,
    tensors,
)
from methods.core.graph.takers import Takers
from methods.core.numerics.functions import PROBE, ActivationFunction, recognised, replayed

# Kinds that are nodes whatever they are computed from; the others only where activations are.
_ALWAYS = {*MULTIPLYING, "layer_norm", "batch_norm", "activation", "softmax", "add", "cat", "pool"}
_ELEMENTWISE_OF_ONE = {"activation", "function"}
_OF_ONE = _ELEMENTWISE_OF_ONE | {"pool", "reduce"}
_NONE: frozenset[Any] = frozenset()
_NOWHERE = Operand(_NONE, _NONE, _NONE)
_CONSTANT, _INPUT, _UNKNOWN = (Operand(_NONE, _NONE, frozenset([sort])) for sort in (CONSTANT, INPUT, UNKNOWN))
_CHOOSING = {"minimum", "maximum", "fmin", "fmax"}  # perhaps a number in place of an activation's value
_ANYWHERE = frozenset(range(-8, 0))  # axes of a tensor that was reshaped since it was multiplied
_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # function, arguments
_OUTER = "multiplies tensors elementwise where it could only be a matrix product, which would stay in float"


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor.

    `family`: see `Op`. `pointwise`: a function of that tensor at the same place, no reduction of it. `scaled`: times a
    number; `weighted`: the axes along which it was multiplied by different values of a parameter or constant;
    `stacked`: the axis along which tensors were stacked, so that a sum along it adds them up. Axes count from the end.
    `probed`: values where the family's tensor has those of PROBE, None if that is not known. `function`: the known
    activation function that made it.
    """

    origin: Operand
    family: int
    pointwise: bool = True
    scaled: bool = False
    weighted: frozenset[int] = _NONE
    stacked: int | None = None
    probed: Tensor | None = field(default=PROBE, compare=False)
    function: ActivationFunction | None = None


class Tracer(KeyedMode):
    """Records the operations of one pass of `net` over `images` in `ops`.

    Refuses, inside the module `part` (all of it: None), operations on activations that `operations` does not know; and
    anywhere, products that are not keyed operations.
    """

    def __init__(self, net: nn.Module, images: Tensor, part: str | None = None) -> None:
        super().__init__(net)
        self.ops: list[Op] = []
        self.unknown: list[Tensor] = []  # values of the tensors of which nothing was seen, in order
        self._part = part
        self.takers = Takers(net)
        self._lowest = LowestLevel(self._unseen)
        self._batched: set[OpKey] = set()
        self._families = count()
        # Raised at the end: a scripted function would make a traceback of its own of it.
        self._out_of_sight: OpaqueOperationError | None = None
        # Tensors are kept alive beside what is known of them, so that an id cannot be given to a second tensor.
        self._known: dict[int, tuple[Tensor, _Value]] = {}
        self._aliases: dict[int, list[int]] = defaultdict(list)
        self._weights = {id(p): name for name, p in net.named_parameters()}
        for name, parameter in net.named_parameters():
            self._mark(parameter, self._value(Operand(_NONE, frozenset([name]), _NONE)))
        for buffer in net.buffers():
            self._mark(buffer, self._value(_CONSTANT))
        self._mark(images, self._value(_INPUT))

    def __enter__(self) -> Self:
        self._lowest.__enter__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._lowest.__exit__(*exc)  # type: ignore[no-untyped-call]
        if self._out_of_sight is not None and exc[0] is None:
            raise self._out_of_sight

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._lowest.seen:  # called by an operation that is being looked at
            return func(*args, **(kwargs or {}))
        self._lowest.seen = True
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            self._lowest.seen = False

    # --- what is known of tensors -------------------------------------------------------------------------------

    def _value(self, origin: Operand, **known: Any) -> _Value:
        return _Value(origin, next(self._families), **known)

    def _get(self, tensor: Tensor) -> _Value:
        known = self._known.get(id(tensor))
        if known:
            return known[1]
        inside = self._running and lies_in(self._frames[-1].module, self._part)
        if inside and self._lowest.seen and is_data(tensor):
            self.unknown.append(tensor.detach().clone())
        return self._value(_UNKNOWN)

    def _mark(self, result: Any, value: _Value) -> None:
        """`value` is known of `result`. Of several results, each is a tensor of its own: the product of the two halves
        of one tensor, as in gated MLPs, is no function of one tensor.
        """
        for tensor in tensors(result):
            if id(tensor) not in self._known:
                self._aliases[tensor.untyped_storage()._cdata].append(id(tensor))
            own = value if tensor is result else replace(value, family=next(self._families), probed=PROBE)
            self._known[id(tensor)] = (tensor, own)

    def _mark_written(self, target: Tensor, value: _Value) -> None:
        """`target` was written to: so were other views of its memory, some perhaps in part."""
        for alias in self._aliases[target.untyped_storage()._cdata]:
            other, old = self._known[alias]
            whole = other.numel() == target.numel()
            merged = value.origin if whole else replace(_merged([old.origin, value.origin]), altered=True)
            if other is not target:
                self._known[alias] = (other, self._value(merged))
        self._mark(target, value)

    def _live(self, value: _Value) -> bool:
        """Whether it depends on the images."""
        return INPUT in value.origin.others or not self._batched.isdisjoint(value.origin.ops)

    def outputs(self, output: Any) -> frozenset[OpKey] | None:
        """The operations that a network's `output` comes from; None if it is of a type that cannot be looked into."""
        leaves = tree_leaves(output)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        return _merged([self._get(leaf).origin for leaf in leaves]).ops

    # --- keyed operations ---------------------------------------------------------------------------------------

    def operation(self, key: OpKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the operation, or pass it on where it only scales activations."""
        sources = [self._get(t) for t in operands(key.kind, args)]
        live = [self._live(source) for source in sources]
        if key.kind not in _ALWAYS and not all(live):
            return self.other(func, args, kwargs)
        name = name_of(func)
        weight = self._weights.get(id(args[1])) if key.kind in LAYERS else None
        before = self._lowest.macs
        with self._lowest.within(key.kind):
            result = func(*args, **kwargs)
        self.takers.note(key, name, list(tensors([*args, *kwargs.values()])), list(tensors(result)))
        macs = macs_of(key.kind, args, result)
        if self._lowest.macs - before != macs:
            self._refuse(name, "which multiplies in a way that is not understood; write it with linear and matmul")
        if lies_in(key.module, self._part):
            self._check_call(key, name, args, kwargs)
            self._check_product(key, name, args, kwargs, result)
        batched = any(live)
        if batched:
            self._batched.add(key)
            macs //= TRACED_IMAGES
        value, composite = self._outcome(key, name, sources)
        value = self._probe(value, composite or key.kind, sources, (func, args, kwargs))
        shape = tuple(result.shape)
        origins, given = tuple(s.origin for s in sources), tuple(s.function for s in sources)
        self.ops.append(Op(key, origins, weight, shape, macs, batched, value.family, composite, value.function, given))
        if result is args[0]:
            self._mark_written(result, value)
        else:
            self._mark(result, value)
        return result

    def _outcome(self, key: OpKey, name: str, sources: Sequence[_Value]) -> tuple[_Value, str | None]:
        """What is known of an operation's result, and what it completes."""
        origin = Operand(frozenset([key]), _NONE, _NONE)
        first = sources[0]
        one = key.kind in _OF_ONE and (key.kind != "pool" or name == "mean")
        if one and not first.origin.altered:
            return _Value(origin, first.family, first.pointwise and key.kind in _ELEMENTWISE_OF_ONE), None
        if key.kind in BINARY - {"matmul"} and first.family == sources[1].family:
            pointwise = [source.pointwise for source in sources]
            return _Value(origin, first.family, any(pointwise)), "activation" if all(pointwise) else "norm"
        return self._value(origin), None

    def _probe(self, value: _Value, role: str, sources: Sequence[_Value], call: _Call) -> _Value:
        """`value` of an operation's result, with its values at PROBE and what they tell."""
        probed: Tensor | None = PROBE
        if value.family == sources[0].family:
            values = {id(x): source.probed for x, source in zip(call[1], sources, strict=False)}
            probed = self._replayed(call, values) if value.pointwise else None
        if role != "activation":
            return replace(value, probed=probed)
        # A function that is written out is one of the family's tensor, one of its own is the same of any tensor.
        alone = probed if len(sources) > 1 else self._replayed(call, {id(call[1][0]): PROBE})
        return replace(value, probed=probed, function=recognised(alone))

    def _replayed(self, call: _Call, instead: dict[int, Tensor | None]) -> Tensor | None:
        """What an operation gives for the values `instead` of the tensors with these ids."""
        rest = [t for t in tensors([*call[1], *call[2].values()]) if id(t) not in instead]
        if any(t.numel() != 1 or t.is_meta or self._live(self._get(t)) for t in rest):
            return None
        known = {key: values for key, values in instead.items() if values is not None}
        return replayed(*call, known) if len(known) == len(instead) else None

    def _check_call(self, key: OpKey, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("out") is not None:
            self._refuse(name, "which writes its result into another tensor (`out=`), where it cannot be quantized")
        rest = [] if key.kind in {"cat", *LAYERS} else [*args[arity(key.kind) :], *kwargs.values()]
        if any(is_data(t) and self._live(self._get(t)) for t in tensors(rest)):
            self._refuse(name, "with a second activation, which is not understood")

    def _check_product(
        self, key: OpKey, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> None:
        if self._sums_products(name, args, kwargs):
            self._refuse(name, f"on products with a parameter or constant, and so {_OUTER}")
        if key.kind in PRODUCTS and result.numel() > max(t.numel() for t in operands(key.kind, args)):
            self._refuse(name, f"and so {_OUTER}; write it with matmul")

    def _sums_products(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it runs along an axis on which its values were multiplied by different ones."""
        if name != "sum" and name not in AVERAGES:
            return False
        x = self._get(args[0])
        # Behind a reshape nobody knows on which axes factors differ. A mean is usual there, of tokens; a sum is not.
        if name != "sum" and x.weighted == _ANYWHERE:
            return False
        axes = reduced_axes(name, args, kwargs)
        return bool(x.weighted & axes) and axes != {x.stacked}

    # --- everything else ----------------------------------------------------------------------------------------

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass origins on through an operation that is not a node, if it may be one."""
        name = name_of(func)
        before = self._lowest.macs
        result = func(*args, **kwargs)
        if self._running and self._lowest.macs != before:
            self._refuse(name, "which cannot be quantized here; write it with linear and matmul")
        taken = list(tensors([*args[: 1 if name in LIKE else None], *kwargs.values()]))
        if not taken:  # made of nothing
            self._mark(result, self._value(_CONSTANT))
            return result
        live = [t for t in taken if (t.is_floating_point() or t.is_complex()) and self._live(self._get(t))]
        if live and self._running and lies_in(self._frames[-1].module, self._part):
            self._check(name, args, kwargs, live, result)
        value = self._passed_on(func, args, kwargs, taken, live)
        # Assignment to a part of a tensor returns nothing: boxes' features are put together so, level by level.
        target = args[0] if name == "__setitem__" else result
        self.takers.note(None, name, taken, list(tensors(target)))
        if isinstance(target, Tensor) and args and target is args[0] and (name.endswith("_")):
            self._mark_written(target, value)
        else:
            self._mark(target, value)
        return result

    def _check(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], live: Sequence[Tensor], result: Any
    ) -> None:
        if name in LEAVING:
            self._refuse(name, "which takes values of activations out of torch, where they cannot be followed")
        made = [t for t in tensors(result) if t.is_floating_point() or t.is_complex()]
        if all(t.dim() == 0 for t in live) or not made or all(t.dim() == 0 for t in made):
            return
        if name.startswith(("dropout", "alpha_dropout", "feature_")) and (kwargs.get("training") or True in args[1:3]):
            self._refuse(name, "in training mode")
        if name in PRODUCTS_BY_NAME and made[0].numel() > max(t.numel() for t in live):
            self._refuse(name, f"and so {_OUTER}; write it with linear or matmul")
        if name not in MOVES and name not in BLENDS and name not in SCALINGS:
            self._refuse(
                name,
                "on activations, which the quantization does not know and would leave in float; "
                "write it with operations that methods/core/graph/operations.py names",
            )

    def _passed_on(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        taken: Sequence[Tensor],
        live: Sequence[Tensor],
    ) -> _Value:
        name, origin = name_of(func), _merged([self._get(t).origin for t in taken])
        if not live:
            return self._value(origin)
        first = self._get(live[0])
        data = [self._get(t) for t in taken if is_data(t) and (t.numel() > 1 or self._live(self._get(t)))]
        weighted = _NONE.union(*(value.weighted for value in data))
        if name in SAME:
            return first if origin is first.origin else replace(first, origin=origin)
        if name in SCALINGS:
            if len(data) == 1:
                call, scaled = (func, args, kwargs), id(live[0])
                probed = self._replayed(call, {scaled: first.probed})
                function = first.function and first.function.times(self._replayed(call, {scaled: PROBE}))
                return replace(first, origin=origin, scaled=True, probed=probed, function=function)
            altered = replace(origin, altered=True)
            if name in PRODUCTS_BY_NAME:
                weighted = weighted.union(*(varying_axes(t) for t in taken if not self._live(self._get(t))))
            return self._value(altered, weighted=weighted)
        mixed = len({value.origin for value in data}) > 1 or (len(data) > 1 and any(value.scaled for value in data))
        if mixed or (name in BLENDS and not repeats_values(name, args, kwargs)) or name not in MOVES | BLENDS:
            origin = replace(origin, altered=True)
        reduced = not first.pointwise and len(data) == 1  # a statistic keeps what it is of when it gets an axis more
        scaled = any(value.scaled for value in data)
        if reduced:
            return replace(first, origin=origin)
        stacked = stacked_axis(taken[0], args, kwargs) if name == "stack" else None
        weighted = _ANYWHERE if weighted else _NONE
        kept = (name in MOVES - _CHOOSING or repeats_values(name, args, kwargs)) and not adds_values(name, args, kwargs)
        function = _common(data) if kept else None
        return self._value(origin, scaled=scaled, weighted=weighted, stacked=stacked, function=function)

    def _unseen(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """An operator ran that no Python function called."""
        self.takers.note(None, name, list(tensors(args)), list(tensors(result)))
        given = [self._get(t) for t in tensors(args)]
        if not given or not self._running:
            return
        origin = _merged([value.origin for value in given])
        floating = any(t.is_floating_point() or t.is_complex() for t in tensors(result))
        value = self._value(origin)
        if floating and self._live(value) and lies_in(self._frames[-1].module, self._part) and name not in MOVES:
            why = "out of sight, in a scripted function or compiled code; write it in Python"
            self._out_of_sight = self._out_of_sight or self._refusal(name, why)
        self._mark(result, value)

    def _refusal(self, name: str, why: str) -> OpaqueOperationError:
        module = self._frames[-1].module or "its own forward"
        return OpaqueOperationError(f"the network calls torch's {name} in {module}, {why}")

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise self._refusal(name, why)


def _common(values: Sequence[_Value]) -> ActivationFunction | None:
    """The function that made all of them."""
    found = {value.function for value in values}
    return found.pop() if len(found) == 1 else None


def _merged(origins: Sequence[Operand]) -> Operand:
    if all(o is origins[0] for o in origins):
        return origins[0] if origins else _NOWHERE
    return Operand(
        frozenset().union(*(o.ops for o in origins)),
        frozenset().union(*(o.parameters for o in origins)),
        frozenset().union(*(o.others for o in origins)),
        any(o.altered for o in origins),
    )
