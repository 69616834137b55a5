"""Which modules a module imports, found in its source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

_LOADERS = frozenset(("import_module", "__import__", "import_target"))  # given a constant, they are read like imports
_LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.alias)  # nothing below them imports
_INFOS = frozenset(("PluginInfo", "TaskInfo"))


@dataclass(frozen=True)
class Closure:
    """Modules that are reached from others: files of those that were followed, and packages of the rest."""

    files: tuple[tuple[str, Path], ...]  # module, its file; by module
    packages: frozenset[str]  # top-level names of imports that were not followed, without the standard library's


@dataclass(frozen=True)
class _Imports:
    """What the text of one module imports: modules, and pairs of a module and a name that is taken from it."""

    modules: frozenset[str]
    names: frozenset[tuple[str, str]]  # the name may be a submodule, a plugin's info, `*` or anything else


def closure(roots: Iterable[str], own: frozenset[str], leave_out: frozenset[str] = frozenset()) -> Closure:
    """All modules that `roots` need, directly or through others.

    Imports count wherever they stand, in functions as well, but for those under `if TYPE_CHECKING`. So do the packages
    that a module is in, and the class behind a `PluginInfo` that is imported. A name that is put together while the
    program runs cannot be seen.

    Args:
        roots: Modules to begin with.
        own: Top-level packages whose modules are followed wherever they lie. So are those that are not installed, such
            as a file beside; installed ones have versions and are only named.
        leave_out: Modules and packages that are neither followed nor given.
    """
    files: dict[str, Path] = {}
    packages: set[str] = set()
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen or any(name == left or name.startswith(f"{left}.") for left in leave_out):
            continue
        seen.add(name)
        top, _, rest = name.partition(".")
        if top in sys.stdlib_module_names:
            continue
        if top not in own and is_installed(top):
            packages.add(top)
            continue
        path = file_of(name)
        if rest:
            waiting.append(name.rpartition(".")[0])
        if path is None:
            continue
        files[name] = path
        found = imports(name, path)
        waiting += found.modules
        for module, taken in found.names:
            waiting += _taken(module, taken, own)
    return Closure(tuple(sorted(files.items())), frozenset(packages))


@cache
def _taken(module: str, name: str, own: frozenset[str]) -> tuple[str, ...]:
    """What `from module import name` needs beside `module`."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or (top not in own and is_installed(top)):
        return ()
    if name == "*":
        return tuple(_submodules(module))
    if file_of(f"{module}.{name}") is not None:
        return (f"{module}.{name}",)
    path = file_of(module)
    target = None if path is None else _targets(module, path).get(name)
    return (target,) if target else ()


@cache
def is_installed(top: str) -> bool:
    """Whether a top-level module belongs to an installed package, which has a version; also if it is not there."""
    spec = _top(top)
    if spec is None:
        return True
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    return any(not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts) for place in places)


@cache
def file_of(name: str) -> Path | None:
    """The file of a module: a package's `__init__.py`; None if there is none. Imports no package on the way."""
    top, *rest = name.split(".")
    spec, path = _top(top), top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _top(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return None


def _submodules(package: str) -> list[str]:
    path = file_of(package)
    if path is None or path.name != "__init__.py":
        return []
    return [f"{package}.{found.stem}" for found in sorted(path.parent.glob("*.py")) if found != path]


@cache
def imports(module: str, path: Path) -> _Imports:
    """What the source of `module` imports; nothing if it is no Python source."""
    tree = _tree(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    modules: set[str] = set()
    names: set[tuple[str, str]] = set()
    for node in [] if tree is None else _executed(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node.level, node.module or "")
            modules.add(base)
            names |= {(base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and (target := _loaded(node)):
            level = len(target) - len(target.lstrip("."))
            modules.add(_absolute(package, level, target.lstrip(".").partition(":")[0]))
    return _Imports(frozenset(modules - {""}), frozenset(names))


def _absolute(package: str, level: int, name: str) -> str:
    parts = package.split(".")
    base = parts[: len(parts) - level + 1] if level else []
    return ".".join([*base, *([name] if name else [])])


def _loaded(call: ast.Call) -> str | None:
    """The constant that a function which imports by name is given."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in _LOADERS or not call.args:
        return None
    given = call.args[0]
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None


@cache
def _targets(module: str, path: Path) -> dict[str, str]:
    """Module of the class behind every plugin's info that `module` defines, by the info's name."""
    found: dict[str, str] = {}
    tree = _tree(path)
    for node in [] if tree is None else tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        call = node.value
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        target = next((k.value for k in call.keywords if k.arg == "target"), None)
        if called in _INFOS and isinstance(target, ast.Constant) and isinstance(target.value, str):
            places = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {p.id: target.value.partition(":")[0] for p in places if isinstance(p, ast.Name)}
    return found


@cache
def _tree(path: Path) -> ast.Module | None:
    """The parsed source; None if there is no source, as for an extension in C."""
    if path.suffix != ".py":
        return None
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError:  # importing it fails, which the one who imports it says
        return None


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        elif not isinstance(node, _LEAVES):
            waiting += ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"
