"""Chest phantoms: `lay_out` plans a scene with its boxes, which is cheap; `render` makes the radiograph."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna.synthetic import anatomy, findings
from rsna.synthetic.anatomy import MIDLINE, SIDES, Body
from rsna.synthetic.canvas import CANVAS, Floats, Map, Rng, blur, cloud, ellipse, grid, step

SIDE = 1024  # side of the finished image, pixels, as in the challenge

# the differences between an AP image (lying, bedside) and a PA image (standing); fractions of the canvas or attenuation
INSPIRATION = {"AP": -0.055, "PA": 0.0}  # y of the diaphragm relative to full inspiration
HEART_SIZE = {"AP": 1.17, "PA": 1.0}  # in AP the heart is farther from the detector and looks larger
NOISE = {"AP": 5.0, "PA": 3.5}  # standard deviation of the grain, grey levels of 255
CONTRAST = {"AP": 0.86, "PA": 1.0}
FILM = 4.2  # steepness of the grey curve
CONTRAST_SPREAD, BRIGHTNESS_SPREAD = 0.10, 0.05
TUBE_CHANCE = {"AP": 0.55, "PA": 0.03}
ROTATION_SD, TRANSLATION_SD, SCALE_SD = 2.5, 0.018, 0.03  # degrees; fraction of the image; of the logarithm

# findings without a box, and their probability in an image of the class "No Lung Opacity / Not Normal"
DISTRACTORS = {"large heart": 0.35, "effusion": 0.35, "nodule": 0.25, "plate": 0.3, "haze": 0.3, "pacemaker": 0.12}
BESIDE_OPACITY = 0.5  # factor on these probabilities in an image with an opacity
LARGE_HEART = 1.25
BOX_JITTER = 4.0  # standard deviation of the borders that a radiologist draws, pixels
SMALLEST_BOX = 40.0  # smallest side of a box, pixels, as in the real labels


@dataclass(frozen=True)
class Case:
    """The specification of one image: the patient, the view and the findings."""

    sex: str  # F or M
    view: str  # AP or PA
    abnormal: bool  # whether there is any finding, including opacities
    n_boxes: int
    body_seed: tuple[int, int]  # the same for all images of a patient
    box_scale: float = 1.0  # factor on the sides of the opacities


@dataclass(frozen=True)
class Scene:
    """The layout of one image; maps are (CANVAS, CANVAS)."""

    case: Case
    body: Body
    base: float  # y of the diaphragm, fraction of the canvas
    lungs: dict[int, Map]
    opacity: Map  # attenuation that the opacities add
    boxes: Floats  # (n_boxes, 4) xywh, pixels of the finished image
    pose: Floats  # (2, 3), canvas pixels -> pixels of the finished image
    distractors: frozenset[str]


def lay_out(case: Case, rng: Rng) -> Scene:
    """Draw the geometry, the findings and the boxes of one image at random."""
    body = anatomy.draw_body(np.random.default_rng(case.body_seed), case.sex)
    base = body.base + INSPIRATION[case.view] + rng.normal(0, 0.015)
    lungs = {side: anatomy.lung_mask(body, side, base) for side in SIDES}
    pose = draw_pose(rng)
    distractors = draw_distractors(rng, case)
    opacity, boxes = np.zeros((CANVAS, CANVAS), np.float32), []
    faint = findings.SUBTLE_CONTRAST if rng.random() < findings.SUBTLE_SHARE else 1.0
    strength = np.exp(findings.OPACITY_CONTRAST_SPREAD * rng.standard_normal())
    contrast = float(faint * findings.OPACITY_CONTRAST * strength)
    for blob in findings.plan_blobs(rng, case.view, case.n_boxes, lungs, case.box_scale):
        shape = findings.opacity_shape(rng, blob, lungs[blob.side])
        boxes.append(visible_box(shape, pose, rng))
        # patchy, with a few darker bronchi inside
        texture = 1 + findings.OPACITY_TEXTURE * (cloud(rng, 9) + 0.5 * cloud(rng, 28))
        opacity = np.maximum(opacity, (contrast * shape * np.clip(texture, 0.3, 1.7)).astype(np.float32))
    return Scene(case, body, base, lungs, opacity, np.array(boxes).reshape(-1, 4), pose, distractors)


def draw_distractors(rng: Rng, case: Case) -> frozenset[str]:
    """Names of the findings without a box: at least one if the image is abnormal without an opacity."""
    chances = rng.random(len(DISTRACTORS)) / (BESIDE_OPACITY if case.n_boxes else 1.0)
    chosen = [name for name, draw in zip(DISTRACTORS, chances, strict=True) if draw < DISTRACTORS[name]]
    if not chosen and not case.n_boxes:
        chosen = [str(rng.choice(list(DISTRACTORS)))]
    tubes = ["tubes"] if rng.random() < TUBE_CHANCE[case.view] else []
    return frozenset(chosen + tubes) if case.abnormal else frozenset()


def draw_pose(rng: Rng) -> Floats:
    """An affine map (2, 3) from canvas pixels to the finished image, slightly rotated, scaled and shifted."""
    scale = SIDE / CANVAS * float(np.exp(rng.normal(0, SCALE_SD)))
    matrix = np.array(cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), rng.normal(0, ROTATION_SD), scale), np.float64)
    matrix[:, 2] += (SIDE - CANVAS) / 2 + SIDE * rng.normal(0, TRANSLATION_SD, 2)
    return matrix


def warp(layer: Map, pose: Floats) -> Map:
    """Map a canvas layer to the finished image's pixels, (SIDE, SIDE); outside the canvas its border is repeated."""
    return np.asarray(cv2.warpAffine(layer, pose, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE))


