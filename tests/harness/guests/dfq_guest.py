"""Another third-party package: methods and sources on the toy task that misbehave in ways of their own, or do not.

Each method is a function of `dfq_guest_impl` of the plugin's name.
"""

from __future__ import annotations

from harness.api.plugins import Options, PluginInfo


class Named(Options):
    name: str = ""


def _info(name: str, kind: str) -> PluginInfo:
    return PluginInfo(
        name=name,
        kind=kind,
        summary=f"does {name}",
        target=f"dfq_guest_impl:{'Guest' if kind == 'method' else 'Source'}",
        options=Named,
        presets={preset: {"name": name} for preset in ("quick", "default", "paper")},
        partner="minmax" if kind == "source" else None,
    )


def __getattr__(name: str) -> PluginInfo:
    kind, _, plain = name.partition("_")
    if kind not in ("method", "source"):
        raise AttributeError(name)
    return _info(plain, kind)
