"""What reports know of metrics, which tasks say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.api.errors import UsageError
from harness.api.plugins import Metric
from harness.catalog import metrics


def test_tasks_say_how_metrics_are_written_and_which_are_secondary(catalog):
    assert metrics.title("top1") == "top-1 accuracy (%)"
    assert metrics.label("mask_ap") == "mask AP"
    assert metrics.title("mask_ap") == "mask AP (%, mean over IoU 0.50 to 0.95)"
    assert metrics.secondary() == ("mask_ap", "sharpness")
    assert metrics.title("sharpness") == "sharpness"  # of a package that says no more of it


def test_a_metric_that_no_task_knows_keeps_its_name():
    assert (metrics.title("other"), metrics.label("other")) == ("other", "other")


def test_names_alone_are_no_metrics(catalog):
    with pytest.raises(UsageError, match="its metrics are not all a `harness"):
        replace(catalog.tasks.get("toy"), metrics=("top1",)).check()
    assert Metric("a", unit="%").title == "a (%)"
