"""Figures that explain a comparison: the numbers behind them, and that the files are there."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.identity.cell import Cell
from harness.report import write_report
from harness.report.diagnose import diagnose
from harness.report.figures.gallery import one_precision
from harness.report.figures.ranges import range_figure, range_frame
from harness.report.figures.search import search_figure, search_frame
from harness.report.figures.similarity import Similarity, maps_figure, similarity_figure, similarity_frame
from harness.report.figures.widths import bits_figure, bits_frame, sensitivity_frame
from harness.report.frame import cells_frame
from harness.results.record import Layer, Quantization, Record
from harness.results.store import Store
from tasks.classification.suite import open_suite

from . import synthetic as fake

SITES = [f"blocks.{block}/{op}:out" for block in range(4) for op in ("layer_norm.0", "linear.0", "matmul.0", "add.0")]
LAYERS = [f"blocks.{block}.{name}.weight" for block in range(6) for name in ("attn.qkv", "attn.proj", "fc1", "fc2")]


def quantization(ranges: dict[str, tuple[float, float]], widths: dict[str, int] | None = None) -> Quantization:
    layers = [
        Layer(name=name, size=1000 * (1 + place % 3), bits=bits)
        for place, (name, bits) in enumerate((widths or {}).items())
    ]
    counts = {"weight_sites": len(layers), "activation_sites": len(ranges), "weight_mib": 1.0, "float_values": 9}
    return Quantization(**counts, layers=layers, activation_ranges=ranges)


def ranged(method: str, seed: int = 0, *, width: float = 2.0, shift: float = 0.0, **changes: object) -> Record:
    random = np.random.default_rng([seed, int(10 * width)])
    ranges = {}
    for site in SITES:
        own = width * 2 ** random.normal(0, 0.3)
        ranges[site] = (shift - own / 2, shift + own / 2)
    return fake.record(method, seed, quantization=quantization(ranges), **changes)


def searched(seed: int, bits: str = "W4A4") -> Record:
    random = np.random.default_rng(seed)
    scale = 4.0 if bits == "W4A4" else 1.0
    fitness = scale * (0.2 + 0.8 * np.exp(-np.arange(20) / 6)) * (1 + 0.05 * random.random(20))
    cycles = {"fitness": fitness.tolist(), "diversity": (0.2 * np.exp(-np.arange(20) / 10)).tolist()}
    return fake.record(
        "clamp", seed, bits=bits, diagnostics={"search": {"passes": [], "cycles": cycles, "refreshes": [5, 10]}}
    )


def mixed(seed: int, bits: str) -> Record:
    random = np.random.default_rng(seed)
    losses = {name: np.sort(random.random(7) * 2.0 ** -np.arange(7))[::-1].tolist() for name in LAYERS}
    sensitivity = {"widths": list(range(2, 9)), "layers": losses, "sizes": dict.fromkeys(LAYERS, 12000)}
    widths = {name: int(width) for name, width in zip(LAYERS, random.integers(2, 9, len(LAYERS)), strict=True)}
    made = quantization({}, widths)
    return fake.record("clamp", seed, bits=bits, quantization=made, diagnostics={"sensitivity": sensitivity})


def save(store: Store, record: Record, snapshots: dict[int, np.ndarray] | None = None) -> None:
    fake.save(store, record, fake.outcome(80, record.cell.seed), fake.picture(record.cell.method), snapshots=snapshots)


def snapshots(method: str, last: int) -> dict[int, np.ndarray]:
    final = fake.picture(method)[:4]
    noise = np.random.default_rng(0).integers(0, 256, final.shape)
    return {step: (noise + (final - noise) * (step / last)).astype(np.uint8) for step in (0, last // 4, last)}


@pytest.fixture
def filled(store: Store) -> Store:
    for seed in range(2):
        save(store, ranged("real+minmax", seed))
        save(store, ranged("psaq+minmax", seed, width=1.0), snapshots("psaq", 40))
        save(store, ranged("noise+minmax", seed, width=3.0, shift=0.5))
        save(store, mixed(seed, "MP4.5"))
        for bits in ("W8A8", "W4A4"):
            save(store, searched(seed, bits), snapshots(f"clamp {bits}", 60))
    save(store, mixed(0, "MP6A8"))
    return store


def loaded(store: Store) -> tuple[list[Record], pd.DataFrame]:
    records = store.records()
    return records, cells_frame(records, {})


@pytest.mark.slow
def test_files_appear_and_are_the_same_twice(filled: Store, tmp_path: Path) -> None:
    contents = []
    for out in ("one", "two"):
        write_report(filled, tmp_path / out, console=Console(file=io.StringIO()))
        contents.append({path.name: path.read_bytes() for path in (tmp_path / out / "report").iterdir()})
    assert contents[0] == contents[1]
    new = {f"{name}_vit_a.png" for name in ("search", "bits", "sensitivity", "ranges", "iterations")}
    assert {*new, "ranges.csv"} <= contents[0].keys()
    for name in new:
        Image.open(io.BytesIO(contents[0][name])).verify()
    frame = pd.read_csv(io.BytesIO(contents[0]["ranges.csv"]))
    assert len(frame) == 2 * 2 * len(SITES)
    assert frame["overlap"].is_monotonic_increasing


def test_range_agreement_is_the_plain_formula(store: Store) -> None:
    ranges = {
        "real": {"same": (-1.0, 1.0), "narrow": (0.0, 4.0), "apart": (0.0, 1.0), "open": (0.0, math.inf), "x": (0, 0)},
        "psaq": {"same": (-1.0, 1.0), "narrow": (0.0, 1.0), "apart": (2.0, 4.0), "open": (0.0, 1.0), "x": (0, 1)},
    }
    for method, found in ranges.items():
        save(store, fake.record(method, quantization=quantization(found)))
    frame = range_frame(*loaded(store)).set_index("site")
    assert frame["log2_width"].to_dict() == pytest.approx(
        {"apart": 1.0, "narrow": -2.0, "same": 0.0, "open": math.nan, "x": math.nan}, nan_ok=True
    )
    assert frame["overlap"].to_dict() == pytest.approx(
        {"apart": 0.0, "narrow": 0.25, "same": 1.0, "open": math.nan, "x": math.nan}, nan_ok=True
    )
    assert frame.index.tolist()[:3] == ["apart", "narrow", "same"]  # by disagreement
    assert frame.loc[["same", "narrow", "apart"], "place"].tolist() == [0, 1, 2]  # in execution order


def test_ranges_are_compared_with_the_same_calibrator_seed_and_precision(store: Store) -> None:
    for method in ("real", "real[images=8]+omse", "psaq", "psaq[steps=5]+omse", "psaq+percentile"):
        save(store, ranged(method))
    save(store, ranged("psaq", 1))
    save(store, ranged("psaq", bits="W4A4"))
    frame = range_frame(*loaded(store))
    pairs = frame[["method", "reference", "bits", "seed"]].drop_duplicates().to_numpy().tolist()
    assert sorted(pairs) == [
        ["psaq", "real", "W8A8", 0],
        ["psaq+percentile", "real", "W8A8", 0],
        ["psaq[steps=5]+omse", "real[images=8]+omse", "W8A8", 0],
    ]


def test_ranges_without_real_images_or_sites_draw_nothing(store: Store) -> None:
    save(store, ranged("psaq"))
    assert range_frame(*loaded(store)).empty
    save(store, fake.record("real"))
    frame = range_frame(*loaded(store))
    assert frame.empty
    assert range_figure(frame) is None


def test_search_has_a_row_a_cycle_and_marks_refreshes(filled: Store) -> None:
    frame = search_frame(*loaded(filled))
    assert len(frame) == 4 * 20
    assert sorted(frame.loc[frame["refreshed"], "cycle"].unique()) == [5, 10]
    one = frame[(frame["bits"] == "W4A4") & (frame["seed"] == 1)]
    expected = searched(1).diagnostics["search"]["cycles"]
    assert one["fitness"].tolist() == expected["fitness"]
    assert one["diversity"].tolist() == expected["diversity"]


def test_records_from_before_the_diagnostics_draw_nothing(store: Store) -> None:
    old = {"search": {"passes": [{"fitness_before": 1.0}], "multipliers": {"a": 1.0}}}
    save(store, fake.record("clamp", diagnostics=old))
    records, cells = loaded(store)
    assert search_figure(search_frame(records, cells)) is None
    assert bits_figure(bits_frame(records, cells)) is None
    assert sensitivity_frame(records, cells).empty


def test_bits_are_those_of_mixed_precision_only(filled: Store) -> None:
    frame = bits_frame(*loaded(filled))
    assert set(frame["bits"]) == {"MP4.5", "MP6A8"}
    assert len(frame) == 3 * len(LAYERS)
    column = frame[(frame["bits"] == "MP4.5") & (frame["seed"] == 1)]
    assert column["layer"].tolist() == LAYERS
    assert column["width"].tolist() == [layer.bits for layer in mixed(1, "MP4.5").quantization.layers]
    figure = bits_figure(frame)
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 3 * len(LAYERS)
    mean = np.average(column["width"], weights=column["size"])
    assert any(f"seed 1\nmean {mean:.2f}" in label.get_text() for label in figure.axes[0].get_xticklabels())


@pytest.mark.slow
def test_what_was_measured_on_other_images_has_figures_of_its_own(store: Store) -> None:
    for limit in (100, 400):
        for record in (mixed(0, "MP4.5"), searched(0)):
            cell = Cell(**{**record.cell.model_dump(), "limit": limit})
            changed = record.model_copy(update={"cell": cell, "key": cell.key})
            fake.save(store, changed, fake.outcome(80, 0, limit))
    write_report(store, store.folder, console=Console(file=io.StringIO()), catalog=Catalog.default())
    names = sorted(path.name for path in (store.folder / "report").glob("bits_*.png"))
    assert names == ["bits_vit_a__limit_100_.png", "bits_vit_a__limit_400_.png"]
    assert len(list((store.folder / "report").glob("search_*.png"))) == 2


def test_nothing_is_left_from_earlier(galleries: Store) -> None:
    folder = galleries.folder / "report"
    folder.mkdir()
    for name in ("gallery_swin.png", "published.md"):
        (folder / name).touch()
    write_report(galleries, galleries.folder, console=Console(file=io.StringIO()), catalog=Catalog.default())
    names = {path.name for path in folder.iterdir()}
    assert "gallery_vit.png" in names
    assert not names & {"gallery_swin.png", "published.md"}


def test_sensitivity_is_told_from_the_widest(filled: Store) -> None:
    frame = sensitivity_frame(*loaded(filled))
    assert len(frame) == 3 * 7 * len(LAYERS)
    one = frame[(frame["bits"] == "MP4.5") & (frame["seed"] == 1) & (frame["layer"] == LAYERS[2])]
    expected = mixed(1, "MP4.5").diagnostics["sensitivity"]["layers"][LAYERS[2]]
    assert one["width"].tolist() == list(range(2, 9))
    assert one["fitness"].tolist() == expected
    np.testing.assert_allclose(one["excess"], np.array(expected) - expected[-1])


def test_one_precision_is_the_one_with_most_methods_and_fewest_bits(store: Store) -> None:
    fake.fill(store, models=["vit_a"], bits=["W8A8", "W4A4"])
    cells = cells_frame(store.records(), {})
    shown = one_precision(cells[cells["role"] != "float"])
    assert set(shown["bits"]) == {"W4A4"}
    assert shown["method"].tolist() == ["real+minmax", "clamp", "psaq+minmax", "noise+minmax"]
    fewer = cells[(cells["role"] != "float") & ~((cells["bits"] == "W4A4") & (cells["method"] == "clamp"))]
    assert set(one_precision(fewer)["bits"]) == {"W8A8"}


@pytest.fixture
def galleries(store: Store) -> Store:
    """Real and made-up images of the embedded vit, as `bench` stores them; two methods share theirs."""
    weights = open_suite("embedded").model_identity("vit")
    for method, source in (("real", "real"), ("noise", "noise"), ("psaq", "psaq"), ("psaq+omse", "psaq")):
        record = fake.record(method, model="vit", weights=weights)
        images = fake.picture(source)[:3]
        if source == "noise":
            images = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
        fake.save(store, record, fake.outcome(80, 0), images)
    return store


@pytest.mark.slow
def test_diagnose_finds_a_model_by_its_checkpoint(galleries: Store, tmp_path: Path) -> None:
    suite = open_suite("embedded")
    reference = f"timm:vit_tiny_patch16_224@{tmp_path / 'own.pth'}"
    torch.save(
        suite.load(reference.partition("@")[0] + "@random", torch.device("cpu")).net.state_dict(), tmp_path / "own.pth"
    )
    model, weights = suite.canonical_name(reference), suite.model_identity(reference)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    galleries.save(
        fake.record("noise", model=model, weights=weights), pd.DataFrame({"correct": fake.outcome(80, 0)}), images
    )
    written = diagnose(galleries, Catalog.default(), data_root=None, models=[reference])
    assert any(path.name.startswith("similarity_timm") for path in written)


def test_diagnose_finds_a_model_among_several_tasks(galleries: Store) -> None:
    """A name of one task means nothing to another's suite."""
    segmentor = fake.record("psaq", task="segmentation", model="upernet_vit", primary_metric="miou")
    galleries.save(segmentor, pd.DataFrame({"image": [0]}), fake.picture("psaq"))
    written = diagnose(galleries, Catalog.default(), data_root=None, models=["vit"])
    assert [path.name for path in written] == ["similarity_vit.png", "similarity_maps_vit.png", "similarity.csv"]
    with pytest.raises(UsageError, match="vitt"):
        diagnose(galleries, Catalog.default(), data_root=None, models=["vit", "vitt"])


