"""The canvas of phantoms: maps (CANVAS, CANVAS) float32; coordinates are fractions of it, x to the right, y down."""

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna.data.boxes import Floats

Map = NDArray[np.float32]
Rng = np.random.Generator

CANVAS = 512  # side of a map, pixels; finer detail comes from the grain of the finished image


def grid() -> tuple[Map, Map]:
    """x (1, CANVAS) and y (CANVAS, 1) of the pixel centres, as fractions of the canvas."""
    axis = ((np.arange(CANVAS) + 0.5) / CANVAS).astype(np.float32)
    return axis[None, :], axis[:, None]


def step(values: Map, width: float) -> Map:
    """A smooth step of `values`: 0 far below zero, 1 far above; `width` is about a quarter of the transition."""
    return np.asarray(0.5 + 0.5 * np.tanh(values / (2 * width)), dtype=np.float32)


def blur(layer: Map, sigma: float) -> Map:
    """Gaussian blur; sigma in canvas pixels."""
    side = 2 * round(2.5 * sigma) + 1  # OpenCV's default for floats, 8 sigma, takes twice as long and looks the same
    return np.asarray(cv2.GaussianBlur(layer, (side, side), sigma))


def cloud(rng: Rng, cells: int) -> Map:
    """Smooth noise with `cells` hills along a side, mean 0, standard deviation about 0.6."""
    hills = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(cv2.resize(hills, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def smooth_outline(points: Floats) -> Floats:
    """Round the corners of a closed polygon (n, 2) by three rounds of Chaikin's algorithm: (8 n, 2)."""
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


def fill(points: Floats, sigma: float) -> Map:
    """Soft mask in [0, 1] of a closed outline (n, 2); sigma: blur of its edge in canvas pixels."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    cv2.fillPoly(layer, [np.round(points * CANVAS).astype(np.int32)], 1.0)
    return blur(layer, sigma)


def stroke(layer: Map, points: Floats, width: float, value: float) -> None:
    """Draw an open line (n, 2) into a layer, overwriting it; width: fraction of the canvas."""
    line = np.round(points * CANVAS * 8).astype(np.int32)
    cv2.polylines(layer, [line], False, value, max(1, round(width * CANVAS)), cv2.LINE_AA, shift=3)


def curve(points: Floats) -> Floats:
    """A Bezier curve (40, 2) from the first to the last of `points` (n, 2), bent towards those between."""
    t = np.linspace(0, 1, 40)[:, None]
    level = list(points)
    while len(level) > 1:
        level = [(1 - t) * a + t * b for a, b in itertools.pairwise(level)]
    return np.asarray(level[0])


def ellipse(x: float, y: float, rx: float, ry: float, angle: float, sigma: float) -> Map:
    """Soft mask of an ellipse with centre x, y and semi-axes rx, ry; angle in degrees, clockwise; sigma as in fill."""
    t = np.linspace(0, 2 * np.pi, 60)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    return fill(np.stack([x + dx * cos - dy * sin, y + dx * sin + dy * cos], axis=1), sigma)
