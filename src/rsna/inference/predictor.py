"""Predictions of a network: test-time views beside their inverses, and tables in original pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

from rsna.data.boxes import clip_boxes, hflip_boxes, xyxy_to_xywh
from rsna.data.competition import BOX_COLUMNS, with_empty_rows
from rsna.data.dataset import Samples
from rsna.data.letterbox import cached_to_original
from rsna.models.device import mixed_precision

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """One way to look at an image: perhaps mirrored, zoomed about its centre."""

    flip: bool = False
    zoom: float = 1.0

    def image(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> the same, as this view sees it."""
        seen = images.flip(-1) if self.flip else images
        if self.zoom == 1:
            return seen
        bilinear = vision.InterpolationMode.BILINEAR
        return vision.affine(seen, 0.0, [0, 0], self.zoom, [0.0, 0.0], interpolation=bilinear)

    def undo_boxes(self, boxes_xyxy: Floats) -> Floats:
        """(..., 4) xyxy in [0, 1] of the view -> of the image."""
        unzoomed = (boxes_xyxy - 0.5) / self.zoom + 0.5
        return hflip_boxes(unzoomed, 1.0) if self.flip else unzoomed


def parse_views(names: str, zooms: str) -> list[View]:
    """`plain,hflip` and `1.0,0.9` -> four views, the plain one first; the config has checked the words."""
    views = {View(name == "hflip", float(zoom)) for zoom in zooms.split(",") for name in names.split(",")}
    return sorted(views, key=lambda view: (view.flip, abs(view.zoom - 1), view.zoom))


@torch.inference_mode()
def predict_views(
    model: Any, loader: DataLoader[Any], views: Sequence[View], device: torch.device, precision: torch.dtype, title: str
) -> list[tuple[Floats, Floats]]:
    """For each view boxes (N, n, 4) xyxy in [0, 1] of the image itself, and confidences (N, n).

    model: a module with forward and decode, see models.protocol.
    """
    model.eval()
    collected: list[list[tuple[Floats, Floats]]] = [[] for _ in views]
    for batch in tqdm(loader, desc=title, unit="batch", leave=False):
        images = batch["image"].to(device, non_blocking=True)
        for view, parts in zip(views, collected, strict=True):
            seen = view.image(images)  # in full precision: 8 bits cannot say where a pixel comes from
            with mixed_precision(device, precision):
                outputs = model(seen)
            boxes, confidences, _ = model.decode(outputs)
            parts.append((view.undo_boxes(to_numpy(boxes)), to_numpy(confidences)))
    return [(np.concatenate([b for b, _ in parts]), np.concatenate([c for _, c in parts])) for parts in collected]


def to_numpy(values: Tensor) -> Floats:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float64)


def prediction_table(samples: Samples, boxes_xyxy: Floats, confidences: Floats, size: int) -> pd.DataFrame:
    """Boxes (N, n, 4) in [0, 1] of the network's input -> rows patientId, confidence, x, y, width, height.

    In original pixels, cut at the image's border; a box that is nowhere inside the image is left out, and an
    image that is left without boxes keeps one row with empty fields.
    """
    count = boxes_xyxy.shape[1]
    geometry = np.repeat(samples.geometry, count, axis=0)
    shapes = np.repeat(samples.shapes, count, axis=0)
    original = cached_to_original(boxes_xyxy.reshape(-1, 4) * size, geometry)
    clipped = np.stack([clip_boxes(box, cols, rows) for box, (rows, cols) in zip(original, shapes, strict=True)])
    table = pd.DataFrame(xyxy_to_xywh(clipped), columns=BOX_COLUMNS)
    table.insert(0, "confidence", confidences.reshape(-1))
    table.insert(0, "patientId", np.repeat(samples.ids, count))
    return with_empty_rows(table[(table["width"] > 0) & (table["height"] > 0)], samples.ids)
