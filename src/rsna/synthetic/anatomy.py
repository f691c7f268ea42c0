"""The healthy anatomy of the chest phantom: layers of a thorax, as maps of attenuation from 0 (air) to about 1.

`side` is -1 for the patient's right lung (left in the image) and +1 for the left one.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna.data.boxes import Floats
from rsna.synthetic.canvas import CANVAS, Map, Rng, blur, ellipse, fill, grid, smooth_outline, step, stroke

SIDES = (-1, 1)
MIDLINE = 0.505

# a lung's outline: u from the midline (0) to the chest wall (1), v from the apex (0) to the top of the diaphragm (1)
LUNG_OUTLINE = [(0.14, 0.10), (0.26, 0.0), (0.5, 0.0), (0.72, 0.12), (0.86, 0.3), (0.94, 0.55), (1.0, 0.85)]
LUNG_OUTLINE += [(1.05, 1.14), (1.04, 1.17), (0.93, 1.06), (0.72, 0.98), (0.4, 0.98), (0.13, 1.06), (0.12, 0.6)]
# the right half of the trunk: x from the midline, y; the shoulders are outside the image, the axillae inside
BODY_OUTLINE = [(0.0, -0.2), (0.13, -0.2), (0.135, 0.02), (0.2, 0.07), (0.36, 0.11), (0.6, 0.17), (0.6, 0.34)]
BODY_OUTLINE += [(0.54, 0.46), (0.5, 0.6), (0.5, 0.85), (0.52, 1.2), (0.0, 1.2)]

# attenuation of the layers
SOFT_TISSUE, ABDOMEN, AIR_IN_LUNG, MEDIASTINUM, HEART = 0.6, 0.2, 0.37, 0.16, 0.22
SPINE, RIB, CLAVICLE, SCAPULA, VESSEL, BREAST, ARM = 0.06, 0.095, 0.12, 0.07, 0.085, 0.06, 0.12
TRACHEA, STOMACH_GAS = -0.13, -0.2
RIBS = 9


@dataclass(frozen=True)
class Body:
    """What is the same in all images of a patient; lengths are fractions of the canvas."""

    lung_width: float  # midline to chest wall
    apex: float  # y of the lungs' tops
    base: float  # y of the diaphragm at full inspiration, patient's right
    heart: float  # half the heart's width, as a fraction of lung_width
    rib_slope: float
    fat: float  # extra soft tissue, attenuation
    female: bool


def draw_body(rng: Rng, sex: str) -> Body:
    """Draw a patient's proportions at random; sex: F or M."""
    mean, spread = (0.375, 0.115, 0.775, 0.47, 0.085, 0.0), (0.016, 0.012, 0.03, 0.035, 0.015, 0.05)
    lung_width, apex, base, heart, rib_slope, fat = rng.normal(mean, spread).tolist()
    return Body(float(np.clip(lung_width, 0.34, 0.41)), apex, base, heart, rib_slope, abs(fat), sex == "F")


def lung_mask(body: Body, side: int, base: float) -> Map:
    """Soft mask of one lung. base: y of the top of the right diaphragm; the left one is a little lower."""
    u, v = np.array(LUNG_OUTLINE).T
    height = base + (0.02 if side > 0 else 0.0) - body.apex
    outline = np.stack([MIDLINE + side * u * body.lung_width, body.apex + v * height], axis=1)
    return fill(smooth_outline(outline), 1.6)


