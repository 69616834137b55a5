"""Builds mmdet and mmseg models from mmengine configs: the zoo's own and a user's alike."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.api.errors import UsageError
from tasks.models.checkpoints import load_weights
from tasks.models.openmmlab import ops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mmengine.config import Config
    from torch import nn

Library = Literal["mmdet", "mmseg"]


def read_config(path: Path) -> Config:
    """The mmengine config in `path`, run in this process: for those of the project and of installed libraries.

    Raises:
        UsageError: there is no such file, or it cannot be read or run.
    """
    ops.install()
    from mmengine.config import Config

    if not path.is_file():
        raise UsageError(f"config {path} does not exist or is not a file; name an mmengine config (.py)")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program: it may raise anything
        raise UsageError(f"config {path} cannot be read ({_reason(error)})") from None


def build(library: Library, config: Config, checkpoint: Path | None = None) -> nn.Module:
    """The `model` of `config` in eval mode, float32 on the CPU.

    Its weights are those of `checkpoint`. Without one they are as the config initialises them: random numbers of
    torch's global generator. What it would download to start from is left out.

    Raises:
        UsageError: OpenMMLab is not installed, the config has no such model, or the checkpoint is missing, damaged, or
            another model's.
    """
    ops.install()
    from mmengine.registry import DefaultScope

    registry = _registry(library)
    if not isinstance(config.get("model"), dict):
        raise UsageError(f"config {config.filename} has no model")
    model = config.model.copy()
    forget_pretraining(model)
    with DefaultScope.overwrite_default_scope(registry.scope):
        try:
            net = registry.build(model)
            if checkpoint is None:
                with _quiet():
                    net.init_weights()
        except Exception as error:  # the registry passes on what constructors raise
            raise UsageError(
                f"config {config.filename} has no model that {library} can build ({_reason(error)})"
            ) from None
        if checkpoint is not None:
            load_weights(net, checkpoint)
    return net.eval()  # type: ignore[no-any-return]


def build_random(library: Library, config: Config, seed: int = 0) -> nn.Module:
    """The same with random weights of `seed`, whatever state torch's global generator is in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(library, config)


def _registry(library: Library) -> Any:
    if library == "mmdet":
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    return MODELS


def forget_pretraining(config: Any) -> None:
    """Take the names of weights to start from out of `config`, which mmengine would download."""
    if isinstance(config, dict):
        config.pop("pretrained", None)
        start = config.get("init_cfg")
        if isinstance(start, dict) and start.get("type") == "Pretrained":
            config.pop("init_cfg")
        elif isinstance(start, list):
            config["init_cfg"] = [s for s in start if not (isinstance(s, dict) and s.get("type") == "Pretrained")]
        for part in config.values():
            forget_pretraining(part)
    elif isinstance(config, list | tuple):
        for part in config:
            forget_pretraining(part)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


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
