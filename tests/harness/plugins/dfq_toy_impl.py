"""The methods that the infos of `dfq_toy` point to."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import torch
from dfq_toy_suite import SHAPE, SUITES
from torch import nn

from harness.api.contracts import LayerSummary, QuantSummary


def _summary(bits, sites=1):
    return QuantSummary(sites, sites, (LayerSummary("1.weight", 80, bits),), 5, {"input": (-1.0, float("inf"))})


class Quantized:
    def __init__(self, net, weight, bits, sites=1, factor=1.0):
        self.summary = _summary(bits, sites)
        self._net, self._weight, self._factor = net, weight, factor

    def __call__(self, images):
        return nn.functional.linear(images.flatten(1), self._weight, self._net[1].bias) * self._factor


class Noise:
    def __init__(self, options):
        self._count = options.count

    def precision(self, spec, scheme):
        return ""

    def images(self, model, *, spec, scheme, calib, ctx):
        assert calib is None
        ctx.count(images=self._count)
        ctx.diagnostics("loss", {"curve": torch.arange(3)})
        # The global generator on purpose: a cache hit must not change what comes after it.
        return torch.randn(self._count, *SHAPE)


class Real:
    def __init__(self, options):
        pass

    def images(self, model, *, spec, scheme, calib, ctx):
        return calib.images(3, ctx.generator("images"))


class Round:
    def __init__(self, options):
        pass

    def calibrate(self, model, images, *, spec, scheme, ctx):
        step = images.abs().amax() / 2**spec.weight + torch.rand(()) * 1e-3
        ctx.progress("round", 0.5)
        return Quantized(model.net, (model.net[1].weight / step).round() * step, spec.weight)


class Misbehaves:
    def __init__(self, options):
        self._mode = options.mode

    def skip(self, model, *, spec, scheme):
        return "it makes no sense" if self._mode == "skip" else None

    def quantize(self, model, *, spec, scheme, calib, ctx):
        weight = model.net[1].weight
        if self._mode == "print":
            print("a toy says so\n" * 10_000, flush=True)  # noqa: T201 - what a method may do
        if self._mode.startswith("warn"):
            for _ in range(2):
                warnings.warn("a toy warning", stacklevel=1)
        if self._mode.endswith("raise"):
            raise ValueError("a toy error\nin two lines")
        if self._mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._mode == "touch":
            SUITES[-1].calibration(model)
        if self._mode == "mutate":
            weight.data.add_(1.0)
        if self._mode == "train":
            model.net[1].train()
        if self._mode == "grad":
            weight.requires_grad_(True)
        if self._mode == "hook":
            model.net[1].register_forward_hook(lambda *_: None)
        if self._mode == "hang" and "TOY_HANG" in os.environ:
            marker = Path(os.environ["TOY_HANG"])
            if not marker.exists():  # once, and again if a test removes the marker
                marker.touch()
                time.sleep(600)
        factor = float("nan") if self._mode == "nan" else 1.0
        return Quantized(model.net, weight, spec.weight, 0 if self._mode == "nothing" else 1, factor)
