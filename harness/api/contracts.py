"""The contracts between harness, methods and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from torch import Tensor, nn

    from harness.api.formats import Format
    from harness.api.plugins import PluginInfo
    from harness.api.spec import BitSpec


# --- tasks to methods -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VisionModel:
    """A float model as a task hands it to a method; enough to quantize it without knowing the task.

    `net` is in eval mode, float32, on the run's device, no parameter requires a gradient and attention is not fused,
    so that both matrix products of attention are visible operations. Images are (n, *input_shape), normalised by
    `mean` and `std` per channel.

    A network may answer for more than the image: a detector's RoI heads look at boxes that go with its number in the
    set. Whoever runs only some of the images, or runs them in another order or several times, therefore runs a
    `harness.api.images.ImageSet`, which tells such a network the numbers.

    `parts` names modules of `net` that may be quantized alone, such as a detector's backbone. Where the user asks for
    one, the harness hands on the model `restricted` to it: `part` is that module's name, and the rest stays in float.
    Sites are sought in the trace of a model, which keeps to `part`, so that no method needs to look at it.
    """

    name: str
    task: str
    net: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    # Pseudo-targets for image synthesis: random targets for n images, and the loss of the net's output against them.
    sample_targets: Callable[[int, torch.Generator], Any]
    target_loss: Callable[[Any, Any], Tensor]
    # Distance of the quantized model's output (first) from the float model's (second), a scalar; KL for classifiers.
    output_distance: Callable[[Any, Any], Tensor]
    parts: Mapping[str, str] = field(default_factory=dict)  # what users call it -> module of `net`
    part: str | None = None  # module of `net` that is to be quantized; None for all of it
    facts: Any = None  # what the suite itself has to know of the model when it evaluates it, whatever that is
    # How images are made ready for it, and what is known of that: plain values, for the record.
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.net.parameters()).device

    def restricted(self, part: str | None) -> VisionModel:
        """The same model, with only that one of its `parts` to be quantized, or all of it (None)."""
        return replace(self, part=None if part is None else self.parts[part])

    def pixel_bounds(self) -> tuple[Tensor, Tensor]:
        """Normalised values of black and white, each (1, channels, 1, 1)."""
        import torch

        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (0.0 - mean) / std, (1.0 - mean) / std


class CalibrationData(Protocol):
    """Training images that a calibration-based method may use. No labels."""

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` distinct normalised images (count, channels, height, width), drawn with `generator`."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics in points (top-1 of 91.2 % is 91.2) and the outcome of every image, in data order.

    `pictures` show the first few images, uint8 (n, height, width, 3), with what is drawn on them: `truth` and
    `prediction`. Empty where a number says it all.
    """

    metrics: Mapping[str, float]
    outcomes: pd.DataFrame
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


class Suite(Protocol):
    """Models and data of one task under one name, as opened by a task plugin.

    `parts`, which may be left out, names the parts of its models that can be quantized alone: the keys of
    `VisionModel.parts`. So may `calibration_identity() -> str`, the revision of the calibration data where
    `data_identity` does not cover them (else empty). It is asked for only if a method of the run is given images, and
    raises UsageError if there are none. So may `untrained(model) -> VisionModel | None`, which is what `load` gives but
    without its weights, at no cost (nothing is downloaded; perhaps on the meta device): by it a run is planned. None
    for models that come with the suite. And `notices(model) -> Sequence[str]`, sentences that the user should read
    before `model` is run, such as what was taken for granted. And `corrupted(corruption) -> Suite`, which is the same
    suite with corrupted evaluation images; it raises UsageError for a corruption that it does not know.
    """

    name: str
    task: str
    primary_metric: str  # key of `Evaluation.metrics` that tables rank by

    def models(self) -> Sequence[str]:
        """Names of the suite's own models, run when the user names none."""

    def model_identity(self, model: str) -> str:
        """Hash of the model's weights and architecture. Raises UsageError for an unknown model or bad checkpoint."""

    def canonical_name(self, model: str) -> str:
        """The name of `model` that cells, seeds and tables use: the same wherever a file that it names lies."""

    def check_limit(self, limit: int | None) -> None:
        """Raise UsageError, saying how many evaluation images there are, if there are fewer than `limit`."""

    def data_identity(self) -> str:
        """Revision of the evaluation data, preprocessing included; of the calibration data too unless
        `calibration_identity` says more. Raises UsageError for damaged data.
        """

    def load(self, model: str, device: torch.device) -> VisionModel:
        """The float model, ready to use. Raises UsageError for an unknown model or bad checkpoint."""

    def calibration(self, model: VisionModel) -> CalibrationData:
        """Training images for `model`. Raises DataFreeViolation while data is sealed."""

    def evaluate(self, model: VisionModel, forward: Callable[[Tensor], Any], limit: int | None) -> Evaluation:
        """Run `forward` (float or quantized) over the first `limit` evaluation images (all of them if None).

        What `forward` is called with beside images, by keyword, is handed on to the network as it is.
        """


