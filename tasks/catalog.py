"""The tasks that ship with the project: name -> where its TaskInfo is. Imported lazily by the harness's registry."""

from __future__ import annotations

TASKS = {
    "classification": "tasks.classification_info:INFO",
    "detection": "tasks.detection_info:INFO",
    "segmentation": "tasks.segmentation_info:INFO",
}
