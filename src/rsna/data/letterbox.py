"""Letterboxing: fit an image into a square, keeping its proportions; map boxes between original and cached pixels."""

from typing import NamedTuple

import cv2
import numpy as np

from rsna.data.boxes import Floats
from rsna.data.windowing import GreyImage


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


def original_to_cached(boxes_xyxy: Floats, geometry: Floats) -> Floats:
    """(N, 4) xyxy in pixels of the originals -> of the cached squares; geometry (N, 4) or (4,): GEOMETRY_COLUMNS."""
    return np.asarray(boxes_xyxy, dtype=float) * geometry[..., [0, 1, 0, 1]] + geometry[..., [2, 3, 2, 3]]


def cached_to_original(boxes_xyxy: Floats, geometry: Floats) -> Floats:
    """(N, 4) xyxy in pixels of the cached squares -> of the originals; geometry (N, 4) or (4,): GEOMETRY_COLUMNS."""
    return (np.asarray(boxes_xyxy, dtype=float) - geometry[..., [2, 3, 2, 3]]) / geometry[..., [0, 1, 0, 1]]
