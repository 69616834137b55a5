"""Looks at stored calibration images with the float model: how similar are their patches? Measures no accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.api.contracts import Suite, VisionModel
from harness.api.errors import UsageError
from harness.api.spec import split_scheme
from harness.catalog.catalog import Catalog
from harness.catalog.registry import check_known
from harness.io.files import prepare_folder, writing_report
from harness.report import tables
from harness.report.figures.files import save
from harness.report.figures.gallery import one_precision
from harness.report.figures.similarity import Similarity, maps_figure, similarity_figure, similarity_frame
from harness.report.frame import cells_frame
from harness.results.record import Record
from harness.results.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

ARRAYS = ("edges", "densities", "entropies", "neighbours", "maps")  # of a PatchSimilarity
Images = dict[str, "NDArray[np.uint8]"]  # cell key -> kept images


def diagnose(
    store: Store,
    catalog: Catalog,
    *,
    data_root: Path | None,
    models: Sequence[str] = (),
    bits: str = "",
    site_images: int = 0,
    trust_configs: bool = False,
) -> list[Path]:
    """Write similarity.csv, similarity_<model>.png and similarity_maps_<model>.png to the folder's report.

    With `site_images` also sites.csv: what each activation site costs when it alone is quantized, with the ranges of
    the same records.

    Args:
        store: Results with kept images; of each method those of the first seed at one precision are looked at.
        catalog: Knows the tasks that load the models.
        data_root: Folder of the suite's data, if opening the suite needs one.
        models: Models as `bench` was given them, where a name holds the path of a checkpoint; all if empty.
        bits: Precision to look at, as in the tables; if empty, that with the most methods.
        site_images: Real training images on which sites are looked at, one by one; 0 leaves that out.
        trust_configs: Configs of models may run code.

    Returns:
        The files that were written.

    Raises:
        UsageError: no record has images, or a model cannot be loaded, has other weights than were measured or is no
            transformer.
    """
    records = {record.key: record for record in store.records()}
    cells = cells_frame(records.values(), {})
    cells["canonical"] = [records[key].cell.model for key in cells["key"]]  # without what tells labels apart
    cells = cells[(cells["status"] == "ok") & (cells["role"] != "float")]
    if bits:
        check_known("precision with records", bits, sorted(cells["bits"].unique()))
        cells = cells[cells["bits"] == bits]
    images: Images = {key: found for key in cells["key"] if (found := store.images(key)) is not None and len(found)}
    folder = store.folder / "report"
    frames, written, sites = [], [], []
    prepare_folder(folder, "--out")
    suites = _suites(cells[cells["key"].isin(images)], catalog, data_root, trust_configs=trust_configs)
    for name, of_model, model, suite in _models(cells[cells["key"].isin(images)], suites, models):
        shown = one_precision(of_model)
        results = _similarities(shown, images, model)
        first = shown.iloc[0]
        where = f"{name} (images of {first['bits']}, scheme {first['scheme']}, seed {first['seed']})"
        for kind, title, draw in (
            ("similarity", "Patch similarity in the float model", similarity_figure),
            ("similarity_maps", "Similarity to the centre patch, last block", maps_figure),
        ):
            with writing_report(folder):
                written.append(save(draw(f"{title}, {where}", results), folder, kind, name))
        coordinates = first[["suite", "model", "scheme", "bits", "seed"]].to_frame().T
        frames.append(coordinates.merge(similarity_frame(results), how="cross"))
        if site_images:
            sites.append(_sites(shown, records, suite, model, site_images))
    if not frames:
        raise UsageError(f"no record in {store.folder} has images of the models asked for; run bench first")
    written.append(_table(folder / "similarity.csv", frames))
    if sites:
        written.append(_table(folder / "sites.csv", sites))
    return [path for path in written if path]


def _table(path: Path, frames: Sequence[pd.DataFrame]) -> Path:
    with writing_report(path.parent):
        path.write_text(tables.csv(pd.concat(frames)), encoding="utf-8", newline="\n")
    return path


def _sites(
    cells: pd.DataFrame, records: Mapping[str, Record], suite: Suite, model: VisionModel, count: int
) -> pd.DataFrame:
    """One row per record and activation site, the costliest sites of each record first."""
    import torch

    from methods.core.diagnostics import site_effects

    images = suite.calibration(model).images(count, torch.Generator().manual_seed(0)).to(model.device)
    rows = []
    for cell in cells.itertuples():
        found = records[str(cell.key)].quantization
        if found is None or not found.activation_bits:
            continue
        tensors, part = split_scheme(str(cell.scheme))
        effects = site_effects(model.restricted(part), images, tensors, found.activation_bits, found.activation_ranges)
        common = {n: getattr(cell, n) for n in ("suite", "model", "method", "scheme", "bits", "seed")}
        for effect in sorted(effects, key=lambda e: -e.distance):
            low, high = found.activation_ranges.get(effect.site, (np.nan, np.nan))
            rows.append({**common, **asdict(effect), "low": low, "high": high, "images": count})
    return pd.DataFrame(rows)


def _suites(
    cells: pd.DataFrame, catalog: Catalog, data_root: Path | None, *, trust_configs: bool
) -> dict[tuple[str, str], Suite]:
    """The suites of all cells, by task and name."""
    known = sorted(set(cells["task"]))
    if trust_configs and known and not any(catalog.tasks.get(task).runs_configs for task in known):
        raise UsageError(f"--trust-configs: no model of {', '.join(known)} has a config; leave it out")
    return {
        place: catalog.tasks.get(place[0]).open_suite(place[1], data_root, trust_configs=trust_configs)
        for place in sorted(set(zip(cells["task"], cells["suite"], strict=True)))
    }


def _models(
    cells: pd.DataFrame, suites: Mapping[tuple[str, str], Suite], named: Sequence[str]
) -> Iterator[tuple[str, pd.DataFrame, VisionModel, Suite]]:
    """Label, cells, float model and suite of every model with images."""
    import torch

    if cells.empty:
        return
    present = set(zip(cells["task"], cells["suite"], cells["canonical"], strict=True))
    requested = {} if named else {model: model[-1] for model in present}  # task, suite and model -> the user's name
    for name in named:
        found, errors = [], []
        for place, suite in suites.items():
            try:
                found.append((*place, suite.canonical_name(name)))
            except UsageError as error:  # perhaps another task's
                errors.append(error)
        if not found:
            raise errors[0]
        if not present.intersection(found):
            known = ", ".join(sorted(cells["canonical"].unique()))
            raise UsageError(f"no record has images of model '{name}', only of {known}; run bench first")
        requested |= dict.fromkeys(found, name)
    for (task, suite_name, label), of_model in cells.groupby(["task", "suite", "model"], sort=True):
        model = str(task), str(suite_name), str(of_model["canonical"].iloc[0])
        if model in requested:
            name, suite = requested[model], suites[model[:2]]
            if suite.model_identity(name) != of_model["weights"].iloc[0]:
                raise UsageError(f"model '{name}' has other weights now than the records in the results folder")
            yield str(label), of_model, suite.load(name, torch.device("cpu")), suite


def _similarities(cells: pd.DataFrame, images: Mapping[str, Any], model: VisionModel) -> list[Similarity]:
    # Imported here: this module belongs to the harness, which knows methods by their contracts only; patch similarity
    # is a measurement that happens to be built from the methods' tools.
    from methods.core.diagnostics import patch_similarity
    from methods.core.graph.structure import NotATransformerError

    groups: dict[bytes, list[tuple[str, str, str]]] = {}
    for method, role, key in cells[["method", "role", "key"]].itertuples(index=False):
        groups.setdefault(images[key].tobytes(), []).append((method, role, key))
    results = []
    for members in groups.values():
        pixels = images[members[0][2]]
        try:
            found = patch_similarity(model, _normalised(pixels, model))
        except NotATransformerError as error:
            raise UsageError(f"model '{model.name}' cannot be looked at: {error}") from None
        results.append(
            Similarity(
                methods=tuple(method for method, _, _ in members),
                role=members[0][1],
                images=pixels,
                blocks=found.blocks,
                centre=found.centre,
                **{n: getattr(found, n).double().numpy() for n in ARRAYS},
            )
        )
    return results


def _normalised(pixels: NDArray[np.uint8], model: VisionModel) -> Tensor:
    """Stored images as the model takes them; they were rounded to 256 levels."""
    import torch

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.mean, model.std))
    return ((images - mean) / std).to(model.device)
