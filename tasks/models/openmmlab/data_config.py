"""What a config says of the data that its model is evaluated on. Importing this imports nothing of OpenMMLab."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError, first_line
from tasks.models.openmmlab.models import Library

if TYPE_CHECKING:
    from mmengine.config import Config

NOT_COUNTED = 255  # label of pixels that mmseg leaves out, unless a config says otherwise
_LOADER = "test_dataloader"


def class_names(config: Config, library: Library) -> tuple[str, ...] | None:
    """Names of the classes that the config's data set has, if it has one that names them.

    Raises:
        UsageError: they are not a list of different texts.
    """
    data = _dataset(config)
    named = _mapping(config, data.get("metainfo") or {}, "metainfo").get("classes")
    if named is None:
        named = _metainfo(config, library).get("classes")
    return None if named is None else _names(config, named)


def label_names(config: Config) -> tuple[str, ...] | None:
    """Classes of the label maps, in the order of their labels, where the config names others than its data set has.

    mmseg then takes labels by name, and pixels of classes that the config leaves out do not count.

    Raises:
        UsageError: the config names a class that its data set does not have.
    """
    named, annotated = class_names(config, "mmseg"), _metainfo(config, "mmseg").get("classes")
    if named is None or annotated is None or named == tuple(annotated):
        return None
    unknown = [name for name in named if name not in annotated]
    if unknown:
        raise UsageError(
            f"config {config.filename} names the class '{unknown[0]}', which its data set {_dataset(config)['type']} "
            f"does not have ({len(unknown)} such of {len(named)}); it has {', '.join(annotated[:5])}, ..."
        )
    return _names(config, annotated)


def image_pipeline(config: Config) -> list[dict[str, Any]]:
    """What the config does to an evaluation image, without reading annotations; empty if it has no data set."""
    return [step for step in _steps(config) if not _reads_annotations(step)]


def respects_orientation(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    """Whether images are turned as their EXIF data say when they are loaded; see `mmcv.imfrombytes`."""
    loading = next((step for step in pipeline if str(step.get("type")).endswith("ImageFromFile")), {})
    backend, flag = loading.get("imdecode_backend", "cv2"), loading.get("color_type", "color")
    return backend in {"cv2", "pillow", None} and flag in {"color", "grayscale"}


def reduces_zero_label(config: Config) -> bool:
    """Whether label 0 of the annotations is not a class: mmseg's `reduce_zero_label`, on the pipeline or the data set.

    Raises:
        UsageError: the two contradict each other.
    """
    data = _dataset(config)
    known = _class(config, "mmseg")
    usual = inspect.signature(known).parameters.get("reduce_zero_label") if known is not None else None
    of_data = data.get("reduce_zero_label", None if usual is None else usual.default)
    said = [of_data, *(step.get("reduce_zero_label") for step in _steps(config) if _reads_annotations(step))]
    different = {bool(value) for value in said if value is not None}
    if len(different) > 1:
        raise UsageError(
            f"config {config.filename} says two things of reduce_zero_label, on its data set and on LoadAnnotations; "
            "set both alike"
        )
    return different == {True}


def check_ignored(config: Config) -> None:
    """Check that pixels without annotation have the label that is left out here.

    Raises:
        UsageError: the config's data set or metric leaves out another one.
    """
    metrics = config.get("test_evaluator") or config.get("val_evaluator") or {}
    for place in (_dataset(config), *(metrics if isinstance(metrics, list | tuple) else [metrics])):
        label = place.get("ignore_index", NOT_COUNTED) if isinstance(place, dict) else NOT_COUNTED
        if label != NOT_COUNTED:
            raise UsageError(
                f"config {config.filename} leaves out pixels of label {label} (ignore_index), but only {NOT_COUNTED} "
                "can be; give label maps such pixels as 255"
            )


def _names(config: Config, named: Any) -> tuple[str, ...]:
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise UsageError(f"config {config.filename}: classes of its data set are not a list of names but {named!r:.60}")
    twice = [name for place, name in enumerate(named) if name in named[:place]]
    if twice:
        raise UsageError(f"config {config.filename} names the class '{twice[0]}' twice")
    return tuple(named)


def _steps(config: Config) -> list[dict[str, Any]]:
    steps = _dataset(config).get("pipeline", [])
    if not isinstance(steps, list | tuple):
        raise UsageError(f"config {config.filename}: {_LOADER}.dataset.pipeline is not a list")
    return [dict(_mapping(config, step, "pipeline")) for step in steps]


def _reads_annotations(step: Mapping[str, Any]) -> bool:
    return str(step.get("type")).rpartition(".")[2] == "LoadAnnotations"


def _dataset(config: Config) -> Mapping[str, Any]:
    loader = _mapping(config, config.get(_LOADER) or config.get("val_dataloader") or {}, _LOADER)
    data = _mapping(config, loader.get("dataset") or {}, "dataset")
    while "dataset" in data:  # repeated, concatenated or otherwise wrapped
        data = _mapping(config, data["dataset"], "dataset")
    return data


def _mapping(config: Config, value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"config {config.filename}: {name} is not a mapping but {type(value).__name__}")
    return value


def _metainfo(config: Config, library: Library) -> Mapping[str, Any]:
    return getattr(_class(config, library), "METAINFO", {})


def _class(config: Config, library: Library) -> Any:
    """Class of the config's data set; None if it names none."""
    name = _dataset(config).get("type")
    if name is None or not isinstance(name, str):
        return name
    if library == "mmdet":
        from mmdet.registry import DATASETS
    else:
        from mmseg.registry import DATASETS
    try:
        found = DATASETS.get(name)
    except Exception as error:  # the registry looks for modules of that name, which may raise anything
        reason = first_line(error)
    else:
        if found is not None:
            return found
        reason = "there is none of that name"
    raise UsageError(f"config {config.filename} has a data set '{name}' that {library} does not know ({reason})")
