"""The toy task. Imports torch where it is needed only, so that planning is quick."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from harness.api.contracts import Evaluation, VisionModel
from harness.api.errors import UsageError
from harness.api.sealing import check_not_sealed

SHAPE = (1, 4, 4)
IMAGES = 40
SUITES = []  # suites opened in this process, so that a misbehaving method can reach for the data
LOADED = []  # names that models were loaded by


class Suite:
    name = "toy"
    task = "toy"
    primary_metric = "top1"

    def models(self):
        return ["tiny", "tiny2"]

    def model_identity(self, model):
        if self.canonical_name(model) not in self.models():
            raise UsageError(f"unknown model '{model}'; did you mean 'tiny'?")
        return f"weights of {self.canonical_name(model)}"

    def canonical_name(self, model):
        return Path(model).name  # a model may be named with a path before it

    def check_limit(self, limit):
        if limit is not None and limit > IMAGES:
            raise UsageError(f"limit {limit}, but there are {IMAGES} images")

    def data_identity(self):
        return "toy data 1"

    def load(self, model, device):
        if os.environ.get("TOY_NO_LOAD") == model:
            raise RuntimeError("cannot load")
        import torch
        from torch import nn

        LOADED.append(model)
        torch.manual_seed(self.models().index(self.canonical_name(model)))
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval().requires_grad_(False).to(device)
        return VisionModel(model, "toy", net, SHAPE, (0.5,), (0.25,), 5, None, None, None)

    def calibration(self, model):
        import torch

        check_not_sealed("toy calibration images")
        return SimpleNamespace(images=lambda count, generator: torch.rand(count, *SHAPE, generator=generator))

    def evaluate(self, model, forward, limit):
        import pandas as pd
        import torch

        generator = torch.Generator().manual_seed(7)
        images = torch.randn(IMAGES, *SHAPE, generator=generator)[:limit]
        labels = torch.randint(0, 5, (IMAGES,), generator=generator)[:limit]
        output = forward(images)
        predictions = output.argmax(1)
        outcomes = pd.DataFrame({"label": labels, "prediction": predictions, "correct": predictions == labels})
        return Evaluation({"top1": 100.0 * outcomes["correct"].mean(), "score": float(output.mean())}, outcomes)


def open_suite(suite, data_root=None):
    SUITES.append(Suite())
    return SUITES[-1]
