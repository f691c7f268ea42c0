"""Test-time augmentation: how an image is transformed before prediction, and how its boxes are mapped back."""

from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from rsna.data.boxes import Floats, hflip_boxes


@dataclass(frozen=True)
class TtaTransform:
    """One view of an image: optionally flipped left to right, and scaled about its centre."""

    flip: bool = False
    scale: float = 1.0

    @property
    def name(self) -> str:
        """The name in the column `view` of predictions: plain, hflip, plain_0.9, hflip_0.9."""
        return ("hflip" if self.flip else "plain") + ("" if self.scale == 1 else f"_{self.scale}")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, S, S) uint8 -> their views, of the same shape and dtype."""
        flipped = images.flip(-1) if self.flip else images
        if self.scale == 1:
            return flipped
        bilinear = vision.InterpolationMode.BILINEAR
        return vision.affine(flipped, 0.0, [0, 0], self.scale, [0.0, 0.0], interpolation=bilinear)

    def inverse(self, boxes_xyxy: Floats) -> Floats:
        """Boxes (..., 4) xyxy in [0, 1] of the view -> of the image; with scale < 1 they may lie outside [0, 1]."""
        unscaled = (boxes_xyxy - 0.5) / self.scale + 0.5
        return hflip_boxes(unscaled, 1.0) if self.flip else unscaled


def parse_transforms(names: str, scales: str) -> list[TtaTransform]:
    """`plain,hflip` and `1.0,0.9` -> four transforms, the plain one first; validation.check has checked the text."""
    found = {TtaTransform(name == "hflip", float(scale)) for scale in scales.split(",") for name in names.split(",")}
    return sorted(found, key=lambda transform: (transform.flip, abs(transform.scale - 1), transform.scale))
