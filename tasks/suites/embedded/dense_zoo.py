"""The trained detector and segmentors that come with the project: loading, training and writing them with their cards.

Importing this module imports nothing of OpenMMLab.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError
from tasks.models.openmmlab.references import Known
from tasks.suites.embedded.train_dense import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from tasks.suites.embedded.dense_tasks import DenseTask
    from tasks.suites.embedded.scenes import Scene

CONFIGS = Path(__file__).parent / "dense_configs"
FOLDER = Path(__file__).parent / "dense_weights"
WATCHED = 100  # evaluation scenes in the learning curve


@dataclass(frozen=True)
class DenseModel:
    """A model of the dense zoo: its task, how it is trained, and its mmengine config, `dense_configs/<config>.py`.

    `starts_from` is another one with whose trained weights it starts, as far as their names agree. One that is not
    `kept` is trained for that alone and stays with the checkpoints of training.
    """

    task: str  # "detection" or "segmentation"
    summary: str
    config: str
    recipe: Recipe
    starts_from: str | None = None
    kept: bool = True


_FIRST = Recipe(iterations=5000, bfloat16=True)
_SECOND = replace(_FIRST, iterations=4000, lr=1.5e-3, muon=True, seed=1)
# What takes time is to tell ten kinds of items apart, so all training starts with it, and on Swin once for two models.
_MODELS = {
    "swin_start": DenseModel("segmentation", "UperNet on Swin (mmseg)", "upernet_swin", _FIRST, kept=False),
    "upernet_swin": DenseModel("segmentation", "UperNet on Swin (mmseg)", "upernet_swin", _SECOND, "swin_start"),
    "upernet_vit": DenseModel(
        "segmentation",
        "UperNet on ViT (mmseg)",
        "upernet_vit",
        Recipe(iterations=6500, lr=2e-3, muon=True, bfloat16=True),
    ),
    "mask_rcnn_swin": DenseModel(
        "detection", "Mask R-CNN on Swin (mmdet)", "mask_rcnn_swin", Recipe(iterations=1200, muon=True), "swin_start"
    ),
}


def names(task: str | None = None) -> tuple[str, ...]:
    """Names of the zoo's models, those of `task` or all."""
    return tuple(name for name, model in _MODELS.items() if model.kept and task in (None, model.task))


def config(name: str) -> Path:
    """The mmengine config of zoo model `name`."""
    return CONFIGS / f"{_MODELS[name].config}.py"


def known(task: str) -> dict[str, Known]:
    """The zoo's models of `task` as a suite names them."""
    return {name: Known(config(name), weights=FOLDER / f"{name}.safetensors") for name in names(task)}


def build_trained(name: str, folder: Path = FOLDER) -> nn.Module:
    """Zoo model `name` with its trained weights: mmdet's or mmseg's module in eval mode, float32 on the CPU.

    Raises:
        UsageError: the weights are missing or damaged, or OpenMMLab is not installed.
    """
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        raise UsageError(f"weights of zoo model '{name}' are missing at {weights}; `nox -s zoo -- {name}` trains them")
    return _task(name).build(config(name), weights)


def train(name: str, data_root: Path, work: Path) -> dict[str, Any]:
    """Train zoo model `name` on scenes of the original items in `data_root`, and before that what it starts from.

    Returns:
        What `train_dense.train` does; where it starts from another model, `start` has what that one returned, but for
        the weights.

    Raises:
        FileNotFoundError: the original data files are not in `data_root`.
        UsageError: OpenMMLab is not installed.
    """
    import torch

    from tasks.suites.embedded import train_dense
    from tasks.suites.embedded.scene_splits import evaluation_scenes, training_scenes

    model, task = _MODELS[name], _task(name)
    start = train(model.starts_from, data_root, work) if model.starts_from is not None else None
    # Another seed than its start's, and all scenes are new.
    scenes = training_scenes(data_root, model.recipe.seed)
    torch.manual_seed(model.recipe.seed)
    net: Any = task.build(config(name))
    if start is not None:
        own = net.state_dict()
        net.load_state_dict(own | {k: v.float() for k, v in start.pop("state").items() if k in own})
    watched = list(evaluation_scenes().take(0, WATCHED))
    result = train_dense.train(name, task=task, net=net, recipe=model.recipe, scenes=scenes, watched=watched, work=work)
    return result if start is None else {**result, "start": start}


