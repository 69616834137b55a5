"""What quantizers tell records of how their values are stored: the format, and the bits of all scales."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import FakeContext, images, tiny_model

from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from methods.calibrators.adalog.quantizer import AdaLog
from methods.calibrators.dopqvit.tangent import TanQ
from methods.calibrators.erq.regression import Coded
from methods.calibrators.isvit.sulq import Sulq
from methods.calibrators.noisyquant.noisy import Noisy
from methods.core.integer.quantizers import FactorSearch, Log2
from methods.core.layer_search.quantizers import TwinGelu, TwinSoftmax
from methods.core.numerics.granularity import PerBlock, PerChannel, PerGroup, PerHead
from methods.core.numerics.logarithmic import FractionalZero, LogSqrt2
from methods.core.numerics.quantizers import Divided, Uniform
from methods.core.quantized import Quantized
from methods.core.reconstruction.rounding import Rounded
from methods.core.reconstruction.tuning import Tuned

ONE, X = torch.tensor(0.1), torch.linspace(0.0, 1.0, 24).view(2, 12)


def uniform(granularity, scales: int) -> Uniform:
    steps = torch.full((scales,), 0.1)
    return Uniform(steps, torch.zeros(scales, dtype=torch.int32), -8, 7, granularity)


def factored():
    search = FactorSearch(X.min(), X.max(), 4, 3, 1)
    search.update(X)
    return search.best()


@pytest.mark.parametrize(
    ("quantizer", "name", "scale_bits"),
    [
        (Uniform.asymmetric(X.min(), X.max(), 4), "int4/tensor/float32", 32),
        (uniform(PerChannel(0), 2), "int4/channel/float32", 64),
        (uniform(PerHead(0, 3), 3), "int4/head/float32", 96),
        (uniform(PerGroup(1, 4), 6), "int4/group4/float32", 192),
        (factored(), "int4/channel/float32", 32 + 12 * 2),
        (Rounded(uniform(PerChannel(0), 2), X > 0.5), "int4/channel/float32", 64),
        (Tuned(X, uniform(PerChannel(0), 2)), "int4/channel/float32", 64),
        (Coded(uniform(PerChannel(0), 2), X), "int4/channel/float32", 64),
        (Noisy(uniform(PerChannel(0), 2), ONE), "int4/channel/float32", 64),
        (FractionalZero(ONE, ONE, 15), "int4/tensor/float32", 32),
        (TwinGelu(4, ONE, ONE), "int4/tensor/float32", 64),
        (TwinSoftmax(4, 0.5), "int4/tensor/e8m0", 8),
        (Log2(15), "log4/tensor/float32", 0),
        (LogSqrt2(ONE, 15), "log4/tensor/float32", 32),
        (AdaLog(ONE, torch.tensor(20), 4, 15), "log4/tensor/float32", 32),
        (Sulq.of(X, 4, (0.01, 0.1), extra=False), "log4/tensor/float32", 32),
        (TanQ(4, 16.0), "int4/tensor/float32", 32),
        (Divided(Uniform.asymmetric(X.min(), X.max(), 4), torch.ones(12)), "int4/channel/float32", 32 * 12),
    ],
)
def test_every_quantizer_tells_its_format(quantizer, name, scale_bits):
    stored = quantizer.stored_as(4)
    assert stored is not None
    assert (str(stored[0]), stored[1]) == (name, scale_bits)


def test_blocks_and_floats_have_no_format():
    assert Tuned(X).stored_as(4) is None
    assert uniform(PerBlock((1, 4)), 6).stored_as(4) is None


def test_a_quantizer_that_tells_nothing_costs_its_own_format_only():
    model = tiny_model("vit")
    built = Catalog.default().resolve("noise+minmax", "quick").build()
    found = built.quantize(model, spec=BitSpec(4, 6), scheme="full", calib=None, ctx=FakeContext(0))
    first, point = found.sites.weights[0].parameter, found.sites.activations[0]

    class Silent:
        low, high = torch.tensor(-1.0), torch.tensor(1.0)

        def __call__(self, x):
            return x

    assert isinstance(found, Quantized)
    found.set_weight(first, lambda weight: weight)
    found.set_activations({**found.activations, point.point: Silent()})
    summary = found.summary
    assert [layer.name for layer in summary.layers if layer.format is None] == [first]
    assert summary.activation_bits.keys() - summary.activation_formats.keys() == {str(point)}
    assert found(images(1)).shape == (1, model.num_classes)
