"""A competition with bright squares on dark images, and a model that finds them without training."""

import numpy as np
import pandas as pd
import torch
from helpers.commands import run_command
from helpers.dicom_files import write_dicom
from torch import nn

from rsna.data.competition import LABEL_COLUMNS, LABELS_CSV, SAMPLE_CSV, TEST_IMAGES, TRAIN_IMAGES

DARK, BRIGHT = 20, 220
# rows, cols; square x, y, width, height. Multiples of a cached pixel at size 64; inside the view at scale 1.1
SQUARES = {
    "a": ((1024, 1024), (128, 256, 320, 224)),
    "b": ((1024, 1024), (640, 96, 256, 512)),
    "c": ((1024, 512), (32, 480, 160, 352)),
    "d": ((512, 1024), (576, 64, 384, 160)),
    "e": ((2048, 2048), (1024, 1024, 640, 512)),
}


class BrightSquare(nn.Module):
    """Finds the edges from the brightness of the middle row and column, to subpixels; none in dark images."""

    def forward(self, images):
        return (images[:, 0].float() - DARK).clamp(min=0) / (BRIGHT - DARK)

    def decode(self, light):
        size = light.shape[-1]
        at = torch.arange(size) + 0.5
        edges = []
        for axis in (1, 2):
            profile = light.amax(dim=axis)
            width = profile.sum(dim=1)
            centre = (profile * at).sum(dim=1) / width.clamp(min=1e-6)
            edges.append((centre - width / 2, centre + width / 2))
        (left, right), (top, bottom) = edges
        score = light.amax(dim=(1, 2))[:, None]
        boxes = torch.stack([left, top, right, bottom], dim=1)[:, None] / size
        return boxes, score, torch.cat([1 - score, torch.zeros_like(score), score], dim=1)


def image_of(shape, square=None):
    """uint8 (rows, cols): a bright square on a dark image with a darker corner, so that there are several greys."""
    image = np.full(shape, DARK, np.uint8)
    image[: shape[0] // 4, : shape[1] // 4] = DARK // 2
    if square:
        x, y, width, height = square
        image[y : y + height, x : x + width] = BRIGHT
    return image


def make_competition(root):
    """Each square in a training and in a test image, and as many dark images."""
    rows, ids = [], []
    for split in (TRAIN_IMAGES, TEST_IMAGES):
        (root / "input" / split).mkdir(parents=True)
        for name, (shape, square) in SQUARES.items():
            write_dicom(root / "input" / split / f"{name}.dcm", image_of(shape, square))
            write_dicom(root / "input" / split / f"dark_{name}.dcm", image_of(shape))
    for name, (_, square) in SQUARES.items():
        rows += [(name, *square, 1), (f"dark_{name}", *[None] * 4, 0)]
        ids += [name, f"dark_{name}"]
    pd.DataFrame(rows, columns=LABEL_COLUMNS).to_csv(root / "input" / LABELS_CSV, index=False)
    sample = pd.DataFrame({"patientId": ids, "PredictionString": "0.5 0 0 100 100"})
    sample.to_csv(root / "input" / SAMPLE_CSV, index=False)


def cached(cfg):
    """The same config, after making the folds and the cache of its size."""
    for name, output in (("make_folds", cfg.folds_csv), ("cache_images", cfg.cache_dir / "index.csv")):
        if not output.is_file():
            done = run_command(name, f"root={cfg.root}", f"size={cfg.size}", "n_folds=2")
            assert done.returncode == 0, done.stderr
    return cfg
