"""Options with which every plugin ends within a second on a tiny network: whether it runs, not how well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields that a plugin does not have are left out.
TINY: Mapping[str, Any] = {
    "images": 4,
    "rounds": 1,
    "steps": 2,
    "population": 3,
    "passes": 2,
    "cycles": 1,
    "refresh_steps": 1,
    "held_out_steps": 1,
    "scale_steps": 1,
    "alternations": 2,
    "image_steps": 1,
    "student_steps": 1,
    "wide_steps": 2,
    "norm_alphas": (0.0, 0.25),
    "alphas": (0.5,),
    "tangents": (0.0, 16.0),
    "evaluations": 2,
}
