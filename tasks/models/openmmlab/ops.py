"""Stands in for mmcv's compiled operators (`mmcv._ext`) with torchvision's where no compiled mmcv is installed.

`mmcv-lite` holds the Python half of `mmcv.ops` only, which looks up all of its compiled operators on import. What
two-stage detectors need of them is non-maximum suppression and average RoIAlign; torchvision has both, for CPU and GPU.
Every other operator exists by name and raises when it is called. Knows no model.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import torch
import torchvision

from harness.api.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NAME = "mmcv._ext"
_AVERAGE = 1  # mmcv's pool_mode; 0 is maximum


def install() -> None:
    """Make `mmcv.ops` importable: does nothing if mmcv's own operators, or these, are there already.

    Raises:
        UsageError: no mmcv is installed.
    """
    if NAME in sys.modules:
        return
    try:
        compiled = importlib.util.find_spec(NAME)
    except ImportError as error:
        raise UsageError(
            f"detection and segmentation need OpenMMLab ({error}): install the project's extra "
            "'dense', or mmcv, mmdet and mmsegmentation"
        ) from None
    try:
        import cv2  # noqa: F401 - mmcv does, and would fail with a traceback
    except ImportError as error:
        raise UsageError(
            f"OpenCV, which mmcv needs, cannot be imported ({error}): install opencv-python-headless in place of "
            "opencv-python, or the system library that it misses"
        ) from None
    if compiled is not None:
        return
    stand_in = _StandIn(NAME)
    stand_in.__spec__ = ModuleSpec(NAME, loader=None)
    for operator in (nms, roi_align_forward, roi_align_backward):
        setattr(stand_in, operator.__name__, operator)
    sys.modules[NAME] = stand_in


class _StandIn(ModuleType):
    """Has every name, as mmcv looks for each of its operators; only those that were set can be called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):  # what Python's import system asks for must stay missing
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise NotImplementedError(f"operator '{name}' needs a compiled mmcv; torchvision has none to stand in")

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (k,) of the `boxes` (n, 4; xyxy) that are kept, best score first.

    With `offset` 1 a box covers its last pixel too: (x2 - x1 + 1) wide.
    """
    covered = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    kept: Tensor = torchvision.ops.nms(covered, scores, iou_threshold)
    return kept


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average of `input` (b, c, h, w) in each of `rois` (n, 5; image, xyxy) into `output` (n, c, *aligned).

    Raises:
        NotImplementedError: `pool_mode` is maximum.
    """
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of `roi_align_forward`'s input, given its output's (n, c, *aligned), into `grad_input`.

    Raises:
        NotImplementedError: `pool_mode` is maximum.
    """
    _check_average(pool_mode)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output, rois, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
    )
    grad_input.copy_(gradient)


def _check_average(pool_mode: int) -> None:
    if pool_mode != _AVERAGE:
        raise NotImplementedError("operator 'roi_align_forward' with pool_mode 'max' needs a compiled mmcv")
