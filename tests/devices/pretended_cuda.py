"""A CUDA device without a GPU: tensors that say they are on `cuda:0`, refuse what CUDA refuses, and compute on the CPU.

A cell that runs on it mixes no devices, draws no CUDA tensor from a CPU generator and hands no CUDA tensor to NumPy;
and since the CPU computes, its number must be the CPU's to the last bit. What it cannot show is what a real GPU's
kernels do: other roundings, memory, speed. Operations that CUDA has no repeatable kernel for, and random numbers that
the device itself would draw, are noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_THERE = ("cuda", "meta")  # meta: what C++ asks for beside a pretended tensor
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}  # from one device to the other
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Of the list in the documentation of `torch.use_deterministic_algorithms`, what warns or raises on CUDA alone.
NOT_REPEATABLE = frozenset(
    (
        *("adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "bincount", "cumsum"),
        *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "grid_sampler_2d_backward", "histc"),
        *("kthvalue", "max_pool3d_with_indices_backward", "median", "nll_loss2d_forward", "put_", "put"),
        *("reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad1d_backward"),
        *("replication_pad2d_backward", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward"),
        *("upsample_linear1d_backward", "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward"),
        *("_upsample_bicubic2d_aa_backward", "_embedding_bag_backward", "_ctc_loss_backward", "max_unpool2d"),
    )
)
RANDOM = frozenset(
    (
        *("bernoulli", "bernoulli_", "multinomial", "native_dropout", "normal", "normal_", "rand", "rand_like"),
        *("randint", "randint_like", "randn", "randn_like", "random_", "randperm", "uniform_", "exponential_"),
    )
)


class Pretended(Tensor):
    """A tensor on `cuda:0` whose values are those of `held`, on the CPU.

    Beneath Python it is on `meta`, since autograd would ask CUDA for streams that only a GPU has.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        kept = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):  # views of tensors from outside must not be inference tensors
            made: Pretended = torch.Tensor._make_wrapper_subclass(cls, held.size(), **kept, device="meta")
        made.held = held
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} ran outside of `pretended_cuda()`")

    def untyped_storage(self) -> torch.UntypedStorage:
        """That of the values, which tells tensors of one memory from others; on `meta` all have the same address."""
        return self.held.untyped_storage()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"


_PLAIN = torch.Generator


class _Generator(_PLAIN):
    """A generator on CUDA; it draws what one on the CPU would."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls if torch.device(device).type == "cuda" else _PLAIN)


class _Mode(TorchDispatchMode):
    """Carries out every operation, whatever device it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = list(_flat((*args, *kwargs.values())))
        owners = {id(value.held): value for value in flat if isinstance(value, Pretended)}
        asked = kwargs.get("device")
        on_cuda = torch.device(asked).type in _THERE if asked is not None else bool(owners)
        if not owners and not on_cuda:
            return func(*args, **kwargs)
        self._check(func, args, flat, on_cuda, kwargs)
        if asked is not None:
            kwargs["device"] = CPU
        result = func(*map(_held, args), **{name: _held(value) for name, value in kwargs.items()})
        return _pretended(result, owners) if on_cuda else result

    def _check(
        self, func: Any, args: Sequence[Any], flat: Sequence[Any], on_cuda: bool, kwargs: Mapping[str, Any]
    ) -> None:
        name = func.overloadpacket.__name__
        here = [value for value in flat if _plain(value)]
        if func in INDEXES:  # CUDA takes indices from the CPU
            here = [value for value in (args[0], *args[2:]) if _plain(value)]
        if func not in MOVES and "device" not in kwargs:
            mutated = func._schema.is_mutable and _plain(args[0])
            if mutated or any(value.dim() for value in here):
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} got some of cuda:0 and cpu")
        without_index = name == "median" and func._overloadname == "default"
        if on_cuda and name in NOT_REPEATABLE and not without_index:
            self.noted[f"not repeatable: {name}"] += 1
        if on_cuda and name in RANDOM:
            self.noted[f"drawn by the device: {name}"] += 1


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _held(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.held
    return type(value)(map(_held, value)) if isinstance(value, list | tuple) else value


def _pretended(result: Any, owners: Mapping[int, Pretended]) -> Any:
    """The result on CUDA; an operation in place returns what it was given."""
    if _plain(result):
        owner = owners.get(id(result))
        return Pretended(result) if owner is None else owner
    return type(result)(_pretended(each, owners) for each in result) if isinstance(result, list | tuple) else result


class _Literals(TorchFunctionMode):
    """Tensors of Python numbers are made on the CPU and moved, where CUDA's own device would be asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        args = tuple(map(_numbered, args))
        kwargs = {name: _numbered(value) for name, value in (kwargs or {}).items()}
        drawn = kwargs.get("generator")  # asked here, since C++ hands on generators of no class
        on_cuda = any(isinstance(value, Pretended) for value in args) or kwargs.get("device") == CUDA
        if isinstance(drawn, _PLAIN) and on_cuda and not isinstance(drawn, _Generator):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{drawn.device}': {func}")
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            target = kwargs.pop("device")
            return func(*args, **kwargs).to(target)
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            return torch.tensor(args[1], **({"dtype": args[0].dtype} | kwargs)).to(CUDA)
        if func is Tensor.tolist and isinstance(args[0], Pretended):
            return args[0].held.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Pretended):
            # Lists and numbers become tensors in C++, where nobody sees them.
            index = tuple(map(_index, args[1])) if isinstance(args[1], tuple) else _index(args[1])
            args = (args[0], index, *args[2:])
            if func is Tensor.__setitem__ and not isinstance(args[2], Tensor):
                args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))
        return func(*args, **kwargs)


def _index(part: Any) -> Any:
    return torch.tensor(part) if isinstance(part, list) else part


def _numbered(value: Any) -> Any:
    """`cuda` as `cuda:0`, without asking CUDA which device is the present one."""
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Pretended)


@contextmanager
def pretended_cuda() -> Iterator[Counter[str]]:
    """Inside, `cuda` is a device; yields what is noted."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # or `Module.to` would drop the tensors' class
    silent: Mapping[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "synchronize": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "get_device_name": lambda *_: "pretended",
    }
    literals, mode = _Literals(), _Mode()
    silent_c = {"DisableTorchFunction": partial(_only, literals), "_DisableTorchDispatch": partial(_only, mode)}
    try:
        with (
            patch.multiple("torch.cuda", **silent),
            patch.multiple("torch._C", **silent_c),
            patch.object(torch, "Generator", _Generator),
            literals,
            mode,
        ):
            yield mode.noted
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


@contextmanager
def _only(mode: _Literals | _Mode) -> Iterator[None]:
    """Instead of no modes at all, which would leave pretended tensors without anyone to compute them."""
    if isinstance(mode, _Mode):
        with _disable_current_modes(), mode:
            yield
        return
    above = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    try:
        with mode:
            yield
    finally:
        for popped in reversed(above):
            torch._C._push_on_torch_function_stack(popped)
