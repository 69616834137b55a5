"""Cached images: known by what made them, and used only if they are what their name says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.api.compose import images_of
from harness.api.plugins import Options, PluginInfo
from harness.api.spec import BitSpec
from harness.identity.code import Code
from harness.run.context import Context
from harness.run.image_cache import ImageCache
from harness.run.runner import CellRunner, Settings

IDENTITY = {"source": "x"}
CODE = Code("c", (("torch", "2"),))


@pytest.fixture
def context(settings, toy_cell):
    def make(method: str = "toynoise", **given) -> Context:
        fields = {"cache": settings.cache, "code": CODE, "code_of": lambda info: Code("of " + info.name, ())}
        fields |= {"device": torch.device("cpu"), "threads": 1, "report": lambda *_: None}
        return Context(toy_cell(method), **(fields | given))

    return make


def pixels(value: float) -> torch.Tensor:
    return torch.full((3, 1, 4, 4), value)


def made_anew(ctx: Context) -> bool:
    """Whether the context makes images, since the cache has none of value 0."""
    value = float(ctx.cached_images(IDENTITY, lambda: pixels(1.0)).mean())
    return {0.0: False, 1.0: True}[value]


# --- what they are known by -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "anew"),
    [
        ({}, False),
        ({"threads": 2}, True),
        ({"code": Code("d", (("torch", "2"),))}, True),
        ({"code": Code("c", (("torch", "3"),))}, True),
        ({"code": Code("c", (("torch", "2"), ("mmdet", "3")))}, True),
    ],
)
def test_k2_images_of_other_threads_code_or_versions_are_made_anew(context, given, anew):
    """FAULTS K2 "psaq at 1 thread, then at 2 with the same cache"."""
    context().cached_images(IDENTITY, lambda: pixels(0.0))
    assert made_anew(context(**given)) == anew


@pytest.mark.parametrize(
    ("processor", "anew"),
    [
        ({"device": "cpu", "processor": "p", "instructions": "AVX2"}, False),
        ({"device": "cpu", "processor": "p", "instructions": "AVX512"}, True),
        ({"device": "cpu", "processor": "q", "instructions": "AVX2"}, True),
        ({"device": "cuda", "gpu": "NVIDIA H200"}, True),
    ],
)
def test_images_of_another_processor_are_made_anew(context, monkeypatch, processor, anew):
    here = {"device": "cpu", "processor": "p", "instructions": "AVX2"}
    monkeypatch.setattr("harness.run.context.processor_of", lambda device: here)
    context().cached_images(IDENTITY, lambda: pixels(0.0))
    monkeypatch.setattr("harness.run.context.processor_of", lambda device: processor)
    assert made_anew(context()) == anew


@pytest.mark.parametrize(
    ("variable", "anew"), [("MKL_CBWR", True), ("OMP_NUM_THREADS", False), ("KMP_BLOCKTIME", False)]
)
def test_variables_that_choose_the_order_of_rounding_count(context, monkeypatch, variable, anew):
    monkeypatch.delenv(variable, raising=False)
    context().cached_images(IDENTITY, lambda: pixels(0.0))
    monkeypatch.setenv(variable, "1")
    assert made_anew(context()) == anew


def test_images_depend_on_their_source_s_code_and_not_on_the_calibrator_s(context):
    info = PluginInfo(name="x", kind="source", summary="", target="x:X")
    context().cached_images(IDENTITY, lambda: pixels(0.0), by=info)
    other = context(code=Code("of another calibrator", ()))
    assert other.cached_images(IDENTITY, lambda: pixels(1.0), by=info).sum() == 0
    changed = context(code_of=lambda info: Code("of x, changed", ()))
    assert changed.cached_images(IDENTITY, lambda: pixels(1.0), by=info).sum() > 0


def test_k2_a_record_says_what_made_images_from_the_cache(catalog, tmp_path, toy_cell):
    """FAULTS K2 "psaq at 1 thread, then at 2 with the same cache ... a record names it"."""
    (tmp_path / "cache").mkdir()

    def measured(threads: int):
        runner = CellRunner(Settings(catalog, "cpu", threads, tmp_path / "cache"))
        record = runner.measure(toy_cell(), lambda *_: None).record
        assert record.status == "ok"
        return record

    before = torch.get_num_threads()
    try:
        first, again, other = measured(1), measured(1), measured(2)
    finally:
        torch.set_num_threads(before)
    assert first.images_from is other.images_from is None
    assert again.images_from.threads == 1
    assert again.images_from.processor["device"] == "cpu"
    assert again.images_from.versions["torch"]
    assert again.metrics == first.metrics


# --- what they depend on --------------------------------------------------------------------------------------------


class Silent:
    """Its images depend on bits and scheme, and it does not say so."""

    made = 0

    def images(self, model, *, spec, scheme, calib, ctx):
        self.made += 1
        return pixels(spec.weight + (0.5 if scheme == "full" else 0.0))


class Stating(Silent):
    def __init__(self, text: str) -> None:
        self.text = text

    def precision(self, spec, scheme):
        return self.text.format(spec=spec, scheme=scheme)


def means(ctx, source) -> list[float]:
    info = PluginInfo(name="silent", kind="source", summary="", target="x:X")
    asked = [("W8A8", "full"), ("W4A8", "full"), ("W4A4", "full"), ("W4A8", "matmul"), ("W8A8", "full")]
    return [
        float(images_of(info, Options(), source, None, spec=BitSpec.parse(b), scheme=s, ctx=ctx).mean())
        for b, s in asked
    ]


def test_k2_a_source_that_says_nothing_depends_on_bits_and_scheme(context):
    """FAULTS K2 "a source whose images depend on the bits but has no `precision`"; CODE_REVIEW A7."""
    source = Silent()
    assert means(context(), source) == [8.5, 4.5, 4.5, 4.0, 8.5]
    assert source.made == 4


@pytest.mark.parametrize(
    ("text", "made", "found"),
    [
        ("", 1, [8.5, 8.5, 8.5, 8.5, 8.5]),
        ("{spec.weight}", 2, [8.5, 4.5, 4.5, 4.5, 8.5]),
        ("{scheme}", 2, [8.5, 8.5, 8.5, 4.0, 8.5]),
        ("{spec} {scheme}", 4, [8.5, 4.5, 4.5, 4.0, 8.5]),
    ],
)
def test_a_source_says_what_its_images_depend_on(context, text, made, found):
    source = Stating(text)
    assert means(context(), source) == found
    assert source.made == made


def test_every_built_in_source_says_what_its_images_depend_on(catalog):
    shared = {}
    for name, info in catalog.sources.load_all()[0].items():
        if info.target.startswith("methods.") and info.data == "none":
            source = info.load()(info.resolve("quick", {}))
            asked = [("W8A8", "full"), ("W4A8", "full"), ("W4A4", "matmul")]
            shared[name] = len({source.precision(BitSpec.parse(b), s) for b, s in asked})
    assert shared == {
        "noise": 1,
        "psaq": 1,
        "sardfq": 1,
        "fdd": 1,
        "mimiq": 1,
        "maskaq": 3,
        "clamp": 2,
        "ouromamba-gen": 1,
    }


# --- what is read ---------------------------------------------------------------------------------------------------


def written(context, settings) -> Path:
    context().cached_images(IDENTITY, lambda: pixels(0.0))
    (path,) = settings.cache.glob("*.safetensors")
    return path


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def again(path: Path, tensors=None, **metadata) -> None:
    """Write the file again with other tensors or metadata; its own content hash stays, as after an accident."""
    own, meta = parts(path)
    save_file(own if tensors is None else tensors, path, metadata={k: v for k, v in (meta | metadata).items() if v})


def forged(path: Path, tensors=None, **left) -> None:
    """Write a file that agrees with itself and is wrong all the same."""
    from harness.run.image_cache import _content

    own, meta = parts(path)
    tensors = own if tensors is None else tensors
    text = json.dumps(json.loads(meta["left_behind"]) | left)
    save_file(tensors, path, metadata=meta | {"left_behind": text, "content": _content(tensors, text)})


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def another(path: Path) -> None:
    """Another key's file under this name: all of it is right but the key."""
    ImageCache(path.parent).write("another", ImageCache(path.parent).read(path.stem))
    (path.parent / "another.safetensors").replace(path)


