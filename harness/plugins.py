"""What a plugin says of itself. Imports no torch, so that listing plugins is instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UsageError

PRESETS = ("quick", "default", "paper")
Kind = Literal["method", "source", "calibrator"]
Origin = Literal["baseline", "published code", "reconstruction"]
Trains = Literal["", "quantizers", "weights"]


def import_target(target: str) -> Any:
    """The object behind `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Options(BaseModel):
    """Base of every plugin's options. Field descriptions are shown by `describe`."""

    # NaN and infinities have no canonical JSON, so a cell could not be identified by them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class PluginInfo:
    """One method, image source or calibrator.

    `target` is `module:Class`; the class is called with the resolved options as its only argument.
    A *source* makes calibration images, a *calibrator* turns images into quantizer parameters, a *method* does both
    in its own way. `partner` is what a source or calibrator is joined with when it is named alone.
    `ablations` say what each part of it is worth: label -> options that are switched alone, all else being equal.
    `data` is what the harness hands over: `none` (data-free, enforced) or `images` (training images without labels);
    a calibrator says `none`, since its images come from the source. `mixed`: it chooses layers' bit-widths when the
    precision is a mixed one (`MP4.5`); a method without such a part is skipped there. `trains`: what it
    learns by gradient descent, quantizer parameters (which include the rounding of weights) or weights themselves; not
    to be compared unsaid with methods that only choose quantizer parameters.
    """

    name: str
    kind: Kind
    summary: str
    target: str
    data: Literal["none", "images"] = "none"
    origin: Origin = "baseline"
    options: type[Options] = Options
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ablations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    partner: str | None = None
    mixed: bool = False
    trains: Trains = ""
    paper: str = ""
    code: str = ""  # reference code and its licence, or that there is none
    deviations: tuple[str, ...] = ()

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
            where = ".".join(map(str, (self.name, *first["loc"])))  # a rule on several options has no place
            raise UsageError(f"option {where}: {first['msg']}; options of {self.name}: {known}") from None

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
        """Import and return the class behind `target`."""
        return import_target(self.target)


@dataclass(frozen=True)
class TaskInfo:
    """One task. `target` is `module:function`, called as `function(suite, data_root=Path | None) -> Suite`;
    it raises UsageError when the suite's data cannot be used, saying what is missing.
    """

    name: str
    summary: str
    suites: Mapping[str, str]  # suite name -> one-line description
    target: str
    models: Mapping[str, str] = field(default_factory=dict)  # model name or pattern -> one-line description
    # `module:function` for tasks whose primary metric is no share of images that are `correct`: the function makes a
    # `harness.stats.Metric` of the outcomes of one cell, a frame with a row an image. Reports resample images with it.
    resampling: str = ""

    def load(self) -> Any:
        """Import and return the function behind `target`."""
        return import_target(self.target)
