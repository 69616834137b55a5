"""Which tensors a scheme quantizes, decided from the data flow alone.

`full` follows PSAQ-ViT / FQ-ViT / CLAMP-ViT: every tensor that an integer pipeline would have to store, which
includes the residual stream, LayerNorm outputs and attention logits; softmax outputs and what feeds GELU stay in float.
So do statistics inside a normalisation, and scalings: a layer that takes what was scaled by channels, resized or put
together has a site at its input (`Operand.altered`). Elementwise products and quotients of two activations (gates,
linear attention) are treated as matrix products are: operands and result are stored.
The convolutions of dense heads are not in their tables; here they go with BatchNorm and the activation behind them.
`matmul` follows PTQ4ViT / RepQ-ViT: the operands of linear layers, convolutions, matrix products and scans, and nothing
else; a convolution's input has 8 bits whatever the activation width. Elementwise products stay in float.
In both, all weights have the weight width, patch embedding and head included, and biases stay in float.

In mixed precision each layer has its own width, and so do the activations around it (`Sites.with_widths`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from math import prod

from harness.api.formats import Format
from harness.api.spec import MAX_BITS, BitSpec
from methods.core.graph.channels import channel_axes, summed_axis
from methods.core.graph.flow import TRACED_IMAGES, Op, Operand
from methods.core.graph.intercept import OUTPUT, OpaqueOperationError, OpKey, UnsupportedNetworkError
from methods.core.graph.layers import LAYERS, output_axis
from methods.core.graph.operations import MULTIPLYING, PRODUCTS, SCAN, arity, scan_products
from methods.core.graph.trace import Trace

CONV_INPUT_BITS = 8  # scheme `matmul`: RepQ-ViT's code, `zkkli/RepQ-ViT`


FLOAT_BITS = 32

Point = tuple[OpKey, int]

# Scheme `full`: what makes values that are stored, and what is fused with the layer before it.
_STORED = {
    "matmul",
    "scan",
    "layer_norm",
    "norm",
    "activation",
    "function",
    "pool",
    "reduce",
    "sub",
    "mul",
    "div",
}
_FUSED = {"activation", "function", "batch_norm"}


class NoSitesError(UnsupportedNetworkError):
    """Nothing to quantize was found."""


@dataclass(frozen=True)
class WeightSite:
    """A weight parameter of a linear layer or convolution.

    Output channels are `axis` (`output_axis`): 0, but 1 in a transposed convolution. Where that one has groups, the
    channels at one place of all groups share a quantizer. `format` is a microscaling one, None where the method is free
    to choose.
    """

    parameter: str
    op: OpKey
    bits: int
    axis: int = 0
    format: Format | None = None

    def __str__(self) -> str:
        """The parameter's qualified name."""
        return self.parameter


@dataclass(frozen=True)
class ActivationSite:
    """An operand (slot 0, 1, ...) or the output (slot -1) of an operation.

    `layers` are the weights that it goes with: those of the layers that it feeds, or if it feeds none directly, that
    of the last layer before it. `fixed`: its width does not follow theirs. `format` is a microscaling one, None where
    the method is free to choose, and its blocks lie along `axis`, counted from the end.
    """

    op: OpKey
    slot: int
    bits: int
    layers: tuple[str, ...] = ()
    fixed: bool = False
    format: Format | None = None
    axis: int = -1

    @property
    def point(self) -> Point:
        """Key for `Interceptor` transforms."""
        return (self.op, self.slot)

    def __str__(self) -> str:
        """`blocks.0.attn/matmul.1:in1`."""
        return f"{self.op}:{'out' if self.slot == OUTPUT else f'in{self.slot}'}"


@dataclass(frozen=True)
class Product:
    """A multiplication of two factors: a layer's input and weight, or two activations.

    A factor is a weight's parameter name or the activation points that bound its width; without a point it is float.
    """

    macs: int  # multiply-accumulates for one image, or multiplications and divisions if it is elementwise
    factors: tuple[str | tuple[Point, ...], str | tuple[Point, ...]]
    elementwise: bool = False


