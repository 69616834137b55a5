"""Image files as every classification folder has them: which there are, whether they are whole, and their pixels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from harness.api.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
# What is opened, whatever a file calls itself. Pillow knows formats that run other programs, such as PostScript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_END_OF_JPEG = b"\xff\xd9"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


class UnscalableError(OSError):
    """The pixels have no range that is known, so that they cannot become 8 bits."""


def read_rgb(file: BinaryIO) -> Image:
    """The (first) image in an opened file, in RGB of 8 bits per channel.

    Grey images of 16 bits keep their high bytes, as Pillow does with colours of 16 bits. Transparency is dropped, as by
    torchvision's ImageFolder.

    Raises:
        Exception: whatever Pillow raises on a damaged file; `UnscalableError` for pixels that have no known range.
    """
    from PIL import Image

    with Image.open(file, formats=FORMATS) as image:
        check_range(image)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        image.info.pop("transparency", None)  # it changes no colour, but Pillow warns of it
        return image.convert("RGB")


def check_range(image: Image) -> None:
    """Check that black and white are known values.

    Raises:
        UnscalableError: pixels are floats, or integers of other than 8 or 16 bits.
    """
    if image.mode == "F":
        raise UnscalableError("its pixels are floating-point numbers, whose black and white are not known")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return  # Pillow scales colours itself
    tags = getattr(image, "tag_v2", None)
    bits = (16,) if tags is None else tags.get(_BITS_PER_SAMPLE)
    if image.mode == "I" and tags is not None:
        raise UnscalableError("its pixels are signed or 32-bit integers, whose black and white are not known")
    if bits != (16,) or (tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO):
        raise UnscalableError("its grey levels are neither 8 nor 16 bits from black to white")


def undecodable(file: BinaryIO) -> str:
    """Why the opened file cannot be read as an image; empty if it can. Costs what reading it costs."""
    return _defect(file, read_rgb)


def incomplete(file: BinaryIO) -> str:
    """Why the opened file is not an image or not all of one; empty if it is.

    Ten times as fast as `undecodable` for a JPEG, of which only the first and last bytes are looked at, and faster for
    a PNG, of which the check sums are; other files are decoded.
    """
    return _defect(file, _skim)


def _defect(file: BinaryIO, look: Callable[[BinaryIO], object]) -> str:
    from PIL import UnidentifiedImageError

    try:
        look(file)
    except UnidentifiedImageError:
        return "it is not an image, or its head is damaged" if file.seek(0, os.SEEK_END) else "it is empty"
    # A damaged file raises nearly anything (OSError, SyntaxError, ValueError, struct.error, DecompressionBombError...).
    except Exception as error:
        return first_line(error)
    return ""


def _skim(file: BinaryIO) -> None:
    from PIL import Image

    with Image.open(file, formats=FORMATS) as image:
        check_range(image)
        if image.format == "JPEG":
            file.seek(-len(_END_OF_JPEG), os.SEEK_END)
            whole = file.read() == _END_OF_JPEG
        elif image.format == "PNG":
            whole = _has_right_sums(image)
        else:
            whole = False
    if not whole:  # not known to be
        file.seek(0)
        read_rgb(file)


def _has_right_sums(image: Image) -> bool:
    try:
        image.verify()
    except Exception:  # stricter than decoding
        return False
    return True
