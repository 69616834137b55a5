"""What the guests do. A method's function gets the float model and a well-made result, and hands back what it likes."""

from __future__ import annotations

import copy
import os
import sys

import torch
from torch import nn

from methods.core.calibrate import activation_quantizers, observe, weight_quantizers
from methods.core.graph.sites import find_sites
from methods.core.graph.trace import trace
from methods.core.numerics.observers import MinMax
from methods.core.quantized import Quantized


class Result:
    """A result that does something else when called, beside or instead of what a good one does."""

    def __init__(self, good, call, net=True):
        self.summary, self._good, self._call = good.summary, good, call
        if net:
            self.net = good.net

    def __call__(self, images):
        return self._call(self, images)


def good(model, made):
    return made


def weightsonly(model, made):
    return Result(made, lambda self, x: self.net(x))


def invented(model, made):
    made.net.load_state_dict(model.net.state_dict())
    return weightsonly(model, made)


def hidden(model, made):
    return Result(made, lambda self, x: model.net(x), net=False)


def threelogits(model, made):
    return Result(made, lambda self, x: made(x)[:, :3])


def onebatch(model, made):
    return Result(made, lambda self, x: made(x)[:1])


def nanlater(model, made):
    """Only for larger batches than a look takes."""
    return Result(made, lambda self, x: made(x) * (torch.nan if len(x) > 4 else 1.0))


def largerbatch(model, made):
    """Float weights for larger batches than a look takes."""
    floats, rounded = copy.deepcopy(model.net.state_dict()), copy.deepcopy(made.net.state_dict())

    def call(self, x):
        self.net.load_state_dict(rounded if len(x) <= 4 else floats)
        output = made(x)
        self.net.load_state_dict(rounded)
        return output

    return Result(made, call)


def largeraside(model, made):
    """A float copy for larger batches than a look takes."""
    floats = copy.deepcopy(model.net)
    return Result(made, lambda self, x: made(x) if len(x) <= 4 else floats(x))


def firstbatch(model, made):
    """FAULTS K2: ranges from the first batch that it sees."""

    def call(self, x):
        if not hasattr(self, "ranges"):
            self.ranges = float(x.min()), float(x.max())
        return made(x.clamp(*self.ranges))

    return Result(made, call)


def running(model, made):
    """Ranges in a closure, moved a little by every batch."""
    high = torch.tensor(1.0)

    def call(self, x):
        high.lerp_(x.max(), 0.1)
        return made(x.clamp(max=float(high)))

    return Result(made, call)


def secondcall(model, made):
    """A float copy from the second call on."""
    calls = []
    floats = copy.deepcopy(model.net)

    def call(self, x):
        calls.append(1)
        return made(x) if len(calls) == 1 else floats(x)

    return Result(made, call)


_GLOBAL = []


def globalcall(model, made):
    """The same, counted where nobody looks."""
    floats = copy.deepcopy(model.net)
    _GLOBAL.clear()

    def call(self, x):
        _GLOBAL.append(1)
        return made(x) if len(_GLOBAL) == 1 else floats(x)

    return Result(made, call)


def peeks(model, made):
    def call(self, x):
        from dfq_toy_suite import SUITES

        SUITES[-1].calibration(model)
        return made(x)

    return Result(made, call)


def swaprows(model, made):
    weight = model.net[1].weight
    weight.data = weight.data[[1, 0, 2, 3, 4]]
    return made


def netforward(model, made):
    model.net.forward = lambda x: torch.zeros(len(x), 5)
    return made


def newmodule(model, made):
    torch.manual_seed(5)
    model.net[1] = nn.Linear(16, 5).requires_grad_(False).eval()
    return made


def attribute(model, made):
    model.net[0].start_dim = 2
    return made


def classforward(model, made):
    nn.Linear.forward = lambda self, x: torch.zeros(len(x), 5)
    return made


def functional(model, made):
    nn.functional.linear = lambda x, *_: torch.zeros(len(x), 5)
    return made


def body(model, made):
    """The code of a function, which keeps its identity."""
    nn.Flatten.forward.__code__ = (lambda self, input: input.flatten(1) * 0).__code__
    return made


def corepatch(model, made):
    """Another method's code."""
    MinMax.range = lambda self, bits: (torch.tensor(0.0), torch.tensor(1e-3))
    return made


def latepatch(model, made):
    def call(self, x):
        nn.Linear.forward = lambda self, x: torch.zeros(len(x), 5)
        return made(x)

    return Result(made, call)


def switches(model, made):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(False)
    os.environ["GUEST"] = "was here"
    os.chdir("/")
    return made


def leftovers(model, made):
    """Reads memory that nothing was written to."""
    made.net[1].weight.copy_(torch.empty_like(made.net[1].weight))
    return made


def exits(model, made):
    sys.exit()


def hardexit(model, made):
    os._exit(0)


def interrupts(model, made):
    raise KeyboardInterrupt


def calledexit(model, made):
    return Result(made, lambda self, x: sys.exit(0) if len(x) > 4 else made(x))


class Guest:
    def __init__(self, options):
        self._act = globals()[options.name]

    def quantize(self, model, *, spec, scheme, calib, ctx):
        sites = find_sites(trace(model), scheme, spec)
        images = torch.randn(8, *model.input_shape, generator=torch.Generator().manual_seed(1))
        activations = activation_quantizers(sites, observe(model, images, sites, MinMax, 8))
        weights = weight_quantizers(model, sites, symmetric=True)
        return self._act(model, Quantized(model.net, sites, weights, activations))


def nanimages(images):
    images[0, 0, 0, 0] = torch.nan
    return images


def infimages(images):
    images[-1, 0, 0, 0] = torch.inf
    return images


def bytesimages(images):
    return (images.sigmoid() * 255).round()


def flatimages(images):
    return images.flatten(1)


def goodimages(images):
    return images


class Source:
    def __init__(self, options):
        self._act = globals()[options.name]

    def images(self, model, *, spec, scheme, calib, ctx):
        return self._act(torch.randn(20, *model.input_shape, generator=ctx.generator("images")))
