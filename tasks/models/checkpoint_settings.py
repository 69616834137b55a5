"""What a checkpoint is used with besides its weights: preprocessing, order of classes, which of two sets of weights.

It is said in brackets after the file, `timm:NAME@FILE[mean=0.5/0.5/0.5,crop_pct=0.9]`, or in timm's own format: a JSON
file beside it (`FILE.json`, the file's name with `.json` as its only suffix, or `config.json`), or metadata of a
safetensors file. Brackets count more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.api.errors import UsageError, first_line
from harness.io.files import reason
from tasks.files.content import open_regular
from tasks.models.checkpoints import Which

CHANNELS = 3
LARGEST = 4096  # pixels per side
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
WEIGHTS = ("ema", "raw")
# What timm's config says beside `pretrained_cfg`, or in one with it.
_AROUND = frozenset(
    ("architecture", "num_classes", "num_features", "global_pool", "model_args", "label_names", "label_descriptions")
)


@dataclass(frozen=True)
class Settings:
    """What is said of a checkpoint: keys of timm's `pretrained_cfg`, and `origin` tells where; names of classes in the
    order of the model's outputs, and `names_from` tells where; and which of two sets of weights. `unused` is what
    `origin` says of a checkpoint for a suite that prepares its images itself.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    class_names: tuple[str, ...] = ()
    names_from: str = ""
    which: Which = ""
    unused: tuple[str, ...] = ()


def split_brackets(text: str) -> tuple[str, dict[str, str]]:
    """File and brackets of `FILE[KEY=VALUE,...]`; a file whose own name ends so comes first.

    Raises:
        UsageError: brackets that are malformed, or with a key that is unknown or comes twice.
    """
    file, bracket, inside = text.removesuffix("]").rpartition("[")
    if not (text.endswith("]") and bracket) or _is_file(Path(text)):
        return text, {}
    said: dict[str, str] = {}
    for item in inside.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and value) or key in said:
            raise UsageError(f"brackets of '{text}' are malformed; write [KEY=VALUE,...] with each key once")
        if key not in _BRACKETS:
            raise UsageError(f"brackets of '{text}' do not know '{key}'; they know {', '.join(_BRACKETS)}")
        said[key] = value
    return file, said


def read_settings(path: Path, brackets: Mapping[str, str], name: str, *, prepared: bool) -> Settings:
    """What is said of the checkpoint at `path`.

    Args:
        path: the checkpoint.
        brackets: as `split_brackets` gives them.
        name: timm's name of the architecture.
        prepared: the suite prepares images and numbers classes itself: then only the choice of weights may be said.

    Raises:
        UsageError: something is said that is unknown, or no possible value; or a file of it cannot be read.
    """
    where = f"checkpoint {path}[...]"
    chosen = {key: _BRACKETS[key](value, where) for key, value in brackets.items()}
    which: Which = chosen.pop("weights", "")
    if prepared:
        if chosen:
            raise UsageError(f"{where}: this suite prepares its images itself; leave out {', '.join(chosen)}")
        try:
            ignored, origin = _beside(path, name)
        except UsageError:  # of a file that is not used anyway
            return Settings(which=which)
        return Settings(origin=origin if ignored else "", which=which, unused=tuple(ignored))
    names, names_from = chosen.pop("classes", ()), Path(brackets.get("classes", "")).name
    found, origin = _beside(path, name)
    names_beside = found.pop("label_names", ())
    return Settings(
        preprocessing=found | chosen,
        origin=" and ".join([*([origin] if found else []), *(["brackets"] if chosen else [])]),
        class_names=names or names_beside,
        names_from=names_from if names else (origin if names_beside else ""),
        which=which,
    )


