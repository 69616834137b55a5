"""Plugins by name, imported only when asked for. Built-in tables and entry points of installed packages alike."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, Protocol, TypeVar

from harness.api.errors import UsageError, closest
from harness.api.plugins import imported


class Plugin(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """What users type."""

    def check(self) -> None:
        """Raise UsageError if it cannot be used."""


T = TypeVar("T", bound=Plugin)
FEW = 12  # names that a sentence lists beside the one that was meant


@dataclass(frozen=True)
class Entry:
    """Where a plugin is (`module:attribute`) and who brought it."""

    target: str
    origin: str


@cache
def _installed(_path: tuple[str, ...], group: str) -> EntryPoints:
    """Entry points of all packages on the path: a scan of every installed package, so once for each path."""
    return entry_points(group=group)


def check_known(noun: str, name: str, known: Collection[str]) -> None:
    """Check a name that the user typed.

    Raises:
        UsageError: `name` is not known; the message suggests the closest one, and lists all if none is close or
            they are few.
    """
    if name in known:
        return
    near = closest(name, known)
    names = f"known: {', '.join(sorted(known)) or 'none'}" if not near or len(known) <= FEW else ""
    raise UsageError(f"unknown {noun} '{name}'; {near}{names}".rstrip())


class Registry(Generic[T]):
    """Lazy name -> plugin table of one kind.

    `builtin` maps names to `module:attribute`; `group` is the entry-point group of third-party packages. Nothing is
    imported before `get`. A plugin that cannot be used makes only its own name unusable.
    """

    def __init__(self, noun: str, builtin: Mapping[str, str], group: str, expected: type[T]) -> None:
        self.noun = noun
        self._builtin = dict(builtin)
        self._group = group
        self._expected = expected
        self._usable: dict[str, T] = {}
        self._known: tuple[tuple[str, ...], dict[str, list[Entry]]] | None = None

    def names(self) -> list[str]:
        """All names, the built-in ones first."""
        return list(self._entries())

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def is_builtin(self, name: str) -> bool:
        """Whether `name` is the project's own."""
        return name in self._builtin

    def _entries(self) -> dict[str, list[Entry]]:
        path = tuple(sys.path)
        if self._known is None or self._known[0] != path:
            self._known = path, self._scan(path)
        return self._known[1]

    def _scan(self, path: tuple[str, ...]) -> dict[str, list[Entry]]:
        found = {name: [Entry(target, "dfqbench")] for name, target in self._builtin.items()}
        for point in sorted(_installed(path, self._group), key=lambda p: (p.name, p.value)):
            package = point.dist.name if point.dist else "an unknown package"
            entry = Entry(point.value, f"package {package}")
            entries = found.setdefault(point.name, [])
            if entry.target not in [e.target for e in entries]:
                entries.append(entry)
        return found

    def get(self, name: str) -> T:
        """Import and return the plugin called `name`.

        Raises:
            UsageError: unknown name, two plugins of that name, or a plugin that cannot be imported or used.
        """
        if name in self._usable:
            return self._usable[name]
        found = self._entries()
        check_known(self.noun, name, found)
        entries = found[name]
        if len(entries) > 1:
            origins = " and ".join(f"{entry.origin} ({entry.target})" for entry in entries)
            raise UsageError(f"{self.noun} '{name}' is defined twice, by {origins}; remove or rename one")
        entry = entries[0]
        plugin = imported(entry.target, f"{self.noun} '{name}' of {entry.origin}")
        if not isinstance(plugin, self._expected) or getattr(plugin, "name", None) != name:
            expected = f"{self._expected.__name__} named '{name}'"
            raise UsageError(f"{self.noun} '{name}' of {entry.origin}: {entry.target} is not a {expected}")
        try:
            plugin.check()
        except UsageError as error:
            raise UsageError(f"{self.noun} '{name}' of {entry.origin} is not usable: {error}") from None
        self._usable[name] = plugin
        return plugin

    def load_all(self) -> tuple[dict[str, T], dict[str, str]]:
        """All plugins that can be used, and the reason for each that cannot."""
        usable: dict[str, T] = {}
        broken: dict[str, str] = {}
        for name in self.names():
            try:
                usable[name] = self.get(name)
            except UsageError as error:
                broken[name] = str(error)
        return usable, broken