@dataclass(frozen=True)
class Sites:
    """All sites of one network under one scheme and precision, in execution order, and the products of which they are
    factors.

    `traced` are all layers and matrix products of the network, so that one that only some images reach is noticed;
    `repeated` are operations that run several times in a pass.
    """

    weights: tuple[WeightSite, ...]
    activations: tuple[ActivationSite, ...]
    products: tuple[Product, ...] = ()
    traced: frozenset[OpKey] | None = None
    repeated: frozenset[OpKey] = frozenset()

    def with_widths(self, widths: Mapping[str, int], activation: Callable[[int], int]) -> Sites:
        """The same sites in mixed precision: weights have `widths`, activations what `activation` makes of the widest
        weight that they go with.
        """
        weights = tuple(replace(site, bits=widths[site.parameter]) for site in self.weights)
        activations = tuple(
            site if site.fixed else replace(site, bits=activation(max(widths[name] for name in site.layers)))
            for site in self.activations
        )
        return replace(self, weights=weights, activations=activations)

    @property
    def formats(self) -> list[Format]:
        """The microscaling formats of all sites that have one."""
        found = [*(site.format for site in self.weights), *(site.format for site in self.activations)]
        return [stored for stored in found if stored is not None]

    @property
    def bit_operations(self) -> int:
        """BOPs of one image: multiply-accumulates, and elementwise products and quotients of two activations, times the
        widths of both factors, a float factor counting 32 bits.

        They are the whole network's. Where only a part of it is quantized, say a detector's backbone, the layers of the
        rest count too, mostly at 32 x 32 bits (less where one takes what the part stores): they have to be computed as
        well, and so figures of a part and of the whole can be compared.

        0, which says that they are unknown, where values are floating-point ones: what a product of those costs does
        not follow from their bits. Blocks of integers count as integers, without their scales.
        """
        if any(stored.kind == "float" for stored in self.formats):
            return 0
        weights = {site.parameter: site.bits for site in self.weights}
        points = {site.point: site.bits for site in self.activations}
        total = 0
        for product in self.products:
            left, right = (
                weights[factor] if isinstance(factor, str) else max((points[p] for p in factor), default=FLOAT_BITS)
                for factor in product.factors
            )
            total += product.macs * left * right
        return total

    @property
    def float_products(self) -> int:
        """How many elementwise products and quotients of two activations have a float factor."""
        return sum(product.elementwise and not all(product.factors) for product in self.products)


def find_sites(trace: Trace, scheme: str, spec: BitSpec, *, softmax_bits: int | None = None) -> Sites:
    """Sites of `scheme` in the traced network, or in its `part` if it has one: the rest stays in float.

    In mixed precision, whose widths a method has yet to choose, every site has the most bits. `softmax_bits` also
    quantizes the outputs of softmax where the scheme leaves them in float (`full`).

    Raises:
        NoSitesError: the network has no weight or no activation to quantize.
        OpaqueOperationError: a layer's weight is not a parameter but computed, as standardized convolutions do.
        KeyError: unknown scheme.
    """
    select: Callable[[Op, Trace, set[OpKey]], list[tuple[int, int | None]]] = {"full": _full, "matmul": _matmul}[scheme]
    weight_bits = MAX_BITS if spec.mixed else int(spec.weight)
    activation_bits = MAX_BITS if spec.activation is None else spec.activation
    channels = {} if spec.activations is None else channel_axes(trace)
    activations: dict[Point, ActivationSite] = {}
    weights: dict[str, WeightSite] = {}
    stored: set[OpKey] = set()  # operations whose output is quantized
    ops = [op for op in trace.ops if trace.inside(op.key)]
    first = next((op.weight for op in ops if op.weight is not None), None)
    if first is None:
        raise NoSitesError("no quantizable operation was found; the network has no linear layer or convolution")
    last = first
    for op in ops:
        if op.weight is None and op.key.kind in LAYERS:
            raise OpaqueOperationError(
                f"the weight of {op.key} is computed, as that of a standardized convolution, and would stay in float; "
                "only layers whose weight is a parameter can be quantized here"
            )
        if op.key.kind == "matmul" and op.batched and any(operand.is_parameter for operand in op.operands):
            raise OpaqueOperationError(
                f"{op.key} multiplies by a parameter in a matrix product, where it would have the width of activations "
                "and count as float; write it as a linear layer"
            )
        if op.weight is not None:
            last = op.weight
            weights.setdefault(
                op.weight, WeightSite(op.weight, op.key, weight_bits, output_axis(op.key.kind), spec.weights)
            )
        chosen = select(op, trace, stored)
        if op.key.kind == "softmax" and softmax_bits is not None and scheme == "full":
            chosen = [(OUTPUT, softmax_bits)]
        for slot, bits in chosen:
            fed = _fed(op, slot, trace) or (last,)
            width = activation_bits if bits is None else bits
            fixed = bits is not None or spec.activation is not None
            site = ActivationSite(op.key, slot, width, fed, fixed)
            if bits is None and spec.activations is not None:
                site = replace(site, format=spec.activations, axis=summed_axis(op, slot, channels))
            known = activations.get(site.point)  # a head that runs on every level of a pyramid has one site for all
            if known is not None:
                site = replace(known, layers=tuple(dict.fromkeys((*known.layers, *fed))))
            activations[site.point] = site
            if slot == OUTPUT:
                stored.add(op.key)
    if not activations:
        raise NoSitesError("no quantizable operation was found; the scheme quantizes no activation of the network")
    points, names = activations.keys(), weights.keys()
    products = tuple(
        product for op in trace.ops if op.macs or op.role in PRODUCTS for product in _products(op, points, names)
    )
    traced = frozenset(op.key for op in trace.ops if op.key.kind in MULTIPLYING)
    repeated = frozenset(key for key, runs in trace.runs.items() if len(runs) > 1)
    return Sites(tuple(weights.values()), tuple(activations.values()), products, traced, repeated)


