"""From the names that users type to methods with every option known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from harness.api.compose import SourceThenCalibrator
from harness.api.contracts import Method
from harness.api.errors import UsageError, closest
from harness.api.plugins import KINDS, PRESETS, Kind, Options, Origin, PluginInfo, TaskInfo, Trains
from harness.catalog.registry import Registry, check_known
from harness.identity.cell import FLOAT
from harness.identity.names import Part, parse_name, whole
from harness.io.canonical import canonical_json

_WEAKNESS: tuple[Origin, ...] = ("baseline", "published code", "reconstruction")
PLAIN, FITTING = "minmax", "repq"  # the baseline's ranges, and a quick calibrator whose ranges fit at four bits
_LEARNING: tuple[Trains, ...] = ("", "quantizers", "weights")
Overrides = Mapping[str, Mapping[str, Any]]


def _hidden() -> str:
    """One sentence on the package that stands before one of the project's own; empty if none does."""
    own = Path(__file__).resolve().parents[2]
    for package in ("methods", "tasks"):
        spec = find_spec(package)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        if places and places[0] and own / package not in (found := Path(places[0]).resolve(), found.parent):
            return (
                f"{places[0]} hides dfqbench's own package '{package}'; run from another folder, or use the command "
                "`dfqbench`, which does not look for packages in the present one"
            )
    return ""


@dataclass(frozen=True)
class ResolvedMethod:
    """A method as named by the user, every option known. `name` is canonical: one method has one name."""

    name: str
    preset: str
    parts: tuple[tuple[PluginInfo, Options], ...]

    @property
    def infos(self) -> tuple[PluginInfo, ...]:
        """The plugins that make up the method."""
        return tuple(info for info, _ in self.parts)

    @property
    def options(self) -> dict[str, Any]:
        """Plain nested options for the cell; enough for `Catalog.restore`."""
        if not self.parts:
            return {}
        parts = {f"{info.kind}:{info.name}": options.identified() for info, options in self.parts}
        return {"preset": self.preset, "parts": parts}

    @property
    def data(self) -> Literal["none", "images"]:
        """What the harness hands over: `images` if any part needs them."""
        return "images" if any(info.data == "images" for info in self.infos) else "none"

    @property
    def images(self) -> str:
        """What makes its synthetic images, with all options, as one text; empty if it makes none."""
        if self.data != "none" or not self.parts:
            return ""
        sources = [part for part in self.parts if part[0].kind == "source"] or self.parts
        return canonical_json({f"{info.kind}:{info.name}": options.identified() for info, options in sources})

    @property
    def origin(self) -> Origin:
        """The weakest origin of the parts; the float reference is a baseline."""
        return max((info.origin for info in self.infos), key=_WEAKNESS.index, default="baseline")

    @property
    def trains(self) -> Trains:
        """What the parts learn by gradient descent: weights, quantizers or nothing."""
        return max((info.trains for info in self.infos), key=_LEARNING.index, default="")

    @property
    def requires(self) -> tuple[str, ...]:
        """What the parts require of a network, each once."""
        return tuple(dict.fromkeys(info.requires for info in self.infos if info.requires))

    def build(self) -> Method:
        """Import the parts and make the method."""
        built = [info.load()(options) for info, options in self.parts]
        if len(built) == 1:
            method: Method = built[0]
            return method
        (info, options), *between, _ = self.parts
        source, *made, calibrator = built
        transform = (between[0][0].name, made[0]) if between else None
        return SourceThenCalibrator(info, options, source, calibrator, transform)


def _transforms(builtin: Mapping[str, str]) -> Registry[PluginInfo]:
    return Registry("transform", builtin, "dfqbench.transforms", PluginInfo)


