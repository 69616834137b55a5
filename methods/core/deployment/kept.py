"""A quantized network as tensors and plain values, and back: what is kept of it and used again without calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from methods.core.deployment.codes import StoredCodes, grid_of, stored_codes
from methods.core.graph.intercept import OpKey
from methods.core.graph.sites import ActivationSite, Product, Sites, WeightSite
from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax
from methods.core.numerics.granularity import PerBlock, PerChannel, PerGroup, PerHead, PerTensor
from methods.core.numerics.logarithmic import FractionalZero, LogSqrt2, UnclippedZero
from methods.core.numerics.quantizers import Quantizer, Stored, Uniform
from methods.core.quantized import Quantized

# Nothing else is made from a file: it may be anybody's.
_CLASSES: dict[str, type] = {
    each.__name__: each
    for each in (
        *(Uniform, UnclippedZero, LogSqrt2, FractionalZero, TwinSoftmax, TwinGelu),
        *(PerTensor, PerChannel, PerHead, PerGroup, PerBlock),
    )
}
Kept = tuple[dict[str, Tensor], dict[str, Any]]


class NotKeptError(ValueError):
    """The network cannot be kept, or what is kept is none; the message says why."""


@dataclass(frozen=True)
class Chosen:
    """A weight's quantizer that gives the values that were chosen once, whatever the float weight."""

    base: Uniform
    values: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return self.values.to(weight)

    def stored_as(self, bits: int) -> Stored | None:
        """As the grid."""
        return self.base.stored_as(bits)


def kept(quantized: Quantized) -> Kept:
    """Tensors by name, and plain values for JSON.

    Raises:
        NotKeptError: it has quantizers of which only their own method knows, or computes with more than quantizers.
    """
    if type(quantized) is not Quantized or quantized.activations is None:
        raise NotKeptError(f"a {type(quantized).__name__} computes with more than quantizers at sites")
    state = dict(quantized.net.state_dict())
    tensors: dict[str, Tensor] = {}
    weights: dict[str, Any] = {}
    for site in quantized.sites.weights:
        grid = grid_of(quantized.weights[site.parameter])
        found = None if grid is None else stored_codes(state[site.parameter], grid, site.axis)
        if grid is None or found is None:
            raise NotKeptError(f"weight {site.parameter} has no codes of eight bits")
        del state[site.parameter]
        stem = f"weight.{site.parameter}"
        tensors |= {f"{stem}.{part}": getattr(found, part) for part in ("codes", "scale", "zero_point")}
        weights[site.parameter] = {"axis": site.axis, "grid": _told(grid, f"{stem}.grid", tensors)}
    activations = [
        _told(quantized.activations[site.point], f"activation.{i}", tensors)
        for i, site in enumerate(quantized.sites.activations)
    ]
    tensors |= {f"float.{name}": value for name, value in state.items()}
    described = {"weights": weights, "activations": activations, "sites": _sites_told(quantized.sites)}
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, described


def restored(net: nn.Module, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Quantized:
    """The quantized network.

    Args:
        net: of the same architecture, with any weights; it is changed.
        tensors: as `kept` gave them.
        described: likewise.

    Raises:
        NotKeptError: they are not what `kept` gives, or belong to another network.
    """
    try:
        sites = _sites_read(described["sites"])
        weights: dict[str, Callable[[Tensor], Tensor]] = {}
        state = {name.removeprefix("float."): value for name, value in tensors.items() if name.startswith("float.")}
        for name, said in described["weights"].items():
            parts = [tensors[f"weight.{name}.{part}"] for part in ("codes", "scale", "zero_point")]
            values = StoredCodes(parts[0], parts[1], parts[2], int(said["axis"])).values()
            weights[name] = Chosen(_read(said["grid"], tensors), values)
            state[name] = values
        activations: list[Quantizer] = [_read(said, tensors) for said in described["activations"]]
        # A bias that reparameterization gave a layer is none of the float network's.
        given = {name: state.pop(name) for name in set(state) - set(net.state_dict())}
        net.load_state_dict(state)
        points = {site.point: each for site, each in zip(sites.activations, activations, strict=True)}
        quantized = Quantized(net, sites, weights, points)
        for name, value in given.items():
            module, _, leaf = name.rpartition(".")
            quantized.net.get_submodule(module).register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        return quantized
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise NotKeptError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


# --- quantizers: dataclasses of tensors, numbers and each other -------------------------------------------------


def _told(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if is_dataclass(value):
        kind = type(value).__name__
        if _CLASSES.get(kind) is not type(value):
            raise NotKeptError(f"a {kind} quantizer is known to its own method alone")
        return {"class": kind} | {
            f.name: _told(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)
        }
    return list(value) if isinstance(value, tuple) else value


def _read(said: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(said, list):
        return tuple(said)
    if not isinstance(said, dict):
        return said
    if "tensor" in said:
        return tensors[said["tensor"]].clone()
    return _CLASSES[said["class"]](**{name: _read(value, tensors) for name, value in said.items() if name != "class"})


# --- sites ------------------------------------------------------------------------------------------------------


def _sites_told(sites: Sites) -> dict[str, Any]:
    return {
        "weights": [[site.parameter, list(site.op), site.bits, site.axis] for site in sites.weights],
        "activations": [
            [list(site.op), site.slot, site.bits, list(site.layers), site.fixed] for site in sites.activations
        ],
        "products": [
            [
                p.macs,
                [f if isinstance(f, str) else [[list(op), slot] for op, slot in f] for f in p.factors],
                p.elementwise,
            ]
            for p in sites.products
        ],
        "traced": None if sites.traced is None else sorted(list(key) for key in sites.traced),
    }


def _sites_read(said: Mapping[str, Any]) -> Sites:
    def factor(each: Any) -> Any:
        return each if isinstance(each, str) else tuple((OpKey(*op), slot) for op, slot in each)

    return Sites(
        tuple(WeightSite(name, OpKey(*op), bits, axis) for name, op, bits, axis in said["weights"]),
        tuple(
            ActivationSite(OpKey(*op), slot, bits, tuple(layers), fixed)
            for op, slot, bits, layers, fixed in said["activations"]
        ),
        tuple(Product(macs, (factor(left), factor(right)), *more) for macs, (left, right), *more in said["products"]),
        None if said["traced"] is None else frozenset(OpKey(*key) for key in said["traced"]),
    )
