"""What torch computes at its lowest level while a network is traced, whatever Python function it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Elementwise products, which are counted where they are steps of a scan.
_ELEMENTWISE = {"mul", "mul_", "addcmul", "addcmul_"}
# Products with a vector, which torch's formulas leave out: operator -> the operand whose every value is used once.
_WITH_VECTOR = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}


class LowestLevel(TorchDispatchMode):
    """Counts multiply-accumulates by torch's formulas (`torch.utils.flop_counter`), and reports what runs unseen.

    Args:
        unseen: called with operator name, arguments and result of each operator that runs outside `within`: in scripted
            functions and compiled extensions, which Python does not see.
    """

    def __init__(self, unseen: Callable[[str, tuple[Any, ...], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        self.macs = 0
        self.seen = False  # a Python function that was seen is running
        self._scanning = False
        self._unseen = unseen

    @contextmanager
    def within(self, kind: str) -> Iterator[None]:
        """While an operation of `kind` runs: in a scan, elementwise products are multiply-accumulates too."""
        before, self._scanning = self._scanning, kind == "scan"
        try:
            yield
        finally:
            self._scanning = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        seen, self.seen = self.seen, True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.seen = seen
        self.macs += _macs(func, args, kwargs or {}, result)
        if self._scanning and func._schema.name.rpartition("::")[2] in _ELEMENTWISE:
            self.macs += _numel(result)
        if not seen:
            with torch._C.DisableTorchFunction():  # what is asked of the tensors is no operation of the network
                self._unseen(func._schema.name.rpartition("::")[2], args, result)
        return result


def _macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result)) // 2
    factor = _WITH_VECTOR.get(func._schema.name.rpartition("::")[2])
    return 0 if factor is None else _numel(args[factor])


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0