def _beside(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """Settings from the first file that has some, and its name."""
    for file in dict.fromkeys((Path(f"{path}.json"), path.with_suffix(".json"), path.parent / "config.json")):
        content = _json(file)
        if isinstance(content, dict) and (found := _timm_config(content, name, str(file))):
            return found, file.name
    if path.suffix.lower() == ".safetensors" and (content := _metadata(path)):
        return _timm_config(content, name, f"metadata of {path}"), f"metadata of {path.name}"
    return {}, ""


def _metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says in timm's words; nothing if it cannot be read, which loading it will tell."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
        return {key: json.loads(said[key]) for key in ("pretrained_cfg", "label_names") if key in said}
    except (OSError, SafetensorError):
        return {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"metadata of {path} are not JSON: {first_line(error)}") from None


def _json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {first_line(error)}") from None


def _timm_config(content: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The settings in timm's format, old (all in one) or new (within `pretrained_cfg`); empty if it is another format.

    Raises:
        UsageError: it is for another architecture, or says what is unknown or cannot be done.
    """
    from timm.models import PretrainedCfg

    known = {each.name for each in fields(PretrainedCfg)}
    inner = content.get("pretrained_cfg", content)
    if not isinstance(inner, dict) or not (
        "pretrained_cfg" in content or content.keys() & (_JSON.keys() | {"label_names"})
    ):
        return {}
    unknown = sorted(inner.keys() - known - (_AROUND if inner is content else set()))
    if unknown:
        raise UsageError(f"{where} says '{unknown[0]}', which timm's configs do not know; is it misspelt?")
    architecture = content.get("architecture") or inner.get("architecture") or name
    if str(architecture).partition(".")[0] != name.partition(".")[0]:
        raise UsageError(f"{where} is for '{architecture}', not for '{name}'")
    for key in ("model_args", "label_offset"):
        if content.get(key) or inner.get(key):
            raise UsageError(f"{where} says '{key}', which is not supported; it would make another model")
    said = {key: inner[key] for key in _JSON if inner.get(key) is not None}
    found = {key: _JSON[key](value, where) for key, value in said.items()}
    names = content.get("label_names") or inner.get("label_names")
    return found | ({"label_names": _names(names, where)} if names else {})


# --- values -----------------------------------------------------------------------------------------------------


def _wrong(key: str, value: Any, where: str, wanted: str) -> UsageError:
    return UsageError(f"{where} says {key}={value}; it must be {wanted}")


def _number(value: Any) -> float:
    """A finite number, or NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e9 else math.nan


def _per_channel(key: str) -> Callable[[Any, str], tuple[float, ...]]:
    def check(value: Any, where: str) -> tuple[float, ...]:
        numbers = [_number(v) for v in value] if isinstance(value, list | tuple) else [_number(value)]
        numbers = numbers * CHANNELS if len(numbers) == 1 else numbers
        lowest = 0.0 if key == "mean" else math.ulp(0.0)
        if len(numbers) != CHANNELS or not all(lowest <= n <= 1.0 for n in numbers):
            wanted = f"{CHANNELS} numbers {'from' if key == 'mean' else 'above'} 0 to 1, since pixels are from 0 to 1"
            raise _wrong(key, value, where, wanted)
        return tuple(numbers)

    return check


def _input_size(value: Any, where: str) -> tuple[int, int, int]:
    sizes = list(value) if isinstance(value, list | tuple) else [CHANNELS, value, value]
    whole = [size for size in sizes if type(size) is int and 1 <= size <= LARGEST]
    if len(sizes) != 3 or whole != sizes or sizes[0] != CHANNELS:
        raise _wrong("input_size", value, where, f"{CHANNELS}, height and width in pixels")
    return sizes[0], sizes[1], sizes[2]


def _share(value: Any, where: str) -> float:
    if not 0.0 < _number(value) <= 1.0:
        raise _wrong("crop_pct", value, where, "a number above 0 to 1")
    return _number(value)


def _one_of(key: str, known: tuple[str, ...]) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        if value not in known:
            raise _wrong(key, value, where, f"one of {', '.join(known)}")
        return str(value)

    return check


def _names(value: Any, where: str) -> tuple[str, ...]:
    """Names of all classes in order: a list, or as torchvision's `class_to_idx`."""
    if isinstance(value, dict) and sorted(map(_number, value.values())) == list(range(len(value))):
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{where}: names of classes must be a list of texts, in the order of the model's outputs")
    if len(set(value)) != len(value):
        twice = next(name for name in value if value.count(name) > 1)
        raise UsageError(f"{where} names the class '{twice}' twice")
    return tuple(value)


def _names_file(value: str, where: str) -> tuple[str, ...]:
    path = Path(value).expanduser()
    if path.suffix.lower() == ".json":
        content = _json(path)
        if isinstance(content, dict) and "label_names" in content:
            content = content["label_names"]
        if content is not None:
            return _names(content, str(path))
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{where}: {path} cannot be read: {reason(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: {path} is not UTF-8 text, with one class per line") from None
    return _names([line.strip() for line in lines if line.strip()], str(path))


def _typed(check: Callable[[Any, str], Any]) -> Callable[[str, str], Any]:
    """A check of numbers for a text: `0.5`, `224` or `0.5/0.5/0.5`."""

    def parse(text: str, where: str) -> Any:
        parts = [_parse_number(part) for part in text.split("/")]
        return check(parts if len(parts) > 1 else parts[0], where)

    return parse


def _parse_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


_JSON: Mapping[str, Callable[[Any, str], Any]] = {
    "mean": _per_channel("mean"),
    "std": _per_channel("std"),
    "input_size": _input_size,
    "crop_pct": _share,
    "crop_mode": _one_of("crop_mode", CROP_MODES),
    "interpolation": _one_of("interpolation", INTERPOLATIONS),
}
_BRACKETS: Mapping[str, Callable[[str, str], Any]] = {
    **{key: _typed(_JSON[key]) for key in ("mean", "std", "input_size", "crop_pct")},
    **{key: _JSON[key] for key in ("crop_mode", "interpolation")},
    "classes": _names_file,
    "weights": _one_of("weights", WEIGHTS),
}
