"""The trained models that come with the project: loading them, and writing them with their cards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from tasks.checkpoints import load_weights
from tasks.embedded.architectures import CLASSES, IMAGE_SIZE, MEAN, STD, build
from tasks.timm_models import Preprocessing

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent / "weights"
INPUT = Preprocessing(input_shape=(1, IMAGE_SIZE, IMAGE_SIZE), mean=MEAN, std=STD)
_NAMES = ("vit", "swin")


def names() -> tuple[str, ...]:
    """Names of the zoo's models."""
    return _NAMES


def build_trained(name: str, folder: Path = FOLDER) -> nn.Module:
    """Zoo model `name` with its trained weights, float32 on the CPU.

    Raises:
        UsageError: the weights are missing or damaged.
    """
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        raise UsageError(f"weights of zoo model '{name}' are missing at {weights}; `nox -s zoo` trains them")
    net = build(name)
    load_weights(net, weights)
    return net


def export(result: dict[str, Any], name: str, folder: Path) -> Path:
    """Write `<name>.safetensors`, its card `<name>.json` and the MODEL_CARD.md of all cards in `folder`.

    Args:
        result: what `tasks.embedded.train.train` returned.
        name: zoo model.
        folder: where the files go; made if it is missing.

    Returns:
        The weights file.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    weights.write_bytes(save({k: v.cpu().contiguous() for k, v in result["state"].items()}))
    net = build_trained(name, folder)
    facts = {k: v for k, v in result.items() if k != "state"}
    card = {
        "name": name,
        "architecture": f"timm {type(net).__name__}, {'x'.join(map(str, INPUT.input_shape))} input, {CLASSES} classes",
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_on": "Fashion-MNIST, 60,000 training images (MIT licence, Zalando Research)",
        "seed": result["recipe"]["seed"],
        "top1_embedded_test": _embedded_accuracy(net),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weights_bytes": weights.stat().st_size,
        **facts,
    }
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder)
    return weights


def _embedded_accuracy(net: nn.Module) -> float:
    """Top-1 on the embedded evaluation images, in percent."""
    import torch

    from tasks.embedded.subset import EmbeddedData
    from tasks.timm_models import vision_model

    data = EmbeddedData()
    model = vision_model("card", net, INPUT, torch.device("cpu"))
    with torch.inference_mode():
        hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in data.evaluation(model, len(data)))
    return 100.0 * hits / len(data)


def write_model_card(folder: Path) -> Path:
    """Write MODEL_CARD.md, one section a card in `folder`, and return its path."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    target = folder / "MODEL_CARD.md"
    target.write_text(_HEAD + "\n".join(_section(card) for card in cards), encoding="utf-8")
    return target


_HEAD = """# Embedded zoo

Small timm transformers trained from scratch on the 60,000 training images of Fashion-MNIST by `nox -s zoo`
(`tasks/embedded/train.py`), kept as fp16 safetensors. They exist to be quantized in a benchmark; they are good for
nothing else. Nothing was selected on test images: the weights are those of the last training step. The test accuracy
in the learning curves was only watched. This file is made from the JSON cards beside it.
"""


def _section(card: dict[str, Any]) -> str:
    recipe = ", ".join(f"{key} {value}" for key, value in card["recipe"].items())
    curve = "\n".join(f"| {p['epoch']} | {p['loss']:.4f} | {p['top1']:.1f} |" for p in card["curve"])
    return f"""
## {card["name"]}

| | |
|---|---|
| architecture | {card["architecture"]} |
| parameters | {card["parameters"]:,} |
| top-1, all 10,000 test images | {card["top1_full_test"]:.2f} % |
| top-1, embedded 2,000 test images | {card["top1_embedded_test"]:.2f} % |
| recipe | {recipe} |
| training time | {card["seconds"] / 60:.0f} minutes on {card["threads"]} thread(s), torch {card["torch"]} |
| weights | {card["weights_bytes"]:,} bytes, sha256 `{card["weights_sha256"]}` |

| epoch | training loss | top-1 on 1,000 test images |
|---:|---:|---:|
{curve}
"""
