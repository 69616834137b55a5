"""How images reach a model. Imports no torch, so that a plan need not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """How images reach a model: channels x height x width, normalisation, and timm's resizing and cropping."""

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "none"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @classmethod
    def of(cls, net: nn.Module) -> Preprocessing:
        """Data config that timm knows for `net`."""
        from timm.data import resolve_data_config

        config = resolve_data_config(model=net)  # a later timm's may say more than is known here
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        return cls(input_shape=config["input_size"], **known)
