"""Findings in a chest phantom: opacities, which get boxes, and other findings, which do not."""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna.synthetic.anatomy import MIDLINE, SIDES, Body
from rsna.synthetic.canvas import CANVAS, Floats, Map, Rng, blur, cloud, curve, ellipse, grid, step, stroke

# how hard the task is: the attenuation that an opacity adds at its core (lung and heart differ by about 0.37)
OPACITY_CONTRAST = 0.32
OPACITY_CONTRAST_SPREAD = 0.25  # standard deviation of its logarithm
SUBTLE_SHARE = 0.15  # fraction of positive images with faint opacities
SUBTLE_CONTRAST = 0.5  # factor on the contrast of faint opacities
OPACITY_TEXTURE = 0.22  # how patchy an opacity is, as a fraction of its contrast
EFFUSION_CONTRAST, NODULE_CONTRAST, PLATE_CONTRAST, METAL, TUBE = 0.24, 0.16, 0.16, 0.5, 0.16
HAZE_CONTRAST = 0.12
VISIBLE = 0.4  # the box encloses where an opacity has at least this fraction of its core's density
IN_LUNG = 0.6  # at least this fraction of an opacity's box is lung; corners of the lung's bounding box are not
VISIBLE_EXTENT = 1.04  # how far a blob of nominal extent 1 is visible, because of its ragged border

Statistics = tuple[tuple[float, float], ...]
# measured on the 9,555 boxes of stage_2_train_labels.csv: mean and standard deviation of ln width, ln height and the
# centre's y (pixels of 1024), by view and number of boxes in the image (3 stands for 3 and 4)
BOX_STATISTICS = {
    ("AP", 1): ((5.287, 0.302), (5.495, 0.481), (549, 124)),
    ("AP", 2): ((5.395, 0.266), (5.845, 0.460), (530, 109)),
    ("AP", 3): ((5.123, 0.295), (5.269, 0.420), (506, 157)),
    ("PA", 1): ((5.270, 0.318), (5.281, 0.463), (526, 113)),
    ("PA", 2): ((5.331, 0.311), (5.476, 0.481), (525, 110)),
    ("PA", 3): ((5.123, 0.295), (5.269, 0.420), (506, 157)),
}
WIDTH_HEIGHT_CORRELATION = 0.61
PAIR_CORRELATION = 0.7  # of size and y between the boxes of an image (measured: 0.62 to 0.76)
CENTRE_X = {-1: (321, 61), 1: (713, 60)}  # mean and standard deviation for the patient's right (-1) and left lung
SINGLE_ON_RIGHT = 0.62  # fraction of single boxes in the right lung; of two boxes, each lung has one in 98 %
SOURCE_SIDE = 1024  # side, in pixels, of the images that were measured


@dataclass(frozen=True)
class Blob:
    """A planned opacity: the lung it is in, its centre and half extents, as fractions of the canvas."""

    side: int
    x: float
    y: float
    rx: float
    ry: float