def draw_trunk(body: Body, base: float) -> Map:
    """Soft tissue without lungs: thin at the skin, dense below the diaphragm."""
    right = np.array(BODY_OUTLINE) * (1 + body.fat, 1.0)
    outline = np.array((MIDLINE, 0)) + np.concatenate([right, right[::-1] * (-1, 1)])
    solid = (fill(smooth_outline(outline), 1.0) > 0.5).astype(np.uint8)
    # pad, so that tissue stays thick where it ends at the image's border and not at the skin
    padded = cv2.copyMakeBorder(solid, 40, 40, 40, 40, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[40:-40, 40:-40] / CANVAS
    thickness = 1 - np.exp(-depth / 0.035)
    abdomen = step(grid()[1] - base, 0.06)
    return ((SOFT_TISSUE + body.fat + ABDOMEN * abdomen) * thickness).astype(np.float32)


def draw_heart(body: Body, base: float, enlarged: float) -> Map:
    """Heart and great vessels; two thirds of the heart lie to the patient's left. enlarged: factor on its size."""
    half = body.heart * body.lung_width * enlarged
    heart = ellipse(MIDLINE + 0.38 * half, base - 0.085, 1.02 * half, 0.72 * half + 0.03, 34, 4)
    knob = ellipse(MIDLINE + 0.055, body.apex + 0.2, 0.045, 0.05, 0, 3)
    trunk = ellipse(MIDLINE + 0.012, 0.4, 0.08, 0.4, 0, 6)
    # below the diaphragm the heart's lower border merges with the liver
    above = 1 - 0.7 * step(grid()[1] - base - 0.01, 0.012)
    return np.asarray((HEART * np.maximum(heart, 0.8 * knob) + MEDIASTINUM * trunk) * above, dtype=np.float32)


def draw_spine(body: Body) -> Map:
    """Vertebral column with gaps between the vertebrae, and the trachea in front of it."""
    x, y = grid()
    column = step(0.042 - np.abs(x - MIDLINE), 0.004)
    gaps = 0.75 + 0.25 * np.cos(2 * np.pi * y / 0.062)
    windpipe = step(body.apex + 0.2 - y, 0.01) * step(0.02 - np.abs(x - MIDLINE), 0.003)
    return (SPINE * column * gaps + TRACHEA * windpipe).astype(np.float32)


def draw_ribs(body: Body, base: float, side: int) -> Map:
    """Posterior ribs, which rise and then fall towards the chest wall, and fainter anterior ribs."""
    back, front = np.zeros((2, CANVAS, CANVAS), np.float32)
    u = np.linspace(0.1, 1.0, 24)
    x = MIDLINE + side * u * body.lung_width * 1.03
    gap = (base - body.apex) / (RIBS - 1.5)
    starts = body.apex - 0.02 + gap * np.arange(RIBS + 1)
    # first the dense borders of the ribs, then their fainter marrow on top
    for width, value in ((0.026, 1.0), (0.016, 0.65)):
        for start in starts:
            behind = start - 0.05 * np.sin(np.pi * u) + body.rib_slope * u**3
            ahead = start + 0.04 + body.rib_slope * (1 + 2.2 * (1 - u))
            stroke(back, np.stack([x, behind], axis=1), width, value)
            stroke(front, np.stack([x, ahead], axis=1)[8:], width, 0.55 * value)
    return RIB * blur(np.maximum(back, front), 1.0)


def draw_shoulders(body: Body, side: int, across_lung: bool) -> Map:
    """Clavicle and scapula. across_lung, for AP images: the scapula overlaps the upper lung, and the arm is visible."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    u = np.linspace(0.1, 1.2, 20)
    bend = body.apex + 0.045 - 0.06 * u + 0.018 * np.sin(2 * np.pi * u)
    stroke(layer, np.stack([MIDLINE + side * u * body.lung_width, bend], axis=1), 0.027, CLAVICLE)
    blade_x = MIDLINE + side * body.lung_width * (0.98 if across_lung else 1.16)
    blade = SCAPULA * ellipse(blade_x, body.apex + 0.16, 0.05, 0.15, side * 14, 3)
    arm = ARM * ellipse(MIDLINE + side * 0.53, 0.62, 0.05, 0.4, -side * 5, 5) if across_lung else 0.0
    return (blur(layer, 1.2) + blade + arm).astype(np.float32)


def draw_vessels(rng: Rng, body: Body, side: int, base: float) -> Map:
    """Pulmonary vessels, which fan out from the hilum and get thinner."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    hilum = np.array([MIDLINE + side * 0.085, (body.apex + base) / 2 + 0.02])
    for angle in np.linspace(-1.35, 1.35, 15) + rng.normal(0, 0.1, 15):
        grow_vessel(rng, layer, hilum + rng.normal(0, 0.012, 2), angle, side, 0.011)
    hilar = ellipse(hilum[0], hilum[1], 0.03, 0.06, side * 15, 5)
    return np.asarray(VESSEL * (blur(layer, 0.8) + 0.6 * hilar), dtype=np.float32)


def grow_vessel(rng: Rng, layer: Map, start: Floats, angle: float, side: int, width: float) -> None:
    """Draw a winding branch, and from its end two thinner ones; angle in radians from the horizontal."""
    angles = angle + np.cumsum(rng.normal(0, 0.12, 6))
    steps = 0.022 * np.stack([side * np.cos(angles), np.sin(angles)], axis=1)
    path = np.concatenate([start[None], start + np.cumsum(steps, axis=0)])
    stroke(layer, path, width, min(1.0, 0.35 + width * 60))
    if width > 0.004:
        for turn in (-0.35, 0.35):
            grow_vessel(rng, layer, path[-1], angles[-1] + turn + rng.normal(0, 0.1), side, width * 0.55)
