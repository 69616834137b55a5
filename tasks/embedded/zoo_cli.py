"""Train the embedded zoo and write weights and cards: `python -m tasks.embedded.zoo_cli [names]`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError
from tasks.embedded import dense_zoo, zoo
from tasks.embedded.fashion import CACHE_ROOT, default_root, download

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

# A task's name stands for all of its models.
GROUPS = {
    "classification": zoo.names(),
    "segmentation": dense_zoo.names("segmentation"),
    "detection": dense_zoo.names("detection"),
}
MODELS = tuple(name for group in GROUPS.values() for name in group)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the named models (all by default), resuming where an earlier run stopped."""
    parser = argparse.ArgumentParser(prog="zoo", description="Train the embedded zoo; a killed run continues.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join((*MODELS, *GROUPS))} (default: all)")
    parser.add_argument("--data-root", type=Path, help="folder of the four original Fashion-MNIST .gz files")
    parser.add_argument("--download", action="store_true", help="download these files first, with torchvision")
    parser.add_argument("--work", type=Path, default=CACHE_ROOT / "zoo", help="folder of resumable checkpoints")
    parser.add_argument("--output", type=Path, help="folder of weights and cards (default: the project's own)")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.models) - {*MODELS, *GROUPS})
    if unknown:
        parser.error(f"no zoo model '{unknown[0]}'; there are {', '.join((*MODELS, *GROUPS))}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    root = download() if args.download else (args.data_root or default_root())
    args.work.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(model for asked in args.models or MODELS for model in GROUPS.get(asked, (asked,))):
        try:
            if name in dense_zoo.names():
                _train_dense(name, root, args.work, args.output or dense_zoo.FOLDER)
            else:
                _train_classifier(name, root, args.work, args.output or zoo.FOLDER)
        except (FileNotFoundError, UsageError) as error:
            parser.error(str(error))


def _train_classifier(name: str, root: Path, work: Path, output: Path) -> None:
    from tasks.embedded.train import train

    result = train(name, root, work)
    weights = zoo.export(result, name, output)
    log.info("%s: %.2f %% on the full test set, %s", name, result["top1_full_test"], weights)


def _train_dense(name: str, root: Path, work: Path, output: Path) -> None:
    from tasks.embedded.scene_splits import EVALUATION_COUNT, evaluation_scenes

    result = dense_zoo.train(name, root, work)
    card = dense_zoo.export(result, name, output, list(evaluation_scenes().take(0, EVALUATION_COUNT)))
    metrics = ", ".join(f"{key} {value:.2f}" for key, value in card["metrics"].items())
    log.info("%s: %s on %d scenes, in %s", name, metrics, EVALUATION_COUNT, output)


if __name__ == "__main__":
    main()
