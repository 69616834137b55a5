"""The files beside a record: what they are called, how they are written and read, and what may be in them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import first_line
from harness.io.files import MOST
from harness.results.record import Sidecar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

CONFIDENCE = "confidence"  # the column of outcomes that is a measured quantity and differs by rounding
OUTCOMES, IMAGES, SNAPSHOTS, PICTURES = "outcomes", "images", "snapshots", "pictures"
SUFFIXES = {OUTCOMES: ".parquet", IMAGES: ".images.npz", SNAPSHOTS: ".snapshots.npz", PICTURES: ".pictures.npz"}
ROWS = 10**8  # of outcomes
SIDE = 8192  # pixels of a kept image
_DIGITS = 18  # of a snapshot's step

Writer = Callable[[Path], object]


class Damaged(ValueError):
    """A sidecar that cannot be used. The message says why, in words that follow its name."""


def table_writer(outcomes: pd.DataFrame) -> Writer:
    """Writes outcomes to the file that it is given."""
    return lambda path: outcomes.to_parquet(path, index=False)


def array_writer(arrays: Mapping[str, np.ndarray]) -> Writer:
    """Writes `arrays` to the file that it is given; the same arrays give the same bytes."""
    import numpy as np

    def write(path: Path) -> None:
        with path.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # none is named allow_pickle

    return write


def described(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Sidecar:
    """What a record says of a sidecar."""
    return Sidecar(sha256=hashlib.sha256(content).hexdigest(), shapes=dict(shapes))


def check_bytes(content: bytes, said: Sidecar | None) -> None:
    """Raise Damaged if the bytes are not those that the record was saved with; None: it does not say."""
    if said is not None and hashlib.sha256(content).hexdigest() != said.sha256:
        raise Damaged("is not the file that its record was saved with")


def table(content: bytes, said: Sidecar | None) -> pd.DataFrame:
    """Outcomes from the bytes of their file.

    Raises:
        Damaged: they are not what the record says, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_bytes(content, said)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows > ROWS:
            raise Damaged(f"has {file.metadata.num_rows:,} rows")
        # Tables are small, and threads cost more than they bring.
        found: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except Damaged:
        raise
    except Exception as error:  # a reader of damaged bytes may raise anything
        raise Damaged(f"cannot be read ({first_line(error)})") from None
    _check_shapes({str(name): found[name].shape for name in found}, said)
    return found


def decisive(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Outcomes as runs are compared by: without how sure a model is, which differs by rounding between machines and
    which older records do not say.
    """
    return outcomes.drop(columns=CONFIDENCE, errors="ignore")


def right_of(content: bytes, said: Sidecar) -> NDArray[np.bool_] | None:
    """Which images are right by column `correct` of outcomes, in a tenth of `table`'s time.

    Only for a file that the record was saved with, of which the other columns need no look. None if it is not that, or
    has no such column; `table` says what is wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_bytes(content, said)
        file = pq.ParquetFile(pa.BufferReader(content))
        images = file.metadata.num_rows
        if images > ROWS or said.shapes != dict.fromkeys(file.schema_arrow.names, (images,)):
            return None
        correct = file.read(columns=["correct"], use_threads=False).column("correct")
    except Exception:  # a reader of damaged bytes may raise anything
        return None
    plain = pa.types.is_boolean(correct.type) and not correct.null_count and len(correct) == images
    return correct.to_numpy() if plain else None


def columns_of(content: bytes, said: Sidecar | None, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those columns `names` of outcomes that the file has and that hold plain numbers or truth values, by name.

    Raises:
        Damaged: the bytes are not what the record says, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_bytes(content, said)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        there = [name for name in names if name in file.schema_arrow.names]
        table = file.read(columns=there, use_threads=False)
        plain = {name: table.column(name) for name in there if not table.column(name).null_count}
        found = {name: column.to_numpy() for name, column in plain.items()}
    except Exception as error:  # a reader of damaged bytes may raise anything
        raise Damaged(f"cannot be read ({first_line(error)})") from None
    return {name: values for name, values in found.items() if values.dtype.kind in "biuf"}


def arrays(content: bytes, said: Sidecar | None) -> dict[str, np.ndarray]:
    """Images by name, uint8 (n, height, width, 1 or 3), from the bytes of their file.

    Raises:
        Damaged: they are not what the record says, cannot be read, or are no such images.
    """
    import numpy as np

    check_bytes(content, said)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(member.file_size for member in file.infolist()) > MOST:
                raise Damaged(f"holds more than {MOST:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in file.files}
    except Damaged:
        raise
    except Exception as error:  # as above; MemoryError for an array that is said to be immense
        raise Damaged(f"cannot be read ({first_line(error)})") from None
    for name, images in found.items():
        usable = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
        if not usable or not all(0 < side <= SIDE for side in images.shape[:3]):
            raise Damaged(f"holds no images but '{name}', {images.dtype} of shape {images.shape}")
    _check_shapes({name: images.shape for name, images in found.items()}, said)
    return found


def _check_shapes(found: Mapping[str, tuple[Any, ...]], said: Sidecar | None) -> None:
    if said is not None and dict(found) != said.shapes:
        raise Damaged(f"has shapes {dict(found)}, though its record says {said.shapes}")


def steps(found: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Snapshots by step from arrays that are named by it."""
    return {int(step): images for step, images in found.items() if step.isdecimal() and len(step) <= _DIGITS}