def comes_from(site: ActivationSite, graph: Trace, kind: str) -> bool:
    """Whether the site's tensor is the output of operations of one kind in every run, and nothing else."""
    if site.slot == OUTPUT:
        return site.op.kind == kind
    sources = [op.operands[site.slot].ops for op in graph.runs[site.op]]
    return all(keys and all(key.kind == kind for key in keys) for keys in sources)


def _fed(op: Op, slot: int, trace: Trace) -> tuple[str, ...]:
    """Quantized weights of the layers that take the tensor as their input."""
    layers = (op,) if slot != OUTPUT else trace.consumers[op.key]
    return tuple(dict.fromkeys(c.weight for c in layers if c.weight is not None and trace.inside(c.key)))


def _products(op: Op, points: Set[Point], weights: Set[str]) -> list[Product]:
    def factor(slot: int) -> tuple[Point, ...]:
        if (op.key, slot) in points:
            return ((op.key, slot),)
        sources = tuple((key, OUTPUT) for key in sorted(op.operands[slot].ops))
        return sources if all(point in points for point in sources) else ()

    def named(name: str | None) -> tuple[Point, ...]:
        return () if name is None else factor(SCAN.index(name))

    if op.key.kind == "scan":
        _, *image = op.shape
        return [Product(macs, (named(a), named(b))) for macs, a, b in scan_products((1, *image), _states(op))]
    if op.weight is not None:
        return [Product(op.macs, (factor(0), op.weight if op.weight in weights else ()))]
    if op.role in PRODUCTS:
        values = prod(op.shape) // (TRACED_IMAGES if op.batched else 1)
        return [Product(values, (factor(0), factor(1)), elementwise=True)]
    return [Product(op.macs, (factor(0), factor(1) if len(op.operands) > 1 else ()))]


def _states(op: Op) -> int:
    """States of each channel of a scan, from its multiply-accumulates for an image: (4 states + 2) for each value."""
    return (op.macs // prod(op.shape[1:]) - 2) // 4


def _matmul(op: Op, trace: Trace, stored: set[OpKey]) -> list[tuple[int, int | None]]:
    if op.key.kind in ("conv", "conv_transpose"):
        return [(0, CONV_INPUT_BITS)]
    if op.key.kind == "linear":
        return [(0, None)]
    if op.key.kind in ("matmul", "scan"):
        return [(slot, None) for slot in range(arity(op.key.kind))]
    return []


def _full(op: Op, trace: Trace, stored: set[OpKey]) -> list[tuple[int, int | None]]:
    kind = op.key.kind
    slots: list[int] = []
    if kind in MULTIPLYING or op.role in PRODUCTS:
        slots += [i for i, operand in enumerate(op.operands) if _needs_own_site(operand, stored)]
    if kind == "add":
        masks = _is_masking(op, trace)
        slots += [i for i, each in enumerate(op.operands) if each.is_parameter or (each.is_constant and not masks)]
    if _output_is_stored(op, trace):
        slots.append(OUTPUT)
    return [(slot, None) for slot in slots]


def _needs_own_site(operand: Operand, stored: set[OpKey]) -> bool:
    """An operand that no output site covers: the image, what was scaled by channels, resized or put together, or the
    features of boxes, which are drawn from several stored maps. Softmax outputs stay in float in this scheme.
    """
    if operand.altered or len(operand.ops) != 1:
        return True
    return not all(key in stored or key.kind == "softmax" for key in operand.ops)


def _output_is_stored(op: Op, trace: Trace) -> bool:
    # Steps are inside an activation function or a normalisation that is written out.
    if op.key in trace.steps or not trace.is_used(op):
        return False
    role = op.role
    if role in _STORED:
        return True
    if role in (*LAYERS, "batch_norm"):
        consumers = trace.consumers[op.key]
        # fc1 -> GELU, convolution -> BatchNorm -> ReLU: one fused operation, whose input is never stored.
        return not consumers or any(c.role not in _FUSED for c in consumers)
    if role == "add":
        return not _is_masking(op, trace) and not all(o.is_parameter or o.is_constant for o in op.operands)
    if role == "cat":
        return any(o.is_parameter for o in op.operands)  # class token joins the patches
    return False


def _is_masking(op: Op, trace: Trace) -> bool:
    """Whether it adds an attention mask (a buffer of 0 and -100) to what goes into a softmax: constants, or their sum
    with a position bias.

    It is part of softmax; its sum must not stretch the range.
    """
    consumers = trace.consumers[op.key]
    return (
        op.key.kind == "add"
        and any(o.is_constant or _is_sum_of_constants(o, trace) for o in op.operands)
        and bool(consumers)
        and all(c.key.kind == "softmax" or _is_masking(c, trace) for c in consumers)
    )


def _is_sum_of_constants(operand: Operand, trace: Trace) -> bool:
    """Whether it is a sum, of whatever is the same for all images, in which there are constants."""
    found = [trace.by_key[key] for key in operand.ops]
    return bool(found) and all(
        op.key.kind == "add"
        and not op.batched
        and any(o.is_constant or _is_sum_of_constants(o, trace) for o in op.operands)
        for op in found
    )