@dataclass(frozen=True)
class Catalog:
    """All plugins. Passed around instead of looked up globally, so that tests can bring their own."""

    methods: Registry[PluginInfo]
    sources: Registry[PluginInfo]
    calibrators: Registry[PluginInfo]
    tasks: Registry[TaskInfo]
    transforms: Registry[PluginInfo] = field(default_factory=lambda: _transforms({}))

    @classmethod
    def default(cls) -> Catalog:
        """The project's own plugins and those of installed packages.

        Raises:
            UsageError: another package of the name `methods` or `tasks` is found before the project's own.
        """
        try:
            from methods.catalog import CALIBRATORS, METHODS, SOURCES, TRANSFORMS
            from tasks.catalog import TASKS
        except ImportError as error:
            raise UsageError(_hidden() or f"dfqbench is not installed completely ({error}); install it again") from None

        return cls(
            Registry("method", METHODS, "dfqbench.methods", PluginInfo),
            Registry("image source", SOURCES, "dfqbench.sources", PluginInfo),
            Registry("calibrator", CALIBRATORS, "dfqbench.calibrators", PluginInfo),
            Registry("task", TASKS, "dfqbench.tasks", TaskInfo),
            _transforms(TRANSFORMS),
        )

    def of(self, kind: Kind) -> Registry[PluginInfo]:
        """The registry of one kind of method plugin."""
        registries = {"method": self.methods, "source": self.sources, "transform": self.transforms}
        return {**registries, "calibrator": self.calibrators}[kind]

    def is_builtin(self, method: ResolvedMethod) -> bool:
        """Whether all parts of a method are the project's own, so that its code is known to leave nothing behind."""
        return all(self.of(info.kind).is_builtin(info.name) for info in method.infos)

    def method_names(self) -> list[str]:
        """Every name that can stand alone or in a cross, without repetition."""
        names = [name for kind in KINDS for name in self.of(kind).names()]
        return list(dict.fromkeys(names))

    def find(self, text: str) -> tuple[tuple[PluginInfo, Mapping[str, Any]], ...]:
        """Plugins of `method`, `source`, `calibrator` or `source+calibrator`, each with what its brackets change; a
        transform may stand in front of the calibrator.

        Raises:
            UsageError: malformed brackets, unknown or unusable plugin, or a plugin alone that names no partner.
        """
        part, *others = parts = parse_name(text)
        turned = [each for each in parts if each.name in self.transforms]
        if turned:
            return self._transformed(text, turned[0], [each for each in parts if each is not turned[0]], parts)
        if others:
            self._check_cross(text, (part, *others))
            calibrator = self._info("calibrator", others[0].name)
            return (self._info("source", part.name), part.changes), (calibrator, others[0].changes)
        if part.name == FLOAT:
            if part.changes:
                raise UsageError(f"'{FLOAT}' is the unquantized model and takes no options: '{text}'")
            return ()
        if part.name in self.methods:
            return ((self._info("method", part.name), part.changes),)
        if part.name in self.sources:
            source = self._info("source", part.name)
            return (source, part.changes), (self._info("calibrator", self._partner(source)), {})
        if part.name in self.calibrators:
            calibrator = self._info("calibrator", part.name)
            return (self._info("source", self._partner(calibrator)), {}), (calibrator, part.changes)
        check_known("method", part.name, [FLOAT, *self.method_names()])
        raise AssertionError("unreachable: check_known knows all registries")

    def _transformed(
        self, text: str, transform: Part, others: Sequence[Part], parts: Sequence[Part]
    ) -> tuple[tuple[PluginInfo, Mapping[str, Any]], ...]:
        """The plugins of `source+transform+calibrator` or `transform+calibrator`."""
        name = transform.name
        if parts[-2:-1] != (transform,) or len(parts) > 3 or others[-1].name not in self.calibrators:
            raise UsageError(
                f"'{text}': transform '{name}' stands once, in front of a calibrator; write SOURCE+{name}+CALIBRATOR, "
                f"or {name}+CALIBRATOR"
            )
        calibrator = self._info("calibrator", others[-1].name)
        source = others[0] if len(others) > 1 else Part(self._partner(calibrator))
        self._check_cross(text, (source, others[-1]))
        between = self._info("transform", name), transform.changes
        return (self._info("source", source.name), source.changes), between, (calibrator, others[-1].changes)

    def _check_cross(self, text: str, parts: Sequence[Part]) -> None:
        if len(parts) != 2:
            raise UsageError(f"'{text}' has {len(parts)} parts; a cross is SOURCE+CALIBRATOR")
        first, second = parts
        if first.name in self.calibrators and second.name in self.sources:
            raise UsageError(f"'{text}' has its parts in the wrong order; write {second}+{first}")
        for kind, registry, part in (("source", self.sources, first), ("calibrator", self.calibrators, second)):
            if part.name not in registry and part.name in self.method_names():
                raise UsageError(
                    f"'{part.name}' in '{text}' is not a {kind}; a cross is SOURCE+CALIBRATOR (`list methods`)"
                )

    def _info(self, kind: Kind, name: str) -> PluginInfo:
        info = self.of(kind).get(name)
        if info.kind != kind:
            raise UsageError(f"plugin '{name}' is registered as a {kind} but calls itself a {info.kind}")
        return info

    @staticmethod
    def _partner(info: PluginInfo) -> str:
        if info.partner is None:
            form = f"{info.name}+CALIBRATOR" if info.kind == "source" else f"SOURCE+{info.name}"
            raise UsageError(f"{info.kind} '{info.name}' cannot stand alone; write {form}")
        return info.partner

    def resolve(self, text: str, preset: str = "default", overrides: Overrides | None = None) -> ResolvedMethod:
        """The method that `text` names: the preset's options, the user's on top, those in brackets on top of both.

        Its name has in brackets what those change: what they only repeat is left out.

        Raises:
            UsageError: unknown name, preset or option, or a value that does not fit.
        """
        check_known("preset", preset, PRESETS)
        chosen = overrides or {}
        named, parts = [], []
        for info, changes in self.find(text):
            given = whole(chosen.get(info.name, {}))
            options = info.resolve(preset, {**given, **whole(changes)})
            # Values as the option's type has them, since `0` and `false` may be one; only those that say something new.
            values = options.model_dump(mode="json")
            usual = _values(info, preset, given) if changes else values
            named.append(Part(info.name, {o: values[o] for o in changes if o not in usual or values[o] != usual[o]}))
            parts.append((info, options))
        return ResolvedMethod(self._name(named, parts), preset if parts else "", tuple(parts))

    def _name(self, named: Sequence[Part], parts: Sequence[tuple[PluginInfo, Options]]) -> str:
        if not parts:
            return FLOAT
        if len(parts) == 3:
            return "+".join(map(str, named))
        if len(parts) == 2:
            source, calibrator = parts[0][0], parts[1][0]
            usual = source.partner == calibrator.name and source.name not in self.methods
            if not usual or named[1].changes:
                return f"{named[0]}+{named[1]}"
        return str(named[0])

    def fitted(self, texts: Sequence[str]) -> list[str]:
        """The same with their images under `FITTING`: of a source that stands alone, of a method that a source is named
        like, and of crosses with `PLAIN`. Others have a calibrator of their own and stay as they are.

        Raises:
            UsageError: as `find`.
        """
        found = []
        for text in texts:
            parts = self.find(text)
            names = [info.name for info, _ in parts]
            if not names or names[0] not in self.sources or names[1:] not in ([], [PLAIN]):
                found.append(text)
                continue
            known = self._info("source", names[0]).options.model_fields
            source = Part(names[0], {o: v for o, v in parts[0][1].items() if o in known})
            found.append(f"{source}+{FITTING}")
        return found

    def unfitted(self, text: str, fitted: str) -> list[str]:
        """Options in the brackets of `text` that `fitted`, what `fitted` makes of it, no longer has."""
        kept = {option for _, changes in self.find(fitted) for option in changes}
        return [option for _, changes in self.find(text) for option in changes if option not in kept]

    def resolve_all(self, texts: Sequence[str], preset: str, overrides: Overrides) -> list[ResolvedMethod]:
        """Resolve several methods, each once.

        Raises:
            UsageError: as `resolve_each`.
        """
        return once(self.resolve_each(texts, preset, overrides).values())

    def resolve_each(self, texts: Sequence[str], preset: str, overrides: Overrides) -> dict[str, ResolvedMethod]:
        """The method of every text.

        Raises:
            UsageError: as `resolve`; also options that no method of these uses, or that each of them sets in brackets.
        """
        parsed = {text: self.find(text) for text in texts}
        _check_used([part for parts in parsed.values() for part in parts], overrides)
        found = {text: [info for info, _ in parts] for text, parts in parsed.items()}
        infos = [info for parts in found.values() for info in parts]
        # A method and a source may share a name: each takes the options that it has. An option that none of them has
        # goes to the first, which refuses it.
        known = {name: {f for i in infos if i.name == name for f in i.options.model_fields} for name in overrides}
        resolved = {}
        for text, parts in found.items():
            own = {
                info.name: {
                    option: value
                    for option, value in overrides.get(info.name, {}).items()
                    if option in info.options.model_fields or option not in known[info.name]
                }
                for info in parts
            }
            resolved[text] = self.resolve(text, preset, own)
        return resolved

    def ablations(self, text: str, preset: str = "default", overrides: Overrides | None = None) -> dict[str, str]:
        """Variants that switch one thing of a method: canonical name -> label, in the order of its plugins.

        A switch that changes nothing under this preset and these overrides is left out.

        Raises:
            UsageError: unknown method, one that already has brackets, or an ablation that does not fit the options.
        """
        if any(part.changes for part in parse_name(text)):
            raise UsageError(f"'{text}' is a variant; name the method without brackets and set options with --option")
        infos = [info for info, _ in self.find(text)]
        for info in infos:
            info.check_ablations(preset, (overrides or {}).get(info.name, {}))
        base = self.resolve(text, preset, overrides)
        variants: dict[str, str] = {}
        for place, info in enumerate(infos):
            for label, changes in info.ablations.items():
                parts = [Part(each.name, changes if i == place else {}) for i, each in enumerate(infos)]
                variant = self.resolve("+".join(map(str, parts)), preset, overrides)
                if variant.options != base.options:
                    variants[variant.name] = label
        return variants

    def ablated(self) -> list[str]:
        """Names of all plugins that have ablations."""
        usable = [info for kind in KINDS for info in self.of(kind).load_all()[0].values()]
        return list(dict.fromkeys(info.name for info in usable if info.ablations))

    def restore(self, name: str, options: Mapping[str, Any]) -> ResolvedMethod:
        """The method of a cell, from its own name and options.

        Raises:
            UsageError: a plugin is no longer there or no longer takes these options.
        """
        parts = []
        for part, values in options.get("parts", {}).items():
            kind, _, plugin = part.partition(":")
            info = self._info(kind, plugin)
            try:
                parts.append((info, info.options.model_validate(values)))
            except ValidationError as error:
                raise UsageError(f"{kind} '{plugin}' does not take its recorded options: {error}") from None
        # A source comes first and its calibrator last, whatever order the mapping came in.
        parts.sort(key=lambda part: KINDS.index(part[0].kind))
        return ResolvedMethod(name, str(options.get("preset", "")), tuple(parts))


def once(methods: Iterable[ResolvedMethod]) -> list[ResolvedMethod]:
    """Methods that are named in several ways, each once."""
    return list({method.name: method for method in methods}.values())


def _values(info: PluginInfo, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The plugin's options without brackets; empty if only what brackets change makes them fit."""
    with contextlib.suppress(UsageError):
        return info.resolve(preset, given).model_dump(mode="json")
    return {}


def _check_used(parts: Sequence[tuple[PluginInfo, Mapping[str, Any]]], overrides: Overrides) -> None:
    """See to it that every plugin and option of `overrides` has an effect."""
    used = sorted({info.name for info, _ in parts})
    for name, given in overrides.items():
        if name not in used:
            raise UsageError(
                f"--option names '{name}', which no method of this run uses; {closest(name, used)}"
                f"used: {', '.join(used) or 'none'}"
            )
        for option in given:
            brackets = [changes for info, changes in parts if info.name == name and option in info.options.model_fields]
            if brackets and all(option in changes for changes in brackets):
                raise UsageError(
                    f"--option {name}.{option} has no effect, since every {name} of this run has it in brackets; "
                    "leave it out there or here"
                )
