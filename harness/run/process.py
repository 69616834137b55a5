"""State of this process that one cell could leave to the next: torch's switches, the environment, patched functions."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any

# Packages whose functions and classes are looked at; what else a cell patches dies with its worker.
_WATCHED = ("torch.nn", "harness", "methods", "tasks", "timm.layers")
_EXACTLY = ("torch", "torch.functional", "torch.linalg", "torch.special", "torch._tensor", "numpy")
_CODE = (types.FunctionType, types.BuiltinFunctionType, type, property, classmethod, staticmethod)


@dataclass(frozen=True)
class _Switch:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _switches() -> list[_Switch]:
    import numpy as np
    import torch

    def deterministic(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    def flag(owner: Any, name: str, called: str) -> _Switch:
        return _Switch(called, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))

    return [
        _Switch("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Switch("torch's default device", torch.get_default_device, torch.set_default_device),
        _Switch("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _Switch("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Switch("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        _Switch("denormal numbers", _flushes_denormals, torch.set_flush_denormal),
        _Switch(
            "deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            deterministic,
        ),
        _Switch(
            "precision of float32 products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        flag(torch.backends.cudnn, "allow_tf32", "TensorFloat-32 of cuDNN"),
        flag(torch.backends.cudnn, "benchmark", "benchmarks of cuDNN"),
        flag(torch.backends.cudnn, "deterministic", "determinism of cuDNN"),
        flag(torch.backends.cuda.matmul, "allow_tf32", "TensorFloat-32 of cuBLAS"),
        flag(torch.backends.mkldnn, "enabled", "oneDNN"),
        _Switch("NumPy's error state", np.geterr, lambda value: np.seterr(**value)),
        _Switch("the environment", lambda: dict(os.environ), _set_environment),
        _Switch("the working directory", os.getcwd, os.chdir),
        _Switch("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    ]


def _flushes_denormals() -> bool:
    import torch

    with torch._C.DisableTorchFunction():
        return float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0


def _set_environment(value: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    os.environ.update(value)


@contextmanager
def exits_raised() -> Iterator[None]:
    """While open, `os._exit` and `os.abort` raise SystemExit in this process; a process forked from it ends by them."""
    own = os.getpid()
    real: dict[str, Callable[..., Any]] = {"_exit": os._exit, "abort": os.abort}

    def instead(name: str) -> Callable[..., Any]:
        def end(*arguments: Any) -> Any:
            if os.getpid() != own:
                return real[name](*arguments)
            raise SystemExit(f"os.{name}({', '.join(map(repr, arguments))})")

        return end

    for name in real:
        setattr(os, name, instead(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


class ProcessState:
    """What the process is like now.

    Args:
        classes: classes to look at beside those of torch and of the project: those of a model.
    """

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._switches = [(switch, switch.read()) for switch in _switches()]
        owners: dict[int, tuple[str, Any]] = {}
        for name, owner in _owners(classes):
            owners.setdefault(id(owner), (name, owner))
        self._code = [_Code.of(name, owner) for name, owner in owners.values()]
        values = {id(value): value for code in self._code for value in code.values}
        self._functions = [value for value in values.values() if isinstance(value, types.FunctionType)]
        self._bodies = [function.__code__ for function in self._functions]

    def restore(self) -> tuple[list[str], list[str]]:
        """Undo what has been changed since: which switches were moved, and which functions were replaced."""
        return self._restore_switches(), self._restore_code()

    def _restore_switches(self) -> list[str]:
        moved = []
        for switch, before in self._switches:
            try:
                now = switch.read()
            except OSError as error:  # the working directory is gone
                now = error
            if now != before:
                switch.write(before)
                moved.append(switch.name)
        return moved

    def _restore_code(self) -> list[str]:
        replaced = []
        for code in self._code:
            now = vars(code.owner)
            # Thousands are looked at: one by one only where something is another object than before.
            if not all(map(is_, map(now.get, code.names), code.values)):
                for key, value in zip(code.names, code.values, strict=True):
                    if now.get(key) is not value:
                        setattr(code.owner, key, value)
                        replaced.append(f"{code.name}.{key}")
            if isinstance(code.owner, type) and not now.keys() <= code.present:
                # What is new in a class may hide what it inherits.
                for key in [k for k, v in now.items() if k not in code.present and callable(v)]:
                    if _inherits(code.owner, key):
                        delattr(code.owner, key)
                        replaced.append(f"{code.name}.{key}")
        if not all(map(is_, map(attrgetter("__code__"), self._functions), self._bodies)):
            for function, body in zip(self._functions, self._bodies, strict=True):
                if function.__code__ is not body:
                    function.__code__ = body
                    replaced.append(f"{function.__module__}.{function.__qualname__}")
        return replaced


@dataclass(frozen=True)
class _Code:
    """Functions, classes and the like of a module or class, and the names of all that it has."""

    name: str
    owner: Any
    names: tuple[str, ...]
    values: tuple[Any, ...]
    present: frozenset[str]

    @classmethod
    def of(cls, name: str, owner: Any) -> _Code:
        code = {key: value for key, value in list(vars(owner).items()) if isinstance(value, _CODE)}
        return cls(name, owner, tuple(code), tuple(code.values()), frozenset(vars(owner)))


def _owners(classes: Iterable[type]) -> Iterator[tuple[str, Any]]:
    import torch

    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and (name in _EXACTLY or f"{name}.".startswith(_prefixes())):
            yield name, module
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    yield f"{name}.{value.__qualname__}", value
    yield "torch.Tensor", torch.Tensor
    for kind in classes:
        for owner in kind.__mro__[:-1]:
            yield f"{owner.__module__}.{owner.__qualname__}", owner


def _inherits(owner: type, name: str) -> bool:
    return any(name in vars(base) for base in owner.__mro__[1:])


def _prefixes() -> tuple[str, ...]:
    return tuple(f"{name}." for name in _WATCHED)
