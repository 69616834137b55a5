"""Reads an annotation file in COCO's format and checks every entry, so that evaluators meet nothing that they cannot
take: some of their compiled parts read beyond their memory when a mask is malformed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import numpy as np

from harness.api.errors import UsageError
from harness.io.files import reason
from tasks.files.content import open_regular

Entry = Mapping[str, Any]
_PARTS = ("images", "annotations", "categories")
_FLOAT_MAX = float(np.finfo(np.float32).max)
_LARGEST = 2**15  # pixels per side; no image library here goes further
_INSTANCES = "a COCO instances file is needed"


@dataclass(frozen=True)
class Annotations:
    """The content of `path`. Every annotation has `iscrowd` and `area`, whether the file says them or not."""

    path: Path
    images: Sequence[Entry]
    annotations: Sequence[Entry]
    categories: Sequence[Entry]

    @property
    def names(self) -> list[str]:
        """Names of the categories, in the file's order."""
        return [category["name"] for category in self.categories]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the images, in the file's order."""
        return [(image["height"], image["width"]) for image in self.images]

    def check_masks(self) -> None:
        """Check that every annotation has a mask that fits its image.

        Raises:
            UsageError: one has none or a malformed one; the message names it.
        """
        sizes = dict(zip((image["id"] for image in self.images), self.sizes, strict=True))
        for place, entry in enumerate(self.annotations):
            fault = mask_fault(entry.get("segmentation"), sizes[entry["image_id"]])
            if fault:
                _refuse(
                    self.path, _where("annotations", place, entry), f"{fault}, and the model is judged by its masks"
                )


def read(path: Path) -> Annotations:
    """The annotations in `path`.

    Raises:
        UsageError: the file cannot be read, or an entry cannot be used; the message names it.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
    except OSError as error:
        raise UsageError(f"annotations {path} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"annotations {path} cannot be read as JSON: {text}") from None
    for part in _PARTS:
        found = content.get(part) if isinstance(content, dict) else None
        if not isinstance(found, list) or not found:
            lacks = "have no" if not found else "have no list of"
            raise UsageError(f"annotations {path} {lacks} '{part}'; {_INSTANCES}")
        for place, entry in enumerate(found):
            if not isinstance(entry, dict):
                _refuse(path, f"{part}[{place}]", f"is not an object but {_shown(entry)}")
    checked = {part: [_checked(path, part, place, e) for place, e in enumerate(content[part])] for part in _PARTS}
    result = Annotations(path, **checked)
    for part, key in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        _check_unique(path, part, key, checked[part])
    _check_unique(path, "annotations", "id", result.annotations)
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in checked[part]}
        for place, entry in enumerate(result.annotations):
            if entry[key] not in known:
                fault = f"has {key} {entry[key]}, which no entry of '{part}' has"
                _refuse(path, _where("annotations", place, entry), fault)
    return result


def mask_fault(mask: Any, size: tuple[int, int]) -> str:
    """What is wrong with a `segmentation` of an image of `size` (height, width); empty if nothing is.

    A list of polygons, or run lengths, as numbers or in COCO's compressed text.
    """
    if mask is None or mask in ([], {}):
        return "has no 'segmentation'"
    if isinstance(mask, list):
        return next(filter(None, map(_polygon_fault, mask)), "")
    if isinstance(mask, dict) and {"size", "counts"} <= mask.keys():
        return _run_lengths_fault(mask, size)
    return "has a 'segmentation' that is neither polygons nor run lengths (size, counts)"


def _polygon_fault(polygon: Any) -> str:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        length = f" of {len(polygon)} numbers" if isinstance(polygon, list) else ""
        return f"has a polygon{length} in its 'segmentation'; at least three x, y pairs are needed"
    return "" if all(map(_finite, polygon)) else "has a polygon with what is not a finite number in its 'segmentation'"


def _run_lengths_fault(mask: Entry, size: tuple[int, int]) -> str:
    if mask["size"] != list(size):
        return f"has a mask of size {_shown(mask['size'])}, but its image is {list(size)} (height, width)"
    counts = mask["counts"]
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(_is_integer(run) and run >= 0 for run in runs):
        return "has run lengths in its 'segmentation' that cannot be read"
    pixels = size[0] * size[1]
    return "" if sum(runs) == pixels else f"has run lengths of other than its image's {pixels} pixels in all"


def _decompressed(text: str) -> list[int] | None:
    """Run lengths as COCO's text: 5 bits per character, from the fourth on differences to the run before the last."""
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 30:
            return None
        value |= (code & 31) << bits
        bits += 5
        if code & 32:  # more follows
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    return None if bits else runs


def _checked(path: Path, part: str, place: int, entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` with what it may leave out."""
    if part == "annotations":
        box = entry.get("bbox")
        entry.setdefault("iscrowd", 0)
        if isinstance(box, list) and len(box) == 4 and all(map(_finite, box)):
            entry.setdefault("area", box[2] * box[3])
    for key, (fits, wanted) in _RULES[part].items():
        if key not in entry:
            _refuse(path, _where(part, place, entry), f"has no '{key}'")
        if not fits(entry[key]):
            _refuse(path, _where(part, place, entry), f"has {_shown(entry[key])} as '{key}', which must be {wanted}")
    return entry


def _check_unique(path: Path, part: str, key: str, entries: Iterable[Entry]) -> None:
    value, count = Counter(entry[key] for entry in entries).most_common(1)[0]
    if count > 1:
        raise UsageError(f"annotations {path} have {count} entries of '{part}' with {key} {value!r}; leave one")


def _where(part: str, place: int, entry: Entry) -> str:
    number = entry.get("id")
    return f"{part}[{place}]" + (f" (id {number})" if _is_id(number) else "")


def _refuse(path: Path, where: str, fault: str) -> NoReturn:
    raise UsageError(f"annotations {path}: {where} {fault}; correct the file")


def _shown(value: Any) -> str:
    """A value in a sentence, shortened."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very large number"
    return text if len(text) <= 40 else text[:37] + "..."


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_integer(value) and abs(value) < 2**63


def _finite(value: Any) -> bool:
    """Whether `value` is a number that float32 can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < _FLOAT_MAX  # false for NaN


def _is_file_name(value: Any) -> bool:
    """A path that stays below the folder that it is joined to, wherever the program runs."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    paths = (PurePosixPath(value), PureWindowsPath(value))
    return not any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in paths)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_finite, value)) and min(value[2:]) >= 0


_ID: tuple[Callable[[Any], bool], str] = (_is_id, "an integer")
_SIDE: tuple[Callable[[Any], bool], str] = (
    lambda value: _is_integer(value) and 0 < value <= _LARGEST,
    f"an integer from 1 to {_LARGEST}",
)
_RULES: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {
        "id": _ID,
        "file_name": (_is_file_name, "the name of a file below the data root"),
        "height": _SIDE,
        "width": _SIDE,
    },
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _ID,
        "bbox": (_is_box, "[x, y, width, height], finite and no side negative"),
        "area": (lambda value: _finite(value) and value >= 0, "a finite number, not negative"),
        "iscrowd": (lambda value: _is_integer(value) and value in {0, 1}, "0 or 1"),
    },
    "categories": {"id": _ID, "name": (lambda value: isinstance(value, str) and bool(value.strip()), "a text")},
}
