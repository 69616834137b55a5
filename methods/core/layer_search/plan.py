"""Which factors of which operation a site's quantizer is searched with, decided from the data flow alone."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from methods.core.graph.flow import Op, Operand
from methods.core.graph.intercept import OUTPUT, OpKey
from methods.core.graph.layers import LAYERS
from methods.core.graph.sites import Point, Sites
from methods.core.graph.trace import Trace

PRODUCTS = (*LAYERS, "matmul")

Operands = Mapping[OpKey, tuple[Operand, ...]]


@dataclass(frozen=True)
class Activation:
    """Where an activation among the factors has its quantizer: at `point`, None if it stays in float.

    `searched`: with this operation, since it goes nowhere else. `source` is the operation that makes the activation, if
    it is a single one.
    """

    point: Point | None
    searched: bool
    source: OpKey | None


@dataclass(frozen=True)
class Unit:
    """One search: an operation and what is known of its factors, or the tensor at `point` by itself.

    `weight` is the name of a layer's weight, if it is searched here: not if an earlier operation shares it. `pieces`
    is the number of tensors that are cut from a fused layer's output (query, key and value: 3).
    """

    point: Point
    activations: tuple[Activation, ...]
    product: bool = True
    weight: str | None = None
    pieces: int = 1


def plan(graph: Trace, sites: Sites) -> list[Unit]:
    """Units that search every site of `sites` once: tensors by themselves first, then operations as they run.

    A site is searched with the one operation that multiplies it. One that feeds several, or something else as well
    (scheme `full`: the residual stream, queries, keys and values), is judged by itself.
    """
    known = {site.point for site in sites.activations}
    operands = _operands(graph)
    weights = {site.op: site.parameter for site in sites.weights}
    operations = []
    owned: set[Point] = set()
    for key in operands:
        if key.kind not in PRODUCTS:
            continue
        activations = tuple(_factor(key, slot, operands, known) for slot in range(2 if key.kind == "matmul" else 1))
        owned |= {a.point for a in activations if a.searched and a.point is not None}
        if key in weights or any(a.searched for a in activations):
            pieces = _pieces(graph.by_key[key], operands)
            operations.append(Unit((key, OUTPUT), activations, weight=weights.get(key), pieces=pieces))
    alone = []
    for site in sites.activations:
        if site.point not in owned:
            source = site.op if site.slot == OUTPUT else _single(operands[site.op][site.slot])
            alone.append(Unit(site.point, (Activation(site.point, True, source),), product=False))
    return alone + operations


def _operands(graph: Trace) -> dict[OpKey, tuple[Operand, ...]]:
    """Operands of every operation; where a module runs several times, those of all its runs together."""
    merged: dict[OpKey, tuple[Operand, ...]] = {}
    for op in graph.ops:
        before = merged.get(op.key, op.operands)
        merged[op.key] = tuple(
            Operand(a.ops | b.ops, a.parameters | b.parameters, a.others | b.others)
            for a, b in zip(before, op.operands, strict=False)
        )
    return merged


def _factor(key: OpKey, slot: int, operands: Operands, known: Set[Point]) -> Activation:
    source = _single(operands[key][slot])
    if (key, slot) in known:
        return Activation((key, slot), True, source)
    if source is None or (source, OUTPUT) not in known:
        return Activation(None, False, source)
    uses = sum(source in operand.ops for each in operands.values() for operand in each)
    return Activation((source, OUTPUT), uses == 1, source)


def _single(operand: Operand) -> OpKey | None:
    """The only operation that an operand comes from, if nothing else goes into it."""
    if len(operand.ops) == 1 and not operand.parameters and not operand.others:
        return next(iter(operand.ops))
    return None


def _pieces(op: Op, operands: Operands) -> int:
    """Operands of matrix products that come from the operation alone, if they are equal pieces of its output."""
    uses = sum(_single(operand) == op.key for key, each in operands.items() if key.kind == "matmul" for operand in each)
    return uses if op.key.kind == "linear" and uses > 1 and op.shape[-1] % uses == 0 else 1
