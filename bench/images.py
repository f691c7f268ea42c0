"""Made-up cached images for the benchmarks: what they show does not matter for speed."""

from pathlib import Path

import cv2
import numpy as np

from rsna.data.dataset import Samples
from rsna.data.letterbox import write_png


def make_images(folder: Path, n: int, size: int) -> Samples:
    """Smooth random images as PNG, every third with a box."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{size}_{k}.png" for k in range(n)]
    for path in paths:
        write_png(cv2.resize(rng.integers(0, 255, (16, 16), dtype=np.uint8), (size, size)), path)
    corner = rng.uniform(0.1, 0.5, (n, 2)) * size
    boxes = np.concatenate([corner, corner + size / 4], axis=1)
    positive = np.arange(n) % 3 == 0
    labels = np.where(positive, 2, np.arange(n) % 2)
    boxes_xyxy = [boxes[k : k + 1] if positive[k] else np.zeros((0, 4)) for k in range(n)]
    return Samples([path.stem for path in paths], paths, boxes_xyxy, labels, np.ones((n, 4)), np.full((n, 2), size))
