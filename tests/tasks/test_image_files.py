from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.files.images import UnscalableError, incomplete, read_rgb, undecodable

GREY = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # every level of 8 bits, in 16


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def defects(raw: bytes) -> tuple[str, str]:
    return undecodable(io.BytesIO(raw)), incomplete(io.BytesIO(raw))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_k2_16_bit_grey_is_scaled(kind):
    """FAULTS K2 "16-bit PNG in `val`": was white."""
    pixels = np.asarray(read_rgb(io.BytesIO(encoded(Image.fromarray(GREY), kind))))
    assert (pixels == np.arange(256).reshape(16, 16, 1)).all()


def test_16_bit_colours_and_big_endian_are_scaled_alike():
    import cv2

    colour = cv2.imencode(".png", np.repeat(GREY[..., None], 3, 2))[1].tobytes()
    assert (np.asarray(read_rgb(io.BytesIO(colour)))[..., 0] == np.arange(256).reshape(16, 16)).all()
    big = Image.frombytes("I;16B", (16, 16), GREY.astype(">u2").tobytes())
    assert (np.asarray(read_rgb(io.BytesIO(encoded(big, "TIFF"))))[..., 0] == np.arange(256).reshape(16, 16)).all()


def _white_is_zero() -> bytes:
    raw = bytearray(encoded(Image.fromarray(GREY), "TIFF"))
    place = raw.index(struct.pack("<HHI", 262, 3, 1))
    raw[place + 8] = 0
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit integers"),
        (_white_is_zero(), "from black to white"),
    ],
)
def test_k2_pixels_without_a_known_range_are_refused(raw, message):
    """Further members of FAULTS K2 "16-bit PNG": Pillow clips floats and 32-bit integers to 0..255 without a word."""
    with pytest.raises(UnscalableError, match=message):
        read_rgb(io.BytesIO(raw))
    assert all(message in found for found in defects(raw))


def _palette() -> bytes:
    image = picture("P")
    return encoded(image, "PNG", transparency=bytes(range(256)))


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize(
    "raw",
    [
        encoded(picture("L"), "JPEG"),
        encoded(picture("CMYK"), "JPEG"),
        encoded(picture("1"), "PNG"),
        encoded(picture("LA"), "PNG"),
        encoded(picture("RGBA"), "WEBP", lossless=True),
        encoded(picture("RGB"), "BMP"),
        encoded(picture("CMYK"), "TIFF"),
        encoded(picture("P"), "GIF"),
        _palette(),
    ],
)
def test_other_modes_are_what_torchvision_makes_of_them(raw):
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (np.asarray(read_rgb(io.BytesIO(raw))) == expected).all()
    assert defects(raw) == ("", "")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6, 0.97])
def test_k3_truncated_images_are_found_by_either_check(kind, keep):
    """FAULTS K3 "truncated JPEG"."""
    raw = encoded(picture(), kind)
    assert defects(raw) == ("", "")
    for found in defects(raw[: int(keep * len(raw))]):
        assert found
        assert "object at 0x" not in found
        assert "\n" not in found


def test_a_jpeg_with_bytes_after_its_end_is_whole():
    assert defects(encoded(picture(), "JPEG") + b"\0" * 9) == ("", "")


def test_damage_in_the_middle_is_found_by_decoding():
    raw = bytearray(encoded(picture(), "JPEG"))
    place = raw.index(b"\xff\xda")
    raw[place : place + 2] = b"\xff\xd8"
    assert undecodable(io.BytesIO(raw))
    png = bytearray(encoded(picture(), "PNG"))
    png[len(png) // 2] ^= 255
    assert all(defects(bytes(png)))


def _hdr_bitmap() -> bytes:
    """A BMP of 64 bits per pixel."""
    head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 64, 0, 128, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 128, 0, 0, 54) + head + bytes(128)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>not found</html>",
        _hdr_bitmap(),
        encoded(picture("L"), "EPS"),  # for which Pillow would start another program
    ],
)
def test_what_cannot_become_rgb_has_a_defect(raw):
    assert all(defects(raw))


def test_a_picture_is_known_by_its_content_not_by_its_suffix(tmp_path: Path):
    (tmp_path / "gif.jpg").write_bytes(encoded(picture("P"), "GIF"))
    with (tmp_path / "gif.jpg").open("rb") as file:
        assert read_rgb(file).size == (32, 24)
