"""A folder of trained classifiers that come with the project: loading them, and writing them with their cards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class ClassifierZoo:
    """Models of one suite, trained by `nox -s zoo`, each an fp16 safetensors file with a JSON card beside it.

    `further` ones are run only if they are named.
    """

    folder: Path
    names: tuple[str, ...]
    build: Callable[[str], nn.Module]  # the untrained architecture
    input: Preprocessing
    classes: int
    trained_on: str
    head: str  # of MODEL_CARD.md
    command: str  # trains all of them
    further: tuple[str, ...] = ()
    watched: Mapping[str, tuple[str, Callable[[nn.Module], float]]] = field(default_factory=dict)
    """What a card says beside the full test set's top-1: key -> (words for it, measured how, in percent)."""

    def weights(self, name: str, folder: Path | None = None) -> Path:
        """The file of `name`'s trained weights."""
        return (folder or self.folder) / f"{name}.safetensors"

    def build_trained(self, name: str, folder: Path | None = None) -> nn.Module:
        """Model `name` with its trained weights, float32 on the CPU.

        Raises:
            UsageError: the weights are missing or damaged.
        """
        from tasks.models.checkpoints import load_weights

        weights = self.weights(name, folder)
        if not weights.is_file():
            raise UsageError(f"weights of zoo model '{name}' are missing at {weights}; `{self.command}` trains them")
        net = self.build(name)
        load_weights(net, weights)
        return net

    def export(self, result: dict[str, Any], name: str, folder: Path | None = None) -> Path:
        """Write `<name>.safetensors`, its card `<name>.json` and the MODEL_CARD.md of all cards in `folder`.

        Args:
            result: what training returned: the card's facts, and the weights under `state`.
            name: zoo model.
            folder: where the files go, the zoo's own by default; made if it is missing.

        Returns:
            The weights file.
        """
        from safetensors.torch import save

        folder = folder or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.weights(name, folder)
        weights.write_bytes(save({k: v.cpu().contiguous() for k, v in result["state"].items()}))
        net = self.build_trained(name, folder)
        shape = "x".join(map(str, self.input.input_shape))
        card = {
            "name": name,
            "architecture": f"{_source(net)}{type(net).__name__}, {shape} input, {self.classes} classes",
            "parameters": sum(p.numel() for p in net.parameters()),
            "trained_on": self.trained_on,
            "seed": result["recipe"]["seed"],
            **{key: measure(net) for key, (_, measure) in self.watched.items()},
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "weights_bytes": weights.stat().st_size,
            **{k: v for k, v in result.items() if k != "state"},
        }
        (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        self.write_model_card(folder)
        return weights

    def write_model_card(self, folder: Path) -> Path:
        """Write MODEL_CARD.md, one section a card in `folder`, and return its path."""
        cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        target = folder / "MODEL_CARD.md"
        target.write_text(self.head + "\n".join(map(self._section, cards)), encoding="utf-8")
        return target

    def _section(self, card: dict[str, Any]) -> str:
        recipe = ", ".join(f"{key} {value}" for key, value in card["recipe"].items())
        curve = "\n".join(f"| {p['epoch']} | {p['loss']:.4f} | {_percent(p['top1'])} |" for p in card["curve"])
        watched = "".join(f"| top-1, {words} | {card[key]:.2f} % |\n" for key, (words, _) in self.watched.items())
        return f"""
## {card["name"]}

| | |
|---|---|
| architecture | {card["architecture"]} |
| parameters | {card["parameters"]:,} |
| top-1, all 10,000 test images | {card["top1_full_test"]:.2f} % |
{watched}| recipe | {recipe} |
| training time | {card["seconds"] / 60:.0f} minutes on {card["threads"]} thread(s), torch {card["torch"]} |
| weights | {card["weights_bytes"]:,} bytes, sha256 `{card["weights_sha256"]}` |

| epoch | training loss | top-1 on 1,000 test images |
|---:|---:|---:|
{curve}
"""


def _source(net: nn.Module) -> str:
    """`timm ` for its classes."""
    return "timm " if type(net).__module__.partition(".")[0] == "timm" else ""


def _percent(value: float | None) -> str:
    """A point of the curve, or nothing where it was not measured."""
    return "" if value is None else f"{value:.1f}"