# --- methods to harness -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSummary:
    """One quantized weight: parameter name, number of values, bits of each; its format and the bits of all of its
    scales, if the method tells.
    """

    name: str
    size: int
    bits: int
    format: Format | None = None
    scale_bits: int | None = None


@dataclass(frozen=True)
class QuantSummary:
    """What was quantized. `activation_ranges` maps a site label to the (low, high) that it can represent, and
    `activation_bits` to its width. `bit_operations` (BOPs) of one image are multiply-accumulates, and elementwise
    products of two activations, times both factors' widths, a float factor counting 32 bits; 0 if unknown. They are the
    whole network's: where only a part of it is quantized, such as a detector's backbone, the layers of the rest count
    too, with both factors float 32 x 32 bits.
    """

    weight_sites: int
    activation_sites: int
    layers: tuple[LayerSummary, ...]
    float_values: int  # parameters kept in float32 (biases, LayerNorm ...)
    activation_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    activation_bits: Mapping[str, int] = field(default_factory=dict)
    bit_operations: int = 0
    activation_formats: Mapping[str, Format] = field(default_factory=dict)  # of the sites of which the method tells
    activation_scale_bits: Mapping[str, int] = field(default_factory=dict)  # likewise, of all scales of a site
    # Of sites whose scales are made for every tensor anew: how many values those scales are for.
    activation_scaled_values: Mapping[str, int] = field(default_factory=dict)
    float_products: int | None = None  # elementwise products and quotients of two activations, one factor being float

    @property
    def weight_mib(self) -> float:
        """Size of all parameters in MiB: quantized weights at their bits, the rest at 32 bits."""
        bits = sum(layer.size * layer.bits for layer in self.layers) + 32 * self.float_values
        return bits / 8 / 2**20


@dataclass(frozen=True)
class Grid:
    """How finely the scales of a tensor are cut: one for each index of `axis`, None for one scale in all.

    `group`, for weights only: one for each so many successive values of an index, 16 or more. `outliers`, for groups of
    integers under a power of two: of so many successive values of a group some may have twice the bits, each in place
    of another that is 0.
    """

    axis: int | None = None
    group: int | None = None
    outliers: int | None = None


class QuantizedModel(Protocol):
    """The result of a method: callable on normalised images, with a summary of what was quantized.

    Calls are alike: what one has computed changes no later one, so that nothing is learned from evaluation images.

    A result is checked in every run: values that operations receive, weights that they use, and the summary, against
    scheme and precision. That takes attributes beside `summary`, without which a number is shown as unverified and is
    never ranked:

    - `net`: the network that a call runs, a copy of the float one whose modules have the same names and run the same
      operations in the same order. How it quantizes, in its modules or by a mode around it, is the method's own
      affair. A result that is a network itself needs none.
    - `grids`: a mapping from a weight's name or a site's label to its `Grid`, for those that differ from one scale for
      each output channel of a weight and one for an activation. It may be left out.
    - `dynamic`: a mapping from a site's label to what of its quantizer depends on the values that are quantized, in
      words, such as a step for every row. Such a site is not checked, and the number is unverified for that reason,
      which its record and reports give. It may be left out.

    Sites are named as `summary.activation_ranges` names them: `MODULE/KIND.NUMBER:in0` for the first operand of the
    operation that is the NUMBER-th of its KIND (linear, conv, matmul, add ...) in a call of the module, `:out` for its
    result.
    """

    @property
    def summary(self) -> QuantSummary:
        """What was quantized, and to how many bits; an attribute will do."""

    def __call__(self, images: Tensor, **more: Any) -> Any:
        """Output of the quantized network, whose `forward` gets what a suite gives beside images (detection: the
        `samples` that detections are for). A result that takes images alone serves the tasks that give no more.
        """


@dataclass(frozen=True)
class DeployedProduct:
    """A layer or matrix product of a deployed model: the operation, its multiply-accumulates for one image, whether
    both factors are codes of eight bits, and if not, why.
    """

    op: str
    macs: int
    integer: bool
    why: str = ""


