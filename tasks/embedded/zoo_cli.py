"""Train the embedded zoo and write weights and cards: `python -m tasks.embedded.zoo_cli [names]`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.embedded.fashion import CACHE_ROOT, default_root, download
from tasks.embedded.zoo import FOLDER, export, names

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Train the named models (all by default), resuming where an earlier run stopped."""
    parser = argparse.ArgumentParser(prog="zoo", description="Train the embedded zoo; a killed run continues.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(names())} (default: all)")
    parser.add_argument("--data-root", type=Path, help="folder of the four original Fashion-MNIST .gz files")
    parser.add_argument("--download", action="store_true", help="download these files first, with torchvision")
    parser.add_argument("--work", type=Path, default=CACHE_ROOT / "zoo", help="folder of resumable checkpoints")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of weights and cards")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.models) - set(names()))
    if unknown:
        parser.error(f"no zoo model '{unknown[0]}'; there are {', '.join(names())}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from tasks.embedded.train import train

    root = download() if args.download else (args.data_root or default_root())
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.models or names():
        try:
            result = train(name, root, args.work)
        except FileNotFoundError as error:
            parser.error(str(error))
        weights = export(result, name, args.output)
        logging.getLogger(__name__).info(
            "%s: %.2f %% on the full test set, %s", name, result["top1_full_test"], weights
        )


if __name__ == "__main__":
    main()