def plan_blobs(rng: Rng, view: str, count: int, lungs: dict[int, Map], size: float) -> list[Blob]:
    """Draw `count` opacities from the measured statistics, inside the lungs, not overlapping; size: factor on sides."""
    shared = rng.standard_normal(3)
    odd_side = [-1 if rng.random() < SINGLE_ON_RIGHT else 1] if count % 2 else []
    blobs: list[Blob] = []
    for side in [*SIDES] * (count // 2) + odd_side:
        # two in one lung may not fit beside each other, so each attempt is a little smaller
        for scale in size * np.linspace(1.0, 0.3, 60):
            blob = plan_blob(rng, BOX_STATISTICS[view, min(count, 3)], shared, side, lungs[side], scale)
            apart = all(abs(blob.x - b.x) >= blob.rx + b.rx or abs(blob.y - b.y) >= blob.ry + b.ry for b in blobs)
            if apart and share_inside(blob, lungs[side]) > IN_LUNG:
                break
        blobs.append(blob)
    return blobs


def plan_blob(rng: Rng, statistics: Statistics, shared: Floats, side: int, lung: Map, scale: float) -> Blob:
    """Draw one opacity; shared: (3,) the part of width, height and y that all boxes of the image have in common."""
    z = np.sqrt(PAIR_CORRELATION) * shared + np.sqrt(1 - PAIR_CORRELATION) * rng.standard_normal(3)
    z[1] = WIDTH_HEIGHT_CORRELATION * z[0] + np.sqrt(1 - WIDTH_HEIGHT_CORRELATION**2) * z[1]
    (w, w_sd), (h, h_sd), (y, y_sd) = statistics
    rx, ry = scale * np.exp([w + w_sd * z[0], h + h_sd * z[1]]) / (SOURCE_SIDE * 2 * VISIBLE_EXTENT)
    x = rng.normal(*CENTRE_X[side])
    # a box has to lie within the bounding box of the lung
    left, top, width, height = cv2.boundingRect((lung > 0.5).astype(np.uint8))
    cx, rx = fit_interval(x / SOURCE_SIDE, rx, left / CANVAS, (left + width) / CANVAS)
    cy, ry = fit_interval((y + y_sd * z[2]) / SOURCE_SIDE, ry, top / CANVAS, (top + height) / CANVAS)
    return Blob(side, cx, cy, rx, ry)


def fit_interval(centre: float, half: float, low: float, high: float) -> tuple[float, float]:
    """Centre and half extent of an interval, moved and, if necessary, shortened to lie within [low, high]."""
    half = min(half, (high - low) / 2)
    return float(np.clip(centre, low + half, high - half)), half


def share_inside(blob: Blob, lung: Map) -> float:
    """The fraction of a blob's box that is lung."""
    left, right = (round((blob.x + sign * blob.rx) * CANVAS) for sign in (-1, 1))
    top, bottom = (round((blob.y + sign * blob.ry) * CANVAS) for sign in (-1, 1))
    return float(lung[top:bottom, left:right].mean())


def opacity_shape(rng: Rng, blob: Blob, lung: Map) -> Map:
    """The density of an opacity as a fraction of its core's, in [0, 1]: a ragged, soft border, inside the lung only."""
    x, y = grid()
    power = rng.uniform(1.9, 3.0)  # between an ellipse and a lobe's rounded rectangle
    distance = (np.abs(x - blob.x) / blob.rx) ** power + (np.abs(y - blob.y) / blob.ry) ** power
    ragged = np.asarray(cv2.pow(distance, 1 / power)) + 0.13 * cloud(rng, 12)
    return (np.clip((1.25 - ragged) / 0.5, 0, 1) * lung).astype(np.float32)


def draw_effusion(rng: Rng, body: Body, side: int, base: float) -> Map:
    """Fluid at the base of the lung; its upper border rises towards the chest wall."""
    x, y = grid()
    u = np.clip(side * (x - MIDLINE) / body.lung_width, 0, 1.1)
    level = base - rng.uniform(-0.03, 0.06) - rng.uniform(0.1, 0.2) * u**3
    return EFFUSION_CONTRAST * step(y - level, 0.012)


def draw_nodule(rng: Rng, body: Body, side: int, base: float) -> Map:
    """A round spot of 1 to 2.5 cm."""
    radius = rng.uniform(0.012, 0.028)
    x = MIDLINE + side * body.lung_width * rng.uniform(0.4, 0.85)
    return NODULE_CONTRAST * ellipse(x, rng.uniform(body.apex + 0.1, base - 0.05), radius, radius, 0, 1.5)


def draw_haze(rng: Rng, body: Body, side: int, base: float) -> Map:
    """A faint haze without a border, as from congestion or a thick chest wall; easily mistaken for an opacity."""
    x = MIDLINE + side * body.lung_width * rng.uniform(0.3, 0.6)
    y = rng.uniform(body.apex + 0.3, base - 0.1)
    veil = ellipse(x, y, rng.uniform(0.08, 0.15), rng.uniform(0.1, 0.22), 0, 14)
    return np.asarray(HAZE_CONTRAST * rng.uniform(0.6, 1.4) * veil, dtype=np.float32)


def draw_plate(rng: Rng, body: Body, side: int, base: float) -> Map:
    """Plate atelectasis: a near-horizontal streak low in the lung."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    medial, lateral = np.sort(rng.uniform(0.25, 0.95, 2))
    x = MIDLINE + side * body.lung_width * np.linspace(medial - 0.1, lateral + 0.05, 12)
    slope, bend = rng.normal(0, 0.15), rng.normal(0, 0.01)
    y = base - rng.uniform(0.03, 0.14) + slope * (x - x.mean()) + bend * np.sin(np.linspace(0, np.pi, 12))
    stroke(layer, np.stack([x, y], axis=1), rng.uniform(0.008, 0.016), PLATE_CONTRAST)
    return blur(layer, 1.2)


def draw_pacemaker(rng: Rng, body: Body, base: float) -> Map:
    """A generator under the clavicle and its lead into the heart."""
    x, y = MIDLINE + 0.29 + rng.normal(0, 0.01), body.apex + 0.12
    layer = METAL * ellipse(x, y, 0.045, 0.035, 20, 0.8)
    path = np.array([(x, y), (MIDLINE + 0.15, y - 0.06), (MIDLINE, y + 0.05), (MIDLINE + 0.02, base - 0.05)])
    line = np.zeros_like(layer)
    stroke(line, curve(path), 0.005, 0.7 * METAL)
    return np.maximum(layer, blur(line, 0.5))


def draw_tubes(rng: Rng, body: Body, base: float) -> Map:
    """Lines in a bedside image: breathing tube, central venous line, wires and electrodes."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    side = int(rng.choice(SIDES))
    windpipe = [(MIDLINE, -0.1), (MIDLINE + 0.004, body.apex + rng.uniform(0.05, 0.15))]
    line = [(MIDLINE + side * 0.16, -0.1), (MIDLINE + side * 0.1, 0.13), (MIDLINE - 0.05, 0.26), (MIDLINE - 0.055, 0.4)]
    wire = [(MIDLINE + side * rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.9)) for _ in range(4)]
    for path, width in ((windpipe, 0.012), (line, 0.005), (wire, 0.004)):
        if rng.random() < 0.65:
            stroke(layer, curve(np.array(path)), width, TUBE)
    for _ in range(rng.integers(0, 4)):
        layer += TUBE * ellipse(MIDLINE + rng.uniform(-0.35, 0.35), rng.uniform(0.15, 0.9), 0.012, 0.012, 0, 0.6)
    return blur(layer, 0.6)


DRAW_IN_LUNG = {"effusion": draw_effusion, "haze": draw_haze, "nodule": draw_nodule, "plate": draw_plate}