@dataclass(frozen=True)
class Deployment:
    """A quantized model as it can be written as a file whose products are of integers.

    `module` takes normalised images (n, *input_shape), any n, and computes with the operators of
    `harness.api.integers`; `torch.export` takes it. `products` are in the order in which they run.
    """

    module: nn.Module
    products: tuple[DeployedProduct, ...]
    codes: Mapping[str, int]  # buffers of `module` that hold weights' codes -> bits that they need, 4 or 8
    unpacked: frozenset[str] = frozenset()  # those of them whose products are in float


@runtime_checkable
class Deployable(Protocol):
    """What a quantized model may have beside its contract: a way to be exported. One without it is refused.

    `deployment` is `module:function`, called as `function(quantized, model) -> Deployment` with this and the float
    model. It is a name, since what is written to a file changes no number of a cell. It raises UsageError, with what
    follows "METHOD cannot be exported: ", for a model that has no integer form.
    """

    deployment: str


class RunContext(Protocol):
    """What the harness offers a running method."""

    @property
    def scope(self) -> Mapping[str, Any]:
        """Coordinates that identify the model and repetition: suite, model, weights, seed."""

    def generator(self, *names: str) -> torch.Generator:
        """A CPU generator seeded from (suite, model, repetition, *names), and nothing else: not from the method, so
        that all methods see the same random images and pseudo-labels in one repetition.
        """

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage (`synthesize`, `calibrate`, `search`); repeated stages of one name add up."""

    def count(self, **amounts: int) -> None:
        """Add to the record's counters, e.g. `count(synthesis_steps=500, images=32)`."""

    def cached_images(
        self,
        identity: Mapping[str, Any],
        make: Callable[[], Tensor],
        by: PluginInfo | None = None,
        *,
        held_out: bool = False,
    ) -> Tensor:
        """Images for `identity` + `scope` from the cache, else from `make()`, then cached. Times it as stage
        `synthesize`; on a hit the seconds that the synthesis took originally are reported, marked as cached.

        `held_out` images calibrate nothing: they are cached apart, their stage is `held-out`, and the record's word of
        where its images are from is not about them.

        They are reused only while the code of the plugin `by`, or else of the whole method, and what it runs on stay
        as they were. A source's images have their identity from `images_of`.
        """

    def keep_images(self, images: Tensor) -> None:
        """Keep the final calibration images (normalised) with the record, for galleries."""

    def snapshot(self, step: int, images: Tensor) -> None:
        """Keep the first images (normalised) as they are after `step` optimisation steps, to show how they develop;
        `cached_images` gives them back on a hit. The first snapshot of a step counts.
        """

    def diagnostics(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep a small JSON-able diagnostic (loss curves, fitness) with the record."""

    def progress(self, text: str, fraction: float) -> None:
        """Tell how far the method is (0 to 1); shown to the user, never stored."""


@runtime_checkable
class Skips(Protocol):
    """What a method, source or calibrator may have beside its contract: combinations that it is not for."""

    def skip(self, model: VisionModel, *, spec: BitSpec, scheme: str) -> str | None:
        """One sentence that says why this combination makes no sense, or None."""


class Method(Protocol):
    """A quantization method; may also be one that `Skips`."""

    def quantize(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> QuantizedModel:
        """Quantize `model` without changing it. `calib` is None for a data-free method."""


class ImageSource(Protocol):
    """Makes calibration images; may also be one that `Skips` and one that `StatesPrecision`."""

    def images(
        self, model: VisionModel, *, spec: BitSpec, scheme: str, calib: CalibrationData | None, ctx: RunContext
    ) -> Tensor:
        """Normalised images (n, channels, height, width) on the model's device."""


@runtime_checkable
class StatesPrecision(Protocol):
    """A source that says what its images depend on. Those of one that does not are made for each precision and scheme
    anew.
    """

    def precision(self, spec: BitSpec, scheme: str) -> str:
        """What of bits and scheme the images depend on, as a text that is equal where they are; empty if on neither."""


class Transform(Protocol):
    """Makes a float network of the same outputs that is easier to quantize; may also be one that `Skips`.

    It stands between a source and any calibrator. Its network has the modules, operations and parameters of the one
    that it was made from, by name and form, so that sites are the same; only values differ. Every run compares the
    outputs of both (`harness.api.transformed`), and holds the result against the network that was loaded.
    """

    def transform(self, model: VisionModel, images: Tensor, *, ctx: RunContext) -> nn.Module:
        """A copy of `model.net`, which stays as it is; `images` (n, c, h, w) are those of the calibration."""


class Calibrator(Protocol):
    """Turns images into a quantized model; may also be one that `Skips`."""

    def calibrate(
        self, model: VisionModel, images: Tensor, *, spec: BitSpec, scheme: str, ctx: RunContext
    ) -> QuantizedModel:
        """Find quantizer parameters for every site of `scheme` on `images`."""
