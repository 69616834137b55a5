"""The model card: how to run the file, what it computes, and how well. Ten lines run it as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.results.exported import Exported, InRuntime

if TYPE_CHECKING:
    import numpy as np

    from harness.api.contracts import VisionModel

CARD, EXAMPLE = "README.md", "example.png"
_FILTERS = {"bicubic": "BICUBIC", "bilinear": "BILINEAR", "nearest": "NEAREST", "lanczos": "LANCZOS"}


def script(model: VisionModel) -> str:
    """Ten lines that run model.onnx on a picture; they need numpy, onnxruntime and Pillow."""
    channels, height, width = model.input_shape
    crop = float(model.preprocessing.get("crop_pct", 1.0))
    resample = _FILTERS.get(str(model.preprocessing.get("interpolation", "")), "BICUBIC")
    whole = (round(width / crop), round(height / crop))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    box = (left, top, left + width, top + height)
    return "\n".join(
        (
            "import numpy as np, onnxruntime",
            "from PIL import Image, ImageOps",
            f'image = Image.open("{EXAMPLE}").convert("{"L" if channels == 1 else "RGB"}")',
            f"image = ImageOps.fit(image, {whole}, Image.Resampling.{resample}).crop({box})",
            f"pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}) / 255",
            f"pixels = (pixels - np.float32({_list(model.mean)})) / np.float32({_list(model.std)})",
            'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
            'logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0]',
            "print(logits.argmax(1)[0], logits.max())",
        )
    )


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.9g}' for value in values)}]"


def example(model: VisionModel, image: np.ndarray) -> Any:
    """A normalised image (channels, height, width) as a picture."""
    import numpy as np
    from PIL import Image

    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (model.mean, model.std))
    pixels = np.clip(np.rint((image * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def write_card(exported: Exported, model: VisionModel, folder: Path, image: np.ndarray | None) -> None:
    """Write README.md, and for classifiers the picture that its lines read."""
    if image is not None:
        example(model, image).save(folder / EXAMPLE)
    (folder / CARD).write_text(card(exported, model, runs=image is not None), encoding="utf-8")


def card(exported: Exported, model: VisionModel, *, runs: bool) -> str:
    """The text."""
    cell = exported.cell
    lines = [
        f"# {cell.model}, {cell.method}, {cell.bits}, scheme {cell.scheme}",
        "",
        f"Quantized by dfqbench without its training data, from cell `{exported.key[:16]}` of suite {cell.suite}. "
        "`model.onnx` computes with integers, `float.onnx` is the same network in float32.",
        "",
    ]
    if runs:
        lines += ["## Run it", "", "```python", script(model), "```", ""]
        lines += [f"It needs numpy, onnxruntime and Pillow. `{EXAMPLE}` is an image of the evaluation.", ""]
    else:
        shape = ", ".join(map(str, (exported.at_once or "n", *model.input_shape)))
        lines += [f"Input `images`: ({shape}), normalised by mean ", ""]
        lines[-2] += f"{_list(model.mean)} and standard deviation {_list(model.std)} of pixels in 0 .. 1."
    lines += ["## Measured", "", *table(exported), "", *notes(exported), ""]
    return "\n".join(lines)


def table(exported: Exported) -> list[str]:
    """All figures, as lines of Markdown."""
    metric = exported.primary_metric
    files = exported.files
    rows = [("file (bytes)", f"{files['float.onnx']:,}", f"{files['model.onnx']:,}", f"{_times(files)} smaller")]
    fake = f"fake-quantized: {exported.metrics[metric]:.2f}"
    for each in exported.runtimes:
        name = f"{each.runtime} {each.version.partition('-')[0]}"
        accuracy = (f"{each.float_metrics[metric]:.2f}", f"{each.metrics[metric]:.2f}", fake)
        rows.append((f"{metric}, {exported.images:,} images, {name}", *accuracy))
        same = each.to_fake.same
        if same is not None:
            rows.append((f"same prediction as fake-quantized, {name}", "", f"{same:.2f} %", each.verdict))
        rows.append((f"logits: difference to it by quantization's own, {name}", "", f"{each.relative:.3f}", ""))
        rows.append((f"integer multiply-accumulates, {name}", "", f"{each.integer_share:.1f} %", _kernels(each)))
        for timing in each.timings:
            what = f"batch {timing.batch}, {timing.threads} thread{'s' * (timing.threads > 1)}, {name}"
            if timing.threads == 1:
                ratio = _ratio(timing.float_cpu_ms, timing.exported_cpu_ms, "less", "more")
                cpu = (f"{timing.float_cpu_ms:.2f} ms", f"{timing.exported_cpu_ms:.2f} ms", ratio)
                rows.append((f"CPU time, {what}", *cpu))
            quick = _ratio(timing.float_ms, timing.exported_ms, "faster", "slower")
            wall = (f"{timing.float_ms:.2f} ms", f"{timing.exported_ms:.2f} ms")
            rows.append((f"latency, {what}", *wall, "machine busy: no ratio" if timing.busy else quick))
        if each.peak_mib is not None and each.float_peak_mib is not None:
            rows.append((f"peak memory, {name}", f"{each.float_peak_mib:.0f} MiB", f"{each.peak_mib:.0f} MiB", ""))
    for other in exported.competitors:
        size = "" if other.size is None else f"{other.size:,} bytes"
        took = "" if other.cpu_ms is None else f"{other.cpu_ms:.2f} ms CPU an image"
        score = f"{metric} {other.metrics[metric]:.2f}" if metric in other.metrics else ""
        rows.append((f"for comparison: {other.name}", size, score, took))
    head = ["| | float32 | exported | |", "|---|---:|---:|---|"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _ratio(in_float: float, exported: float, better: str, worse: str) -> str:
    ratio = in_float / max(exported, 1e-9)
    return f"{ratio:.2f} times {better}" if ratio >= 1.0 else f"{1.0 / max(ratio, 1e-9):.2f} times {worse}"


def _times(files: dict[str, int]) -> str:
    return f"{files['float.onnx'] / files['model.onnx']:.2f} times"


def _kernels(each: InRuntime) -> str:
    count = sum(one.integer for one in each.computed)
    return f"{count} of {len(each.computed)} layers and matrix products"


def notes(exported: Exported) -> list[str]:
    """What the reader should know."""
    found = [f"Measured on {exported.processor.get('processor', 'an unknown processor')}"]
    found[0] += f" ({', '.join(exported.features) or 'no instructions for integers are known'})."
    if not {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"} & set(exported.features):
        found.append("This processor has no dot product of eight-bit integers: expect little speed.")
    found.append(
        "Processors without VNNI add products of eight-bit codes in sixteen bits, which can saturate: results may "
        "differ there. Seven-bit weights (W7A8) avoid it, as does the session option `session.x64quantprecision=1`."
    )
    if exported.not_kept is None:
        found.append('In Python: `dfqbench.load("model.safetensors")` is the fake-quantized model again.')
    floats = [one for each in exported.runtimes[:1] for one in each.computed if not one.integer]
    if floats:
        by_reason: dict[str, list[str]] = {}
        for one in floats:
            reason = one.why or f"{exported.runtimes[0].runtime} computes it by {one.kernel or 'what it does not tell'}"
            by_reason.setdefault(reason, []).append(one.operation)
        for reason, names in list(by_reason.items())[:6]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(f"In float32: `{names[0]}`{more} ({reason}).")
    return [f"- {text}" for text in found]
