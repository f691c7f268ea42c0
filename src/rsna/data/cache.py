"""Cached images: DICOM -> uint8 square, PNG files and their index, boxes between original and cached pixels."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from rsna.core.errors import UserError
from rsna.core.files import write_then_rename
from rsna.core.tables import read_table
from rsna.data.dicom import describe, open_dicom, read_grey
from rsna.data.windowing import Grey

Array = NDArray[np.float64]
Row = dict[str, Any]

MAKER = "./run.sh cache_images, with the same settings"
PNG_END = b"IEND\xaeB`\x82"
INDEX_CSV = "index.csv"
# rows of an unfinished cache; index.csv takes their place when all is done
JOURNAL_CSV = "index.partial.csv"
GEOMETRY_COLUMNS = ["scale_x", "scale_y", "pad_x", "pad_y"]
FACT_COLUMNS = ["rows", "cols", "transfer_syntax", "photometric"]
# recipe, source_bytes, source_mtime_ns and png_bytes say whether a cached image is still the right one
INDEX_COLUMNS = [
    *("patientId", "split", *FACT_COLUMNS, "status", "reason", *GEOMETRY_COLUMNS),
    *("source_bytes", "source_mtime_ns", "png_bytes", "recipe"),
]


class Geometry(NamedTuple):
    """Where an image lies in its square: cached = original * scale + pad, in pixels.

    Coordinates are continuous with the origin at the image's top left corner, so that pixel 0 covers 0..1.
    """

    scale_x: float
    scale_y: float
    pad_x: float
    pad_y: float


def original_to_cached(boxes_xyxy: Array, geometry: Array) -> Array:
    """(N, 4) xyxy in pixels of the originals -> in pixels of the cached squares.

    geometry is (N, 4), or (4,) for one image: scale_x, scale_y, pad_x, pad_y, the index's GEOMETRY_COLUMNS.
    """
    scale, pad = split_geometry(geometry)
    return np.asarray(boxes_xyxy, dtype=float) * scale + pad


def cached_to_original(boxes_xyxy: Array, geometry: Array) -> Array:
    """(N, 4) xyxy in pixels of the cached squares -> in pixels of the originals; geometry as original_to_cached."""
    scale, pad = split_geometry(geometry)
    return (np.asarray(boxes_xyxy, dtype=float) - pad) / scale


def split_geometry(geometry: Array) -> tuple[Array, Array]:
    """(..., 4) scale_x, scale_y, pad_x, pad_y -> scale (..., 4) and pad (..., 4) of x, y, x, y."""
    values = np.asarray(geometry, dtype=float)
    return values[..., [0, 1, 0, 1]], values[..., [2, 3, 2, 3]]


def read_dicom(path: Path, size: int) -> tuple[Grey, Geometry, dict[str, Any]]:
    """A DICOM file as uint8 (size, size), its geometry, and rows, cols, transfer_syntax, photometric.

    Raises dicom.Refused.
    """
    dataset = open_dicom(path)
    facts = describe(dataset)
    image, geometry = square(dataset, size)
    return image, geometry, facts


def square(dataset: FileDataset, size: int) -> tuple[Grey, Geometry]:
    """The dataset's image as uint8 (size, size): whole, centred, its sides in proportion, the rest black."""
    rows, cols = int(dataset.Rows or 0), int(dataset.Columns or 0)
    width, height, geometry = fit(rows, cols, size)
    grey = resize(read_grey(dataset, (width, height)), width, height)
    if (width, height) == (size, size):
        return grey, geometry
    canvas = np.zeros((size, size), np.uint8)
    left, top = int(geometry.pad_x), int(geometry.pad_y)
    canvas[top : top + height, left : left + width] = grey
    return canvas, geometry


