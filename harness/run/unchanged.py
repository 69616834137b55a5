"""Whether an object is as it was: everything that its attributes and containers lead to, tensors by their bytes."""

from __future__ import annotations

import enum
import hashlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, range, slice)
_TENSOR = "tensor of "
_LONGEST = 60  # characters of a value that are shown


@dataclass(frozen=True)
class Change:
    """What is different: where, and the value before and after, None where there was or is nothing."""

    path: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        """`'scale' was 0.25 and is 0.5`."""
        if self.before is None:
            return f"'{self.path}' is new"
        if self.after is None:
            return f"'{self.path}' is gone"
        if _TENSOR in self.before and _TENSOR in self.after:
            return f"the values of '{self.path}' are others"
        return f"'{self.path}' was {self.before[:_LONGEST]} and is {self.after[:_LONGEST]}"


class Snapshot:
    """What an object leads to, as path -> value or hash. Equal snapshots: nothing was changed, replaced or added.

    Functions, classes and what else has no attributes count by identity; a function also by what it has closed over.
    What a `cached_property` keeps is left out, since it changes nothing.

    Args:
        root: where to begin.
        leave_out: types of objects that are not followed.
    """

    def __init__(self, root: object, leave_out: tuple[type, ...] = ()) -> None:
        self._leave_out = (*leave_out, types.ModuleType)
        self._places: dict[int, str] = {}
        self._alive: list[object] = []  # so that no id is given a second time
        self._values: dict[str, str] = {}
        self._kinds: dict[type, _Kind] = {}
        self._walk("", root)

    def change(self, later: Snapshot) -> Change | None:
        """The first difference of a later snapshot of the same object."""
        if self._values == later._values:
            return None
        for path, value in self._values.items():
            now = later._values.get(path)
            if now != value:
                return Change(path, value, now)
        return next((Change(p, None, now) for p, now in later._values.items() if p not in self._values), None)

    def _walk(self, path: str, x: Any) -> None:
        kind = self._kinds.get(type(x)) or self._kinds.setdefault(type(x), _kind(type(x), self._leave_out))
        if kind.sort == "plain":
            self._values[path] = repr(x)
            return
        known = self._places.setdefault(id(x), path)
        if known != path:
            self._values[path] = f"the same as '{known}'"
            return
        self._alive.append(x)
        if kind.sort == "tensor":
            self._values[path] = _of_tensor(x)
        elif kind.sort == "generator":
            self._values[path] = _of_tensor(x.get_state())
        elif kind.sort == "array":
            self._values[path] = _of_array(x)
        elif kind.sort == "left out":
            self._values[path] = type(x).__name__
        else:
            self._inside(path, x, kind)

    def _inside(self, path: str, x: Any, kind: _Kind) -> None:
        code = kind.code or not (kind.sort != "object" or hasattr(x, "__dict__"))
        self._values[path] = f"{type(x).__qualname__} {id(x):#x}" if code else type(x).__qualname__
        if kind.sort == "mapping":
            for key, value in list(x.items()):
                # Keys of other kinds than these count by their place alone.
                name = str(key) if isinstance(key, (*_PLAIN, tuple)) else type(key).__name__
                self._walk(f"{path}[{name}]", value)
        elif kind.sort == "sequence":
            for i, value in enumerate(x):
                self._walk(f"{path}[{i}]", value)
        elif kind.sort == "set":
            self._values[f"{path}{{}}"] = repr(sorted(map(repr, x)))
        if kind.bare:
            return
        for name, value in _parts(x, kind):
            self._walk(f"{path}.{name}" if path else name, value)


@dataclass(frozen=True)
class _Kind:
    """What is known of all objects of a type, found out once per snapshot: there are thousands of objects."""

    sort: str
    code: bool = False
    bare: bool = False  # without attributes
    cached: frozenset[str] = frozenset()  # names of its cached properties
    slots: tuple[str, ...] = ()


def _kind(x: type, leave_out: tuple[type, ...]) -> _Kind:
    import numpy as np
    import torch

    sorts: list[tuple[str, tuple[type, ...]]] = [
        ("plain", (*_PLAIN, torch.dtype, torch.device, torch.Size)),
        ("tensor", (torch.Tensor,)),
        ("generator", (torch.Generator,)),
        ("array", (np.ndarray,)),
        ("left out", leave_out),
        ("mapping", (Mapping,)),
        ("sequence", (list, tuple)),
        ("set", (set, frozenset)),
    ]
    sort = next((name for name, kinds in sorts if issubclass(x, kinds)), "object")
    code = issubclass(x, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodWrapperType))
    attributes: dict[str, Any] = {}
    slots: list[str] = []
    for owner in x.__mro__:
        own = vars(owner)
        attributes = own | attributes
        names = own.get("__slots__", ())
        slots += (names,) if isinstance(names, str) else names
    cached = frozenset(name for name, value in attributes.items() if isinstance(value, cached_property))
    slots = [name for name in slots if name not in ("__dict__", "__weakref__")]
    return _Kind(sort, code, x in (dict, list, tuple, set, frozenset), cached, tuple(slots))


def _parts(x: Any, kind: _Kind) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, what a function has closed over, submodules and parameters under their own names."""
    if isinstance(x, type):
        return
    if isinstance(x, types.FunctionType):
        cells = zip(x.__code__.co_freevars, x.__closure__ or (), strict=False)
        yield from ((name, cell.cell_contents) for name, cell in cells if _is_filled(cell))
        return
    if isinstance(x, types.MethodType):
        yield from (("__self__", x.__self__), ("__func__", x.__func__))
    elif isinstance(x, partial):
        yield from (("func", x.func), ("args", x.args), ("keywords", x.keywords))
    for name, value in list(getattr(x, "__dict__", {}).items()):
        if name in ("_modules", "_parameters", "_buffers") and isinstance(value, dict):
            yield from list(value.items())
        elif name not in kind.cached:
            yield name, value
    for name in kind.slots:
        if hasattr(x, name):
            yield name, getattr(x, name)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that has no value yet
        return False


def _of_tensor(x: Any) -> str:
    import torch

    kind = f"{'trained ' * x.requires_grad}{_TENSOR}{x.dtype} {tuple(x.shape)} {x.device}"
    if x.layout is not torch.strided or x.device.type == "meta":
        return kind
    flat = x.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return kind
    return f"{kind} {hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()}"


def _of_array(x: Any) -> str:
    import numpy as np

    kind = f"array {x.dtype} {x.shape}"
    if x.dtype.hasobject or not x.nbytes:
        return kind + f" {hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()}"
    return f"{kind} {hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()}"
