"""Train the models that come with the project, write weights and cards: `python -m tasks.training.cli [names]`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError
from harness.io.files import prepare_folder
from tasks.files.downloads import downloads
from tasks.suites.cifar10 import zoo as cifar
from tasks.suites.embedded import dense_zoo, zoo
from tasks.suites.embedded.fashion import default_root, download

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.models.classifier_zoo import ClassifierZoo

log = logging.getLogger(__name__)

CIFAR = {f"cifar10_{name}": name for name in cifar.ZOO.names}
# A task's or a suite's name stands for all of its models.
GROUPS = {
    "classification": (*zoo.ZOO.names, *zoo.ZOO.further),
    "segmentation": dense_zoo.names("segmentation"),
    "detection": dense_zoo.names("detection"),
    "cifar10": tuple(CIFAR),
}
EMBEDDED = tuple(name for group, names in GROUPS.items() if group != "cifar10" for name in names)
MODELS = (*EMBEDDED, *CIFAR)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the named models (the embedded suite's by default), resuming where an earlier run stopped."""
    parser = argparse.ArgumentParser(prog="zoo", description="Train the project's models; a killed run continues.")
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"{', '.join((*MODELS, *GROUPS))} (default: the embedded ones)"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        help="folder of the original data: the four Fashion-MNIST .gz files, or for cifar10 what its suite takes",
    )
    parser.add_argument("--download", action="store_true", help="download the data first, with torchvision")
    parser.add_argument("--work", type=Path, help="folder of resumable checkpoints (default: ~/.cache/dfqbench/zoo)")
    parser.add_argument("--output", type=Path, help="folder of weights and cards (default: the project's own)")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.models) - {*MODELS, *GROUPS})
    if unknown:
        parser.error(f"no zoo model '{unknown[0]}'; there are {', '.join((*MODELS, *GROUPS))}")
    chosen = tuple(dict.fromkeys(m for asked in args.models or EMBEDDED for m in GROUPS.get(asked, (asked,))))
    of_cifar = [name for name in chosen if name in CIFAR]
    if of_cifar and len(of_cifar) < len(chosen):
        parser.error(
            f"{of_cifar[0]} is trained on other data than {(set(chosen) - set(CIFAR)).pop()}; use two commands"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    try:
        args.work = args.work or downloads() / "zoo"
        prepare_folder(args.work, "--work")
        if args.output is not None:
            prepare_folder(args.output, "--output")
        if of_cifar:
            for name in of_cifar:
                _train_cifar(name, args)
            return
        root = download() if args.download else (args.data_root or default_root())
        for name in chosen:
            if name in dense_zoo.names():
                _train_dense(name, root, args.work, args.output or dense_zoo.FOLDER)
            else:
                _train_classifier(name, root, args.work, args.output)
    except (FileNotFoundError, UsageError) as error:
        parser.error(str(error))


def _train_classifier(name: str, root: Path, work: Path, output: Path | None) -> None:
    from tasks.suites.embedded.train import train

    _export_classifier(zoo.ZOO, train(name, root, work), name, output)


def _train_cifar(name: str, args: argparse.Namespace) -> None:
    from tasks.suites.cifar10.dataset import download as download_cifar
    from tasks.suites.cifar10.train import train

    root = download_cifar() if args.download else args.data_root
    _export_classifier(cifar.ZOO, train(CIFAR[name], root, args.work), CIFAR[name], args.output)


def _export_classifier(of: ClassifierZoo, result: dict[str, Any], name: str, output: Path | None) -> None:
    weights = of.export(result, name, output)
    log.info("%s: %.2f %% on the full test set, %s", name, result["top1_full_test"], weights)


def _train_dense(name: str, root: Path, work: Path, output: Path) -> None:
    from tasks.suites.embedded.scene_splits import EVALUATION_COUNT, evaluation_scenes

    result = dense_zoo.train(name, root, work)
    card = dense_zoo.export(result, name, output, list(evaluation_scenes().take(0, EVALUATION_COUNT)))
    metrics = ", ".join(f"{key} {value:.2f}" for key, value in card["metrics"].items())
    log.info("%s: %s on %d scenes, in %s", name, metrics, EVALUATION_COUNT, output)


if __name__ == "__main__":
    main()