def fit(rows: int, cols: int, size: int) -> tuple[int, int, Geometry]:
    """Width and height of an image of rows x cols that fills a square of `size`, and where it lies in it."""
    longest = max(rows, cols, 1)
    width, height = (max(1, round(side * size / longest)) for side in (cols, rows))
    # whole pixels on both sides: the scale is that of the rounded size, so boxes map back exactly
    pad_x, pad_y = (size - width) // 2, (size - height) // 2
    return width, height, Geometry(width / max(cols, 1), height / max(rows, 1), pad_x, pad_y)


def resize(image: Grey, width: int, height: int) -> Grey:
    """uint8 to (height, width): area average to shrink, linear to enlarge (there area is nearest neighbour)."""
    if image.shape == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def write_png(image: Grey, path: Path) -> int:
    """Write uint8 (H, W) as PNG by way of a temporary name; return the file's size in bytes.

    OpenCV's default settings: the fastest of those compared at a size within 20 % of the smallest. No fsync,
    unlike files.write_then_rename: it waits for the disk at each of 29,684 images, and is not needed here, as
    the index holds each PNG's size and one that lost its bytes in a power cut is made again.
    """
    encoded = cv2.imencode(".png", image)[1].tobytes()
    # always the same temporary name, so that a killed run leaves nothing behind once it is repeated
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(encoded)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None  # a write does not know its file's name
    return len(encoded)


def read_png(path: Path, size: int) -> Grey:
    """A cached image as uint8 (size, size). Raises UserError if it is missing, broken or of another size."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run: {MAKER}") from None
    # OpenCV decodes a PNG that was cut off to a picture with a black rest; the last chunk tells
    whole = content[-8:].tobytes() == PNG_END
    image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if whole else None
    if image is None:
        raise UserError(f"{path}: damaged PNG file; delete it and run: {MAKER}")
    if image.shape != (size, size):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise UserError(f"{path}: {found} pixels, not {size} x {size}; delete it and run: {MAKER}")
    return np.asarray(image, np.uint8)


def read_index(cache_dir: Path, size: int) -> pd.DataFrame:
    """The index of a finished cache: one row per image of the input, INDEX_COLUMNS, status ok or refused.

    The geometry of refused images is missing. Raises UserError if the cache is missing or unfinished, or if a row is
    not what cache_images writes for images of `size`: boxes would lie elsewhere.
    """
    if (cache_dir / JOURNAL_CSV).exists():
        raise UserError(f"{cache_dir}: the image cache is unfinished; run: {MAKER}")
    table = read_table(cache_dir / INDEX_CSV, INDEX_COLUMNS, MAKER)
    numbers = table[["rows", "cols", *GEOMETRY_COLUMNS]].apply(pd.to_numeric, errors="coerce")
    fits = (table["status"] == "ok") & (numbers[["rows", "cols"]] >= 1).all(axis=1)
    shapes = numbers.loc[fits, ["rows", "cols"]].astype(int)
    pairs = list(zip(shapes["rows"].tolist(), shapes["cols"].tolist(), strict=True))
    geometry = {(rows, cols): fit(rows, cols, size)[2] for rows, cols in set(pairs)}
    expected = np.array([geometry[pair] for pair in pairs]).reshape(-1, 4)
    fits[fits] = np.isclose(numbers.loc[fits, GEOMETRY_COLUMNS], expected, rtol=1e-6, atol=1e-9).all(axis=1)
    wrong = (table["status"] == "ok") & ~fits | table.duplicated(["patientId", "split"])
    if wrong.any():
        name = table.loc[wrong, "patientId"].iloc[0]
        raise UserError(f"{cache_dir / INDEX_CSV}, patientId {name}: not as it was written; delete it and run: {MAKER}")
    return table.assign(**numbers)


def read_rows(path: Path) -> list[Row]:
    """Rows of an index or journal, all fields text; none if it is absent or of another version.

    A line that a killed process left unfinished is dropped: it has no line end.
    """
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    return [row for row in rows if list(row) == INDEX_COLUMNS and None not in row.values()]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write an index or journal, whole or not at all."""
    with write_then_rename(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
