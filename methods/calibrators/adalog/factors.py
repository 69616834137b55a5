"""The two factors of a layer's product: how each is quantized with many candidates at once, and its search axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.calibrators.adalog.quantizer import BASES, RESOLUTION, AdaLog, levels
from methods.calibrators.adalog.search import Axis, Pair
from methods.core.numerics.affine import SMALLEST, fake_quantize, to_codes_
from methods.core.numerics.granularity import PER_TENSOR, Granularity, PerTensor
from methods.core.numerics.logarithmic import UnclippedZero
from methods.core.numerics.percentile import ends, percentile_quantizer, squared_errors
from methods.core.numerics.quantizers import Uniform

SCALES, ZEROS, COARSE_BASES = 8, 16, 16
_SPAN = (0.9, 1.0)  # percentiles that the coarse scales cover
_INITIAL = (0.999, 0.9999, 0.99999)
_STARTING = 2**14  # about how many values the first base and scale are chosen on


def _scales(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper ends (8, g) of the coarse ranges of (g, n)."""
    return ends(rows, torch.linspace(*_SPAN, SCALES, dtype=torch.float64).tolist())


@dataclass
class UniformFactor:
    """A factor with an asymmetric uniform quantizer for each block of its granularity; parameters are (g,)."""

    bits: int
    granularity: Granularity
    parameters: Pair  # scale, zero point
    axes: tuple[Axis, Axis]
    keep: int  # pairs that are refined; 0: there is nothing to refine
    ring = True

    @classmethod
    def of(cls, x: Tensor, bits: int, granularity: Granularity, keep: int) -> UniformFactor:
        """Start from the percentile of least squared error on `x`; ranges contain 0."""
        start = percentile_quantizer(x, bits, _INITIAL, granularity=granularity, widen=True)
        low, high = _scales(granularity.rows(x))
        top = 2**bits - 1
        scales = ((high - low) / top).clamp(min=SMALLEST)
        zeros = torch.arange(min(ZEROS, top + 1), device=x.device, dtype=x.dtype)[:, None] * max(1, 2**bits / ZEROS)
        spacing = (scales[-1] - scales[0]).abs() / (SCALES - 1)
        axes = (
            Axis(scales, spacing / 2, 1e-8, float("inf")),
            Axis(zeros, zeros.new_tensor([max(1.0, 2**bits / ZEROS / 2)]), 0, top, integer=True),
        )
        return cls(bits, granularity, (start.scale.reshape(-1), start.zero_point.reshape(-1).to(x.dtype)), axes, keep)

    def rounded(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """`x` by k candidates (k, g): (k, *x.shape)."""
        scale, zero = (self.granularity.aligned(each, x.shape) for each in (scale, zero))
        return fake_quantize(x, scale, -zero, 2**self.bits - 1 - zero)

    def quantizer(self) -> Uniform:
        """With the present parameters."""
        scale, zero = (self.granularity.stored(each) for each in self.parameters)
        kind = Uniform if isinstance(self.granularity, PerTensor) else UnclippedZero
        return kind(scale, zero.round().to(torch.int32), 0, 2**self.bits - 1, self.granularity)


@dataclass
class LogFactor:
    """A factor with a per-tensor AdaLog quantizer; parameters are (1,)."""

    bits: int
    codes: int
    shift: float
    parameters: Pair  # base, scale
    axes: tuple[Axis, Axis]
    keep: int
    ring = False

    @classmethod
    def softmax(cls, x: Tensor, bits: int, codes: int) -> LogFactor:
        """Scale 1, and all bases tried: there is nothing to refine."""
        bases = torch.arange(BASES[0], BASES[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        one = x.new_ones(1)
        axes = Axis(bases, one, *BASES, integer=True), Axis(one[None], one * 0, 1, 1)
        return cls(bits, codes, 0.0, (one * BASES[0], one), axes, 0)._start(x)

    @classmethod
    def activation(cls, x: Tensor, bits: int, codes: int, shift: float, keep: int) -> LogFactor:
        """Base and scale, of `x` + `shift` >= 0."""
        bases = torch.linspace(*BASES, COARSE_BASES, device=x.device, dtype=x.dtype).round()[:, None]
        # The range must reach 0, that is the shift.
        scales = (_scales(x.reshape(1, -1))[1] + shift).clamp(min=max(shift, 1e-8))
        spacing = (scales[-1] - scales[0]) / (SCALES - 1)
        distance = bases.new_tensor([(BASES[1] - BASES[0]) / (COARSE_BASES - 1) / 2])
        axes = Axis(bases, distance, *BASES, integer=True), Axis(scales, spacing / 2, max(shift, 1e-8), float("inf"))
        return cls(bits, codes, shift, (bases[0], scales[-1]), axes, keep)._start(x)

    def _start(self, x: Tensor) -> LogFactor:
        """Take the coarse pair of least squared error on `x` for a start."""
        base, scale = (axis.candidates for axis in self.axes)
        base, scale = base.repeat_interleave(len(scale), 0), scale.repeat(len(base), 1)
        rows = x.reshape(1, -1)
        if rows.shape[1] > _STARTING:
            # Drawn, since evenly spaced values might all be of one channel.
            drawn = torch.randint(rows.shape[1], (_STARTING,), generator=torch.Generator().manual_seed(0))
            rows = rows[:, drawn.to(x.device)]
        best = squared_errors(rows, len(base), lambda part: self.rounded(part, base, scale))[:, 0].argmin()
        self.parameters = base[best], scale[best]
        return self

    def rounded(self, x: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        """`x` by k candidates (k, 1): (k, *x.shape)."""
        # One logarithm for all candidates.
        exponent = (x + self.shift).clamp_(min=0).log2_() - PER_TENSOR.aligned(scale.log2(), x.shape)
        code = to_codes_(exponent.mul_(-RESOLUTION / PER_TENSOR.aligned(base, x.shape)), 0, self.codes).long()
        values = levels(base[:, 0], self.bits, self.codes) * scale - self.shift  # (k, codes + 1)
        return values.gather(1, code.flatten(1)).view_as(code)

    def quantizer(self) -> AdaLog:
        """With the present parameters."""
        base, scale = self.parameters
        return AdaLog(scale[0], base[0].round().int(), self.bits, self.codes, self.shift)


Factor = UniformFactor | LogFactor