def test_diagnose_looks_at_the_stored_images(galleries: Store) -> None:
    written = diagnose(galleries, Catalog.default(), data_root=None)
    names = ["similarity_vit.png", "similarity_maps_vit.png", "similarity.csv"]
    assert [path.name for path in written] == names
    frame = pd.read_csv(written[-1])
    assert frame["method"].unique().tolist() == ["real", "psaq, psaq+omse", "noise"]
    assert frame.groupby("method").size().unique().tolist() == [7]  # six blocks and their mean
    assert set(frame["images"]) == {3}
    means = frame[frame["block"] == "mean"].set_index("method")
    # Squares of 4 pixels are more diverse to the model than pixel noise, of which all patches look alike.
    assert means.loc["noise", "entropy"] < means.loc["psaq, psaq+omse", "entropy"]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in diagnose(galleries, Catalog.default(), data_root=None)] == before


def test_diagnose_says_what_is_missing(galleries: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no record has images of model 'swin', only of vit;"):
        diagnose(galleries, Catalog.default(), data_root=None, models=["swin"])
    other = Store(tmp_path / "other")
    other.folder.mkdir()
    other.save(fake.record("psaq", model="vit"), pd.DataFrame({"correct": [True]}), fake.picture("psaq"))
    with pytest.raises(UsageError, match="other weights"):
        diagnose(other, Catalog.default(), data_root=None)


def test_similarity_figures_and_frame() -> None:
    def result(methods: tuple[str, ...], role: str, n: int) -> Similarity:
        random = np.random.default_rng(n)
        images = random.integers(0, 256, (n, 16, 16, 1), dtype=np.uint8)
        densities = random.random((3, 64))
        values = (random.normal(size=3), random.random(3))
        edges = np.linspace(-1, 1, 65)
        return Similarity(
            methods, role, images, ("a", "b", "c"), edges, densities, *values, (2, 2), random.random((n, 4, 4))
        )

    results = [result(("real",), "ceiling", 4), result(("psaq", "psaq+omse"), "method", 1)]
    frame = similarity_frame(results)
    assert frame["method"].unique().tolist() == ["real", "psaq, psaq+omse"]
    means = frame[frame["block"] == "mean"].set_index("method")
    assert means.loc["real", "entropy"] == pytest.approx(results[0].entropies.mean())
    figure = similarity_figure("title", results)
    assert [len(line.get_ydata()) for line in figure.axes[0].lines] == [64, 64]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[1] == f"psaq, psaq+omse (n = 1, entropy {results[1].entropies.mean():.2f} nats)"
    assert len(maps_figure("title", results).axes) == 2 * 4 + 1  # and the colour bar
