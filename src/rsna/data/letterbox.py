"""Letterboxing: any image into a square, whole and in proportion; boxes between original and cached pixels."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna.data.windowing import GreyImage

Array = NDArray[np.float64]


class Geometry(NamedTuple):
    """Where an image lies in its square: cached = original * scale + pad, in pixels.

    Coordinates are continuous with the origin at the image's top left corner, so that pixel 0 covers 0..1.
    """

    scale_x: float
    scale_y: float
    pad_x: float
    pad_y: float


GEOMETRY_COLUMNS = list(Geometry._fields)


def fit_letterbox(rows: int, cols: int, size: int) -> tuple[int, int, Geometry]:
    """Width and height of an image of rows x cols that fills a square of `size`, and where it lies in it."""
    longest = max(rows, cols, 1)
    width, height = (max(1, round(side * size / longest)) for side in (cols, rows))
    # whole pixels on both sides: the scale is that of the rounded size, so boxes map back exactly
    pad_x, pad_y = (size - width) // 2, (size - height) // 2
    return width, height, Geometry(width / max(cols, 1), height / max(rows, 1), pad_x, pad_y)


def letterbox(image: GreyImage, rows: int, cols: int, size: int) -> GreyImage:
    """uint8 (size, size): an image of rows x cols, or a reduction of it, whole and centred, the rest black."""
    width, height, geometry = fit_letterbox(rows, cols, size)
    if image.shape != (height, width):
        # area average to shrink; to enlarge linear, where area would be nearest neighbour
        shrinks = width <= image.shape[1] and height <= image.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
    canvas = np.zeros((size, size), np.uint8)
    left, top = int(geometry.pad_x), int(geometry.pad_y)
    canvas[top : top + height, left : left + width] = image
    return canvas


def original_to_cached(boxes_xyxy: Array, geometry: Array) -> Array:
    """(N, 4) xyxy in pixels of the originals -> in pixels of the cached squares.

    geometry is (N, 4), or (4,) for one image: scale_x, scale_y, pad_x, pad_y, the index's GEOMETRY_COLUMNS.
    """
    return np.asarray(boxes_xyxy, dtype=float) * geometry[..., [0, 1, 0, 1]] + geometry[..., [2, 3, 2, 3]]


def cached_to_original(boxes_xyxy: Array, geometry: Array) -> Array:
    """(N, 4) xyxy in pixels of the cached squares -> in pixels of the originals; geometry as original_to_cached."""
    return (np.asarray(boxes_xyxy, dtype=float) - geometry[..., [2, 3, 2, 3]]) / geometry[..., [0, 1, 0, 1]]
