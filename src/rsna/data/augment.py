"""Random augmentation of a training image and its boxes. Images are (S, S) uint8, boxes xyxy in their pixels."""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna.core.config import AugmentSettings
from rsna.data.boxes import Floats, affine_boxes, clip_boxes
from rsna.data.windowing import GreyImage


@dataclass(frozen=True)
class Augmentation(AugmentSettings):
    """Applies the augmentation settings to an image and its boxes."""

    def __call__(self, image: GreyImage, boxes_xyxy: Floats, rng: np.random.Generator) -> tuple[GreyImage, Floats]:
        """The augmented image and its boxes (n, 4), in the same order, clipped; a box outside has a side of 0."""
        matrix, table = self.random_matrix(len(image), rng), self.random_tones(rng)
        moved = clip_boxes(affine_boxes(boxes_xyxy, matrix), len(image), len(image))
        return cv2.LUT(warp(image, matrix), table).astype(np.uint8, copy=False), moved

    def random_matrix(self, size: int, rng: np.random.Generator) -> Floats:
        """A random affine map (2, 3) of pixel coordinates: flip, rotation and scale about the centre, translation."""
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        scale = rng.uniform(1 - self.scale, 1 + self.scale)
        offset = rng.uniform(-self.translate, self.translate, 2) * size
        mirror = -1.0 if rng.random() < self.flip else 1.0
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror, 1.0])
        centre = np.array([size / 2, size / 2])
        return np.column_stack([linear, centre + offset - linear @ centre])

    def random_tones(self, rng: np.random.Generator) -> GreyImage:
        """A random lookup table (256,) of grey levels: gamma, contrast about the middle, brightness."""
        brightness, contrast, gamma = rng.uniform(-self.brightness_contrast, self.brightness_contrast, 3)
        tone = np.linspace(0, 1, 256) ** np.exp(gamma)
        tone = (tone - 0.5) * (1 + contrast) + 0.5 + brightness / 2
        return np.clip(np.rint(tone * 255), 0, 255).astype(np.uint8)


def warp(image: GreyImage, matrix: Floats) -> GreyImage:
    """Apply an affine map (2, 3) to an image; black outside. In its coordinates, pixel 0 spans 0 to 1."""
    half = np.array([0.5, 0.5])  # in OpenCV's coordinates, the centre of pixel 0 is at 0
    centred = np.column_stack([matrix[:, :2], matrix[:, :2] @ half + matrix[:, 2] - half])
    return cv2.warpAffine(image, centred, image.shape[::-1], flags=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