def visible_box(shape: Map, pose: Floats, rng: Rng) -> Floats:
    """The box (4,) xywh that a radiologist might draw around an opacity: whole pixels, inside the image."""
    left, top, width, height = cv2.boundingRect((warp(shape, pose) > findings.VISIBLE).astype(np.uint8))
    borders = np.array([left, top, left + width, top + height]) + rng.normal(0, BOX_JITTER, 4)
    borders = np.clip(np.round(borders), 0, SIDE)
    size = np.maximum(borders[2:] - borders[:2], SMALLEST_BOX)
    return np.concatenate([np.minimum(borders[:2], SIDE - size), size])


def render(scene: Scene, rng: Rng) -> NDArray[np.uint8]:
    """The image of a scene, (SIDE, SIDE) uint8, MONOCHROME2: dense tissue is bright."""
    view = scene.case.view
    contrast = CONTRAST[view] * np.exp(rng.normal(0, CONTRAST_SPREAD))
    brightness = 0.5 + rng.normal(0, BRIGHTNESS_SPREAD)
    # the S-curve of film: most contrast in the middle, never fully black or white
    film = 255 * step(draw_density(scene, rng) - brightness, 1 / (FILM * contrast))
    grain = rng.standard_normal((SIDE, SIDE), np.float32)
    grey = warp(film, scene.pose) + NOISE[view] * (0.5 * grain + blur(grain, 0.8))
    image = np.clip(grey, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:  # the lead letter that many images have at the patient's left shoulder
        place = (int(rng.uniform(0.84, 0.92) * SIDE), int(rng.uniform(0.06, 0.12) * SIDE))
        cv2.putText(image, "L", place, cv2.FONT_HERSHEY_SIMPLEX, 2.0, 235, 5, cv2.LINE_AA)
    return image


def draw_density(scene: Scene, rng: Rng) -> Map:
    """Attenuation of the whole chest with its findings, on the canvas."""
    body, base, bedside = scene.body, scene.base, scene.case.view == "AP"
    lungs = np.maximum(scene.lungs[-1], scene.lungs[1])
    enlarged = HEART_SIZE[scene.case.view] * (LARGE_HEART if "large heart" in scene.distractors else 1.0)
    trunk = anatomy.draw_trunk(body, base)
    # the air in the lung reduces attenuation less towards the midline, where the lung is thin
    thickness = 0.45 + 0.55 * step(np.abs(grid()[0] - MIDLINE) - 0.085, 0.014)
    density: Map = trunk - anatomy.AIR_IN_LUNG * lungs * thickness * (1 + 0.06 * cloud(rng, 5))
    density += anatomy.draw_heart(body, base, enlarged)
    stomach_gas = anatomy.STOMACH_GAS * ellipse(MIDLINE + 0.6 * body.lung_width, base + 0.1, 0.055, 0.038, -15, 4)
    density += anatomy.draw_spine(body) + (1 - lungs) * stomach_gas
    thorax = blur(lungs, 8)
    # vessels are visible against air-filled lung, but not in a consolidation
    visible = 1 - np.clip(scene.opacity / findings.OPACITY_CONTRAST, 0, 1)
    for side in SIDES:
        breast = anatomy.BREAST * body.female * ellipse(MIDLINE + side * 0.24, 0.62, 0.15, 0.17, side * 10, 6)
        density += thorax * anatomy.draw_ribs(body, base, side) + breast
        density += np.minimum(1, trunk / anatomy.SOFT_TISSUE) * anatomy.draw_shoulders(body, side, bedside)
        density += scene.lungs[side] * visible * anatomy.draw_vessels(rng, body, side, base)
    return np.asarray(density + scene.opacity + draw_findings(scene, rng), dtype=np.float32)


def draw_findings(scene: Scene, rng: Rng) -> Map:
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    for name in sorted(scene.distractors & findings.DRAW_IN_LUNG.keys()):
        side = int(rng.choice(SIDES))
        layer += scene.lungs[side] * findings.DRAW_IN_LUNG[name](rng, scene.body, side, scene.base)
    if "pacemaker" in scene.distractors:
        layer += findings.draw_pacemaker(rng, scene.body, scene.base)
    if "tubes" in scene.distractors:
        layer += findings.draw_tubes(rng, scene.body, scene.base)
    return layer
