"""What a plugin says of itself. Imports no torch, so that listing plugins is instant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ConfigDict, ValidationError

from harness.api.errors import UsageError, closest, first_line
from harness.api.spec import SCHEMES
from harness.api.written import Written

if TYPE_CHECKING:
    from pathlib import Path

    from harness.api.contracts import Suite

PRESETS = ("quick", "default", "paper")
Kind = Literal["method", "source", "transform", "calibrator"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Data = Literal["none", "images"]
Origin = Literal["baseline", "published code", "reconstruction"]
Trains = Literal["", "quantizers", "weights"]
Blocks = Literal["", "weights", "activations", "all"]
# What an executor may understand: the fields of `harness.run.executors.base.Resources`, which is above this module.
RESOURCES = ("timeout", "jobs", "address", "cpus", "gpus", "slurm", "detach", "wait")


def import_target(target: str) -> Any:
    """The object behind `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def imported(target: str, what: str) -> Any:
    """The object behind `module:attribute`; `what` it is stands in the message.

    Raises:
        UsageError: it cannot be imported, whatever the module raises, `sys.exit` included.
    """
    try:
        return import_target(target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{what} cannot be imported ({reason}); mend or uninstall it") from error


class _Later:
    """Marks an option, as in `Annotated[float, LATER]`, that a plugin got after its first cells were measured."""


LATER = _Later()


class Options(Written):
    """Base of every plugin's options. Field descriptions are shown by `describe`."""

    # NaN and infinities have no canonical JSON, so a cell could not be identified by them.
    model_config = ConfigDict(allow_inf_nan=False)

    def identified(self) -> dict[str, Any]:
        """Plain values as cells and images are known by: an option that is marked as `LATER` is left out at its
        default, so that the keys of older records stand. Enough to make the same options again.
        """
        values = self.model_dump(mode="json")
        late = {name for name, field in type(self).model_fields.items() if LATER in field.metadata}
        if not late:
            return values
        usual = type(self).model_construct().model_dump(mode="json", include=late, warnings=False)
        return {name: value for name, value in values.items() if name not in late or value != usual[name]}


@dataclass(frozen=True)
class PluginInfo:
    """One method, image source, transform or calibrator.

    `target` is `module:Class`; the class is called with the resolved options as its only argument.
    A *source* makes calibration images, a *calibrator* turns images into quantizer parameters, a *method* does both
    in its own way; a *transform* makes the float network, between the two, easier to quantize. `partner` is what a
    source or calibrator is joined with when it is named alone.
    `ablations` say what each part of it is worth: label -> options that are switched alone, all else being equal.
    `data` is what the harness hands over: `none` (data-free, enforced) or `images` (training images without labels);
    a calibrator says `none`, since its images come from the source. `mixed`: it chooses layers' bit-widths when the
    precision is a mixed one (`MP4.5`); a method without such a part is skipped there. `blocks`: what it can store in
    microscaling formats (`MXFP4A8`), weights, activations, all or nothing; where the precision has them elsewhere it is
    skipped. `schemes`: those that it is for; elsewhere it is skipped. `trains`: what it
    learns by gradient descent, quantizer parameters (which include the rounding of weights) or weights themselves; not
    to be compared unsaid with methods that only choose quantizer parameters. `requires` is `module:function`, called as
    `function(model, scheme) -> str | None` with a VisionModel, perhaps on the meta device, and `full` or `matmul`. It
    says in one sentence what the method lacks in that network, and raises UsageError if no method could quantize it.
    """

    name: str
    kind: Kind
    summary: str
    target: str
    data: Data = "none"
    origin: Origin = "baseline"
    options: type[Options] = Options
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ablations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    partner: str | None = None
    mixed: bool = False
    blocks: Blocks = ""
    schemes: tuple[str, ...] = SCHEMES
    trains: Trains = ""
    requires: str = ""
    paper: str = ""
    code: str = ""  # reference code and its licence, or that there is none
    deviations: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # that its numbers depend on beyond those that its code imports

    def resolve(self, preset: str, overrides: Mapping[str, Any]) -> Options:
        """The preset's options with the user's on top.

        Raises:
            UsageError: an unknown option or a value that does not fit; the message names both.
        """
        values = {**self.presets.get(preset, {}), **overrides}
        try:
            return self.options(**values)
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(self.options.model_fields) or "none"
            if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
                hint = closest(str(first["loc"][0]), self.options.model_fields)
                raise UsageError(f"{self.name} has no option '{first['loc'][0]}'; {hint}it has: {known}") from None
            where = ".".join(map(str, (self.name, *first["loc"])))  # a rule on several options has no place
            raise UsageError(f"option {where}: {first['msg']}; options of {self.name}: {known}") from None

    def check(self) -> None:
        """Check what can be known without importing the plugin's code.

        Raises:
            UsageError: a field that the harness does not know, or a preset whose values the options refuse.
        """
        for name, known in (("kind", Kind), ("data", Data), ("origin", Origin), ("trains", Trains), ("blocks", Blocks)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise UsageError(f"its {name} is {value!r}; known: {', '.join(map(repr, get_args(known)))}")
        if not self.schemes or set(self.schemes) - set(SCHEMES):
            raise UsageError(f"its schemes are {self.schemes!r}; known: {', '.join(map(repr, SCHEMES))}")
        _check_target(self.target)
        if self.requires:
            _check_target(self.requires, "requires")
        unknown = [preset for preset in self.presets if preset not in PRESETS]
        if unknown:
            raise UsageError(f"it has options for preset '{unknown[0]}'; presets are {', '.join(PRESETS)}")
        for preset in PRESETS:
            try:
                self.options.model_validate(self.resolve(preset, {}).model_dump(mode="json"))
            except ValidationError as error:  # a default that is not valid itself
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise UsageError(f"the default of its option {where} is not valid: {first['msg']}") from None
            except UsageError as error:
                raise UsageError(f"its preset '{preset}' does not fit: {error}") from None
            except Exception as error:  # a default that cannot be written as JSON, a validator that breaks
                raise UsageError(f"its options cannot be kept in a record ({type(error).__name__}: {error})") from None

    def check_ablations(self, preset: str, overrides: Mapping[str, Any]) -> None:
        """Check that every ablation fits the options.

        Raises:
            UsageError: one does not; the message names it.
        """
        for label, changes in self.ablations.items():
            try:
                self.resolve(preset, {**overrides, **changes})
            except UsageError as error:
                raise UsageError(f"ablation '{label}' of {self.kind} '{self.name}' is broken: {error}") from None

    def load(self) -> Any:
        """Import and return the class behind `target`.

        Raises:
            UsageError: it cannot be imported.
        """
        return imported(self.target, f"{self.target} of {self.kind} '{self.name}'")


@dataclass(frozen=True)
class Metric:
    """What reports need to know of a metric, which is always in points. `label` is how it is written out, its name if
    left out; `unit` is what stands in brackets behind that. `secondary`: tables show it beside the primary one.
    """

    name: str
    label: str = ""
    unit: str = ""
    secondary: bool = False

    @property
    def shown(self) -> str:
        """The metric written out, without its unit."""
        return self.label or self.name

    @property
    def title(self) -> str:
        """The metric written out, for an axis: `mIoU (%)`."""
        return f"{self.shown} ({self.unit})" if self.unit else self.shown


@dataclass(frozen=True)
class TaskInfo:
    """One task. `target` is `module:function`, called as `function(suite, data_root=Path | None) -> Suite`;
    it raises UsageError when the suite's data cannot be used, saying what is missing. `runs_configs`: its models may be
    described by files that are programs, which it runs only when it is called with `trust_configs=True` as well.
    """

    name: str
    summary: str
    suites: Mapping[str, str]  # suite name -> one-line description
    target: str
    models: Mapping[str, str] = field(default_factory=dict)  # model name or pattern -> one-line description
    # `module:function` for tasks whose primary metric is not a share of images that are `correct`: the function makes a
    # `harness.report.stats.Metric` of the outcomes of one cell, a frame with one row per image. Reports resample images
    # with it.
    resampling: str = ""
    runs_configs: bool = False
    # Suite name -> how many of its evaluation images are taken where the user says nothing, of suites to look at first.
    first_look: Mapping[str, int] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # that its numbers depend on beyond those that its code imports
    metrics: tuple[Metric, ...] = ()  # what its suites measure, the primary one first
    # Columns of its outcomes of which reports know the meaning: `label` and `prediction`, classes by number, `correct`,
    # and `confidence`, the probability in 0 to 1 that was given to the prediction. Older records may lack the last.
    outcomes: tuple[str, ...] = ()

    def check(self) -> None:
        """Check what can be known without importing the task's code.

        Raises:
            UsageError: no suite, a target of another form, metrics that are no `Metric`s, or a first look at no image
                or at another suite.
        """
        if not self.suites:
            raise UsageError("it has no suite")
        if not isinstance(self.first_look, Mapping):
            raise UsageError("its first look is no mapping of suites to numbers of images")
        for suite, images in self.first_look.items():
            if suite not in self.suites or type(images) is not int or images < 1:
                raise UsageError(f"its first look is at {images!r} images of {suite!r}; give 1 or more of an own suite")
        if not all(isinstance(metric, Metric) for metric in self.metrics):
            raise UsageError("its metrics are not all a `harness.api.plugins.Metric`")
        for target in (self.target, *([self.resampling] if self.resampling else [])):
            _check_target(target)

    def load(self) -> Any:
        """Import and return the function behind `target`.

        Raises:
            UsageError: it cannot be imported.
        """
        return imported(self.target, f"{self.target} of task '{self.name}'")

    def open_suite(self, suite: str, data_root: Path | None, *, trust_configs: bool = False) -> Suite:
        """The suite with its data. `trust_configs`: the user says that models' configs may run code.

        Raises:
            UsageError: the task's code cannot be imported, or raises anything else than a UsageError of its own.
        """
        opened = self.load()
        try:
            more = {"trust_configs": trust_configs} if self.runs_configs else {}
            found: Suite = opened(suite, data_root=data_root, **more)
        except UsageError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"task '{self.name}' cannot open suite '{suite}' ({reason})") from error
        return found


@dataclass(frozen=True)
class ExecutorInfo:
    """Where cells can run. `target` is `module:Class`, a `harness.run.executors.base.Executor`; `accepts` names the
    fields of `harness.run.executors.base.Resources` that it understands, such as `timeout`: it ends a cell that takes
    longer. The command line refuses the others.
    """

    name: str
    summary: str
    target: str
    accepts: tuple[str, ...] = ()

    def check(self) -> None:
        """Check what can be known without importing the executor's code.

        Raises:
            UsageError: a target of another form, or `accepts` has something that users cannot say.
        """
        _check_target(self.target)
        unknown = [name for name in self.accepts if name not in RESOURCES]
        if unknown:
            raise UsageError(
                f"it accepts {unknown[0]!r}; {closest(str(unknown[0]), RESOURCES)}known: {', '.join(RESOURCES)}"
            )

    def load(self) -> Any:
        """Import and return the class behind `target`.

        Raises:
            UsageError: it cannot be imported.
        """
        return imported(self.target, f"{self.target} of executor '{self.name}'")


def _check_target(target: str, called: str = "target") -> None:
    if not re.fullmatch(r"[\w.]+:\w+", str(target)):
        raise UsageError(f"its {called} '{target}' is not of the form module:attribute")