def older(path: Path) -> None:
    """As the version before wrote it: no key and no hash."""
    tensors, meta = parts(path)
    save_file(tensors, path, metadata={"left_behind": meta["left_behind"]})


NAN = torch.full((3, 1, 4, 4), float("nan"))
DAMAGES = {
    "another key's file": another,
    "an older format": older,
    "no metadata": lambda path: save_file(parts(path)[0], path),
    "empty": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 7),
    "half a header": lambda path: os.truncate(path, 20),
    "text": lambda path: path.write_text("no images"),
    "a flipped pixel": lambda path: flip(path, -1),
    "a flipped bit of the header": lambda path: flip(path, 30),
    "other pixels": lambda path: again(path, {"images": pixels(5.0)}),
    "wrong shape": lambda path: again(path, {"images": torch.zeros(3, 16)}),
    "wrong type": lambda path: again(path, {"images": torch.zeros(3, 1, 4, 4, dtype=torch.int64)}),
    "no images": lambda path: again(path, {"pictures": pixels(0.0)}),
    "other metadata": lambda path: again(path, left_behind="{}"),
    "metadata of no kind": lambda path: again(path, left_behind="["),
    "agreeing NaN": lambda path: forged(path, {"images": NAN}),
    "agreeing infinity": lambda path: forged(path, {"images": NAN.nan_to_num(float("inf"))}),
    "agreeing shape": lambda path: forged(path, {"images": torch.zeros(3, 16)}),
    "agreeing type": lambda path: forged(path, {"images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}),
    "no agreeing images": lambda path: forged(path, {"snapshot-0": pixels(0.0)}),
    "a snapshot of no step": lambda path: forged(path, {"images": pixels(0.0), "snapshot-x": pixels(0.0)}),
    "seconds as text": lambda path: forged(path, seconds={"synthesize": "long"}),
    "negative seconds": lambda path: forged(path, seconds={"synthesize": -1.0}),
    "counters as text": lambda path: forged(path, counters={"images": "many"}),
    "diagnostics as list": lambda path: forged(path, diagnostics=[1]),
    "an unknown entry": lambda path: forged(path, more=1),
    "null memory": lambda path: forged(path, added_mib=None),
    "deep diagnostics": lambda path: again(path, left_behind='{"diagnostics":' + "[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_k5_a_damaged_cache_file_is_made_anew_and_said_once(context, settings, damage):
    """FAULTS K5 "another key's file under a cached image's name, wrong shape, NaN, flipped bits" and "cached images
    with bad metadata": never used, never a failed cell, the file is named.
    """
    path = written(context, settings)
    DAMAGES[damage](path)
    with pytest.warns(UserWarning, match="made anew") as said:
        assert made_anew(context())
    (warning,) = said
    assert str(path) in str(warning.message)
    assert len(str(warning.message).splitlines()) == 1
    other = context()
    assert other.cached_images(IDENTITY, lambda: pytest.fail("it was mended")).mean() == 1.0


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    fifo(path)
    path.replace(path.with_name("pipe"))
    path.symlink_to("pipe")


def link_to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", [fifo, link_to_fifo, link_to_device, link_to_itself])
def test_k5_what_is_no_regular_file_is_not_opened(context, settings, place):
    """FAULTS K5 "a FIFO, a device or a link to one as record, images, config or cache file": hung, or read on."""
    path = written(context, settings)
    place(path)
    with pytest.warns(UserWarning, match=f"cached images {path} are not usable .*made anew"):
        assert made_anew(context())
    assert path.is_file()
    assert not path.is_symlink()


def test_a_folder_in_a_file_s_place(context, settings):
    path = written(context, settings)
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    with pytest.warns(UserWarning) as said:
        assert made_anew(context())
    assert [("made anew" in str(w.message), "could not be kept" in str(w.message)) for w in said] == [
        (True, False),
        (False, True),
    ]


def test_a_file_that_may_not_be_read(context, settings, monkeypatch):
    path = written(context, settings)

    def refused(path, most):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("harness.run.image_cache.open_regular", refused)
    with pytest.warns(UserWarning, match=f"{path} are not usable .*Permission denied"):
        assert made_anew(context())


def test_a_link_to_a_file_is_a_file(context, settings):
    path = written(context, settings)
    path.replace(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    assert not made_anew(context())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_not_kept(context, settings, value):
    context().cached_images(IDENTITY, lambda: pixels(value))
    assert not list(settings.cache.iterdir())


def test_images_are_used_when_the_cache_cannot_keep_them(context, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.run.image_cache.write_atomically", full)
    with pytest.warns(UserWarning, match="could not be kept in the cache .*No space left on device"):
        images = context().cached_images(IDENTITY, lambda: pixels(1.0))
    assert images.sum() == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floating_types_survive(context, settings, dtype):
    images = torch.rand(2, 3, 4, 4).to(dtype)
    context().cached_images(IDENTITY, lambda: images)
    found = context().cached_images(IDENTITY, lambda: pytest.fail("it is there"))
    assert found.dtype == dtype
    assert torch.equal(found, images)
