"""A quantizer behind a fixed noise, and the search for the noise.

For a heavy-tailed x and a fixed noise N, E|Q(x + N) - N - x| < E|Q(x) - x| (METHODS, section 9.13): within a step the
values of such a tensor are not spread evenly, so that most of them share one rounding error, which the noise breaks up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.numerics.affine import fake_quantize_
from methods.core.numerics.chunks import at_once
from methods.core.numerics.granularity import PerChannel
from methods.core.numerics.quantizers import Stored, Uniform


@dataclass(frozen=True)
class Noisy:
    """Q(x + N) for inputs (..., channels) and a noise N (channels,) that all tokens share.

    The noise stays in the result, which is on the quantizer's grid; the layer behind takes its effect out.
    """

    quantizer: Uniform
    noise: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Add the noise, then round."""
        return self.quantizer(x + self.noise)

    def stored_as(self, bits: int) -> Stored | None:
        """As the quantizer behind the noise."""
        return self.quantizer.stored_as(bits)

    @property
    def low(self) -> Tensor:
        """Smallest representable value."""
        return self.quantizer.low

    @property
    def high(self) -> Tensor:
        """Largest representable value."""
        return self.quantizer.high


@dataclass(frozen=True)
class Denoise:
    """Adds the denoising bias -Q(W) N to a layer's output."""

    bias: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Output without the noise's effect."""
        return output + self.bias


def denoising_bias(weight: Tensor, noise: Tensor) -> Tensor:
    """-Q(W) N (out,) for the rounded weight (out, in): b - Q(W) N is the layer's new bias."""
    return -(weight @ noise)


def unit_noise(kind: str, channels: int, generator: torch.Generator) -> Tensor:
    """Noise of range 1 (channels,): uniform on [-1, 1], `gaussian` 2 z, or `shifted-gaussian` 2 z - 1."""
    if kind == "uniform":
        return 2 * torch.rand(channels, generator=generator) - 1
    normal = 2 * torch.randn(channels, generator=generator)
    return normal - 1 if kind == "shifted-gaussian" else normal


@dataclass(frozen=True)
class NoisySearch:
    """Chooses clipping and noise of one linear layer by the squared error of its output.

    Attributes:
        x: inputs (rows, in).
        weight: float weight (out, in).
        rounded: the same, quantized.
        bits: width of the input.
    """

    x: Tensor
    weight: Tensor
    rounded: Tensor
    bits: int

    def clip(self, low: Tensor, high: Tensor, count: int) -> Uniform:
        """The best quantizer of [c low, c high], c = 1/count .. 1; of the whole range if `count` is 0."""
        shares = torch.arange(1, max(count, 1) + 1, device=low.device, dtype=low.dtype).flip(0) / max(count, 1)
        candidates = Uniform.asymmetric(low * shares, high * shares, self.bits, PerChannel(0))
        best = self.errors(candidates, torch.zeros_like(self.x[:1])).argmin()
        return Uniform.asymmetric(low * shares[best], high * shares[best], self.bits)

    def best_noise(self, quantizer: Uniform, noises: Tensor) -> Tensor:
        """The best of several noises (candidates, in); of equal ones the first."""
        return noises[self.errors(quantizer, noises).argmin()]

    def errors(self, quantizers: Uniform, noises: Tensor) -> Tensor:
        """Mean squared error of the layer's output, one for each candidate.

        Candidates are the entries of `quantizers` or the rows of `noises` (candidates, in), the other being one.
        """
        count = max(quantizers.scale.numel(), len(noises))
        scale, zero_point = (v.reshape(-1, 1, 1).expand(count, 1, 1) for v in (quantizers.scale, quantizers.zero_point))
        noises = noises.unsqueeze(1).expand(count, 1, -1)
        target = self.x @ self.weight.T
        values = len(self.x) * max(self.weight.shape)
        part = at_once(self.x.device, values)
        found = []
        for s, z, noise in zip(*(v.split(part) for v in (scale, zero_point, noises)), strict=True):
            quantized = fake_quantize_(self.x + noise, s, quantizers.qmin - z, quantizers.qmax - z)
            output = quantized.sub_(noise) @ self.rounded.T
            found.append(output.sub_(target).square_().mean((1, 2)))
        return torch.cat(found)
