"""Builds mmdet and mmseg models from mmengine configs: the zoo's own and a user's alike."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.checkpoints import load_weights
from tasks.openmmlab import ops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn


def build_detector(config: Path, checkpoint: Path | None = None) -> nn.Module:
    """The `model` of an mmdet config in eval mode, float32 on the CPU.

    Its weights are those of `checkpoint`. Without one they are as the config initialises them: random numbers of
    torch's global generator, and pretrained parts if it names any, which mmengine downloads.

    Raises:
        FileNotFoundError: there is no such config.
        UsageError: the checkpoint is missing, damaged, or another model's.
    """
    ops.install()
    from mmdet.registry import MODELS

    return _build(MODELS, config, checkpoint)


def build_segmentor(config: Path, checkpoint: Path | None = None) -> nn.Module:
    """The `model` of an mmseg config, on the same terms as `build_detector`."""
    ops.install()
    from mmseg.registry import MODELS

    return _build(MODELS, config, checkpoint)


def _build(registry: Any, config: Path, checkpoint: Path | None) -> nn.Module:
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(registry.scope):
        net = registry.build(Config.fromfile(config).model)
        if checkpoint is None:
            with _quiet():
                net.init_weights()
        else:
            load_weights(net, checkpoint)
    return net.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mmengine from telling how it initialises each parameter."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
