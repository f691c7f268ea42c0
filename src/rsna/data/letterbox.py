"""Cached images: squares that an image is fitted into, keeping its proportions; their PNG files; their boxes."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pydicom.dataset import FileDataset

from rsna.core.errors import UserError
from rsna.core.files import bytes_hash, write_then_rename
from rsna.data.boxes import Floats
from rsna.data.dicom import read_pixels
from rsna.data.windowing import GreyImage

REBUILD = "./run.sh cache_images (with the same settings)"
PNG_END = b"IEND\xaeB`\x82"


class Geometry(NamedTuple):
    """Where an image lies in its square: cached = original * scale + pad, in pixels; pixel 0 spans 0 to 1."""

    scale_x: float
    scale_y: float
    pad_x: float
    pad_y: float


GEOMETRY_COLUMNS = list(Geometry._fields)


def fit_letterbox(rows: int, cols: int, size: int) -> tuple[int, int, Geometry]:
    """Width and height, in pixels, of an image of rows x cols resized to fit a square of side `size`; its geometry."""
    longest = max(rows, cols, 1)
    width, height = (max(1, round(side * size / longest)) for side in (cols, rows))
    # the scale is computed from the rounded size, so that boxes map back exactly
    pad_x, pad_y = (size - width) // 2, (size - height) // 2
    return width, height, Geometry(width / max(cols, 1), height / max(rows, 1), pad_x, pad_y)


def letterbox(image: GreyImage, width: int, height: int, size: int) -> GreyImage:
    """The image resized to width x height (see fit_letterbox), centred on black: uint8 (size, size)."""
    if image.shape != (height, width):
        # INTER_AREA would enlarge by nearest neighbour
        shrinks = width <= image.shape[1] and height <= image.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
    canvas = np.zeros((size, size), np.uint8)
    left, top = (size - width) // 2, (size - height) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def decode_square(dataset: FileDataset, size: int) -> tuple[GreyImage, Geometry]:
    """The dataset's image letterboxed to uint8 (size, size), and its geometry. Raises UnreadableDicom."""
    width, height, geometry = fit_letterbox(int(dataset.Rows), int(dataset.Columns), size)
    return letterbox(read_pixels(dataset, (width, height)), width, height, size), geometry


def original_to_cached(boxes_xyxy: Floats, geometry: Floats) -> Floats:
    """(N, 4) xyxy in pixels of the originals -> of the cached squares; geometry (N, 4) or (4,): GEOMETRY_COLUMNS."""
    return np.asarray(boxes_xyxy, dtype=float) * geometry[..., [0, 1, 0, 1]] + geometry[..., [2, 3, 2, 3]]


def cached_to_original(boxes_xyxy: Floats, geometry: Floats) -> Floats:
    """(N, 4) xyxy in pixels of the cached squares -> of the originals; geometry (N, 4) or (4,): GEOMETRY_COLUMNS."""
    return (np.asarray(boxes_xyxy, dtype=float) - geometry[..., [2, 3, 2, 3]]) / geometry[..., [0, 1, 0, 1]]


def write_png(image: GreyImage, path: Path) -> str:
    """Write uint8 (H, W) as PNG under a temporary name, then rename it; return the content hash."""
    # not durable: 29,684 waits for the disk would be slow, and the index's hash detects what a power cut broke;
    # OpenCV's defaults were the fastest of the settings compared that come within 20 % of the smallest size
    encoded = cv2.imencode(".png", image)[1].tobytes()
    with write_then_rename(path, durable=False) as temporary:
        temporary.write_bytes(encoded)
    return bytes_hash(encoded)


def read_png(path: Path, size: int, expected: str = "") -> GreyImage:
    """A cached image, uint8 (size, size). UserError if missing, broken, or of another size or (if given) hash."""
    try:
        content = np.fromfile(path, np.uint8, 2 * size**2 + 10_000)  # more than any PNG of this size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run: {REBUILD}") from None
    # OpenCV fills the rest of a truncated PNG with black; only a complete file has the last chunk
    whole = content[12:16].tobytes() == b"IHDR" and content[-8:].tobytes() == PNG_END
    width, height = (int.from_bytes(content[at : at + 4].tobytes()) for at in (16, 20))
    if whole and (width, height) != (size, size):
        raise UserError(f"{path}: {width} x {height} pixels, not {size} x {size}; run: {REBUILD}")
    image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if whole else None
    if image is None:
        raise UserError(f"{path}: damaged PNG file; run: {REBUILD}")
    if expected and bytes_hash(content.tobytes()) != expected:
        raise UserError(f"{path}: not as cache_images wrote it; run: {REBUILD}")
    return np.asarray(image, np.uint8)
