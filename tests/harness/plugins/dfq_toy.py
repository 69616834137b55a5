"""A third-party package as the harness sees one: a toy task and methods that behave and misbehave. No torch here."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from harness.api.plugins import ExecutorInfo, Metric, Options, PluginInfo, TaskInfo


class NoiseOptions(Options):
    count: int = Field(default=4, ge=1, description="images to make")


class SwitchOptions(NoiseOptions):
    scale: float = 1.0
    smooth: bool = True
    text: str = "plain"
    value: Any = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.count > 50 and self.smooth:
            raise ValueError("so many images cannot be smooth")
        return self


class ModeOptions(Options):
    mode: str = "raise"


def _bad(mode: str) -> PluginInfo:
    return PluginInfo(
        name=f"toy{mode}",
        kind="method",
        summary=f"misbehaves: {mode}",
        target="dfq_toy_impl:Misbehaves",
        options=ModeOptions,
        presets={preset: {"mode": mode} for preset in ("quick", "default", "paper")},
    )


RAISE, DIE, HANG, TOUCH, NAN, NOTHING, MUTATE, SKIP, TRAIN, GRAD, HOOK, WARN, WARNRAISE = map(
    _bad,
    ["raise", "die", "hang", "touch", "nan", "nothing", "mutate", "skip", "train", "grad", "hook", "warn", "warnraise"],
)
PRINT = _bad("print")
NOISE = PluginInfo(
    name="toynoise",
    kind="source",
    summary="toy noise",
    target="dfq_toy_impl:Noise",
    options=NoiseOptions,
    presets={"quick": {"count": 2}},
    partner="toyround",
    paper="A toy paper",
    deviations=("it is a toy",),
)
SWITCH = PluginInfo(
    name="toyswitch",
    kind="source",
    summary="toy noise with switches",
    target="dfq_toy_impl:Noise",
    options=SwitchOptions,
    presets={"quick": {"count": 2}},
    ablations={"not smooth": {"smooth": False}, "one image": {"count": 1.0}},
    partner="toyround",
)
ODD = PluginInfo(
    name="toyodd",
    kind="source",
    summary="an ablation of an option that is not there",
    target="dfq_toy_impl:Noise",
    options=NoiseOptions,
    ablations={"typo": {"cuont": 1}},
    partner="toyround",
)
REAL = PluginInfo(
    name="toyreal", kind="source", summary="toy data", target="dfq_toy_impl:Real", data="images", partner="toyround"
)
ROUND = PluginInfo(
    name="toyround",
    kind="calibrator",
    summary="rounds weights",
    target="dfq_toy_impl:Round",
    origin="reconstruction",
    partner="toynoise",
)
BACKWARDS = ExecutorInfo(
    name="toybackwards", summary="begins all, ends the last first", target="dfq_toy_executors:Backwards"
)
FORGETS = ExecutorInfo(name="toyforgets", summary="leaves the first cell out", target="dfq_toy_executors:Forgets")
TASK = TaskInfo(
    name="toy",
    summary="random images",
    suites={"toy": "the only one"},
    target="dfq_toy_suite:open_suite",
    metrics=(Metric("top1"), Metric("sharpness", secondary=True)),
    models={"tiny": "a linear layer", "tiny2": "another"},
)
