"""The tasks that ship with the project: name -> where its TaskInfo is. Imported lazily by the harness's registry."""

from __future__ import annotations

TASKS = {
    "classification": "tasks.classification.info:INFO",
    "detection": "tasks.detection.info:INFO",
    "segmentation": "tasks.segmentation.info:INFO",
}