def export(result: dict[str, Any], name: str, folder: Path, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Write `<name>.safetensors`, its card `<name>.json` and the MODEL_CARD.md of all cards in `folder`.

    Args:
        result: what `train` returned.
        name: zoo model.
        folder: where the files go; made if it is missing.
        scenes: evaluation scenes, for the card's metrics of the weights as written.

    Returns:
        The card.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    weights.write_bytes(save({k: v.cpu().contiguous() for k, v in result["state"].items()}))
    net = build_trained(name, folder)
    card = {
        "name": name,
        "task": _MODELS[name].task,
        "architecture": f"{_MODELS[name].summary}, 3x128x128 input",
        "config_sha256": hashlib.sha256(config(name).read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_on": "scenes of Fashion-MNIST's 60,000 training images (MIT licence, Zalando Research)",
        "seed": result["recipe"]["seed"],
        "evaluation_scenes": len(scenes),
        "metrics": _task(name).evaluate(net, scenes),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weights_bytes": weights.stat().st_size,
        **{k: v for k, v in result.items() if k != "state"},
    }
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder)
    return card


def _task(name: str) -> DenseTask:
    from tasks.suites.embedded.dense_tasks import Detection, Segmentation

    return Detection() if _MODELS[name].task == "detection" else Segmentation()


def write_model_card(folder: Path) -> Path:
    """Write MODEL_CARD.md, one section a card in `folder`, and return its path."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    target = folder / "MODEL_CARD.md"
    target.write_text(_HEAD + "\n".join(_section(card) for card in cards), encoding="utf-8")
    return target


_HEAD = """# Embedded dense zoo

Small mmdet and mmseg transformers trained by `nox -s zoo` (`train_dense.py`) on scenes composed of the
training images of Fashion-MNIST (`scenes.py`), kept as fp16 safetensors; their configs are in
`dense_configs`. They exist to be quantized in a benchmark; they are good for nothing else. Nothing was
selected on evaluation scenes: the weights are the running average at the last iteration. The metrics in the learning
curves were only watched. This file is made from the JSON cards beside it.
"""


def _start(card: dict[str, Any]) -> str:
    """Table rows of what the card's model started from, the last first."""
    start = card.get("start")
    if start is None:
        return ""
    recipe = ", ".join(f"{key} {value}" for key, value in start["recipe"].items() if value is not None)
    return f"| before that, segmentation | {recipe}; {start['seconds'] / 60:.0f} minutes |\n" + _start(start)


def _section(card: dict[str, Any]) -> str:
    recipe = ", ".join(f"{key} {value}" for key, value in card["recipe"].items() if value is not None)
    metrics = "\n".join(
        f"| {key}, {card['evaluation_scenes']} scenes | {x:.2f} |" for key, x in card["metrics"].items()
    )
    columns = list(card["curve"][0]) if card["curve"] else ["iteration", "loss"]
    curve = "\n".join("| " + " | ".join(f"{point[c]:.4g}" for c in columns) + " |" for point in card["curve"])
    return f"""
## {card["name"]}

| | |
|---|---|
| architecture | {card["architecture"]} |
| parameters | {card["parameters"]:,} |
{metrics}
| recipe | {recipe} |
| training time | {card["seconds"] / 60:.0f} minutes on {card["threads"]} thread(s), torch {card["torch"]} |
{_start(card)}| weights | {card["weights_bytes"]:,} bytes, sha256 `{card["weights_sha256"]}` |

Mean training loss since the row above, and metrics of the averaged weights on {WATCHED} evaluation scenes:

| {" | ".join(columns)} |
|{"---:|" * len(columns)}
{curve}
"""
