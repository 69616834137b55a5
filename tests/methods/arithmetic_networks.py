"""Small networks with one kind of arithmetic each, and a count of the values that their products really receive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_networks import CLASSES, FakeContext
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness.api.contracts import VisionModel
from harness.api.spec import BitSpec
from methods.calibrators.minmax.info import INFO as MINMAX
from methods.core.audit import audit
from methods.core.range_calibrator import RangeCalibrator

SHAPE = (1, 16, 16)
W4A4 = BitSpec(4, 4)
MULTIPLYING = {"linear": 1, "conv2d": 1, "conv_transpose2d": 1, "matmul": 2, "bmm": 2, "mm": 2}


class Between(nn.Module):
    """A linear layer, `between` on its result (n, 16, 16), and another one."""

    def __init__(self, between: Callable[..., Tensor], *, own: bool = False, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.gain = nn.Parameter(torch.rand(16) + 0.5)
        self.register_buffer("place", torch.randn(16, 16))
        self.inner = nn.Linear(16, 16)
        self.last = nn.Linear(width, CLASSES)
        self.between, self.own = between, own
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.squeeze(1))
        return self.last(self.between(self, x) if self.own else self.between(x))


class Maps(nn.Module):
    """Two convolutions with `between` between them, on maps (n, 6, 16, 16)."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 2, 3)
        self.between = between
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def model_of(net: nn.Module) -> VisionModel:
    """`net` as a task hands it over."""
    return VisionModel(
        name="small",
        task="classification",
        net=net.eval().requires_grad_(False),
        input_shape=SHAPE,
        mean=(0.0,),
        std=(1.0,),
        num_classes=CLASSES,
        sample_targets=lambda n, g: torch.randint(CLASSES, (n,), generator=g),
        target_loss=functional.cross_entropy,
        output_distance=functional.mse_loss,
    )


def quantized(net: nn.Module, bits: BitSpec, scheme: str = "full") -> Any:
    """`net` with the ranges of eight noise images."""
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(3))
    calibrator = RangeCalibrator(MINMAX.options())
    return calibrator.calibrate(model_of(net), images, spec=bits, scheme=scheme, ctx=FakeContext())


def audited(net: nn.Module, result: Any, images: Tensor, bits: BitSpec = W4A4, scheme: str = "full") -> list[str]:
    """What the audit finds in `result`, made of `net`."""
    return audit(model_of(net), result, images, scheme=scheme, spec=bits)[1]


class Received(TorchFunctionMode):
    """Counts the distinct values of what layers and matrix products multiply, weights and softmax's results excepted.

    It knows nothing of sites or traces: it sits outside everything and looks at what torch is called with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[str, int]] = []
        self._softmax: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        for x in args[: MULTIPLYING.get(name, 0)]:
            if x.untyped_storage()._cdata not in self._softmax:
                self.counts.append((name, len(torch.unique(x))))
        result = func(*args, **(kwargs or {}))
        if name == "softmax":
            self._softmax[result.untyped_storage()._cdata] = result
        return result
