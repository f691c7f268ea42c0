"""How often infer flags test images that no network has seen, and how often the same images once they are changed.

    python bench/outliers.py [quick=true] [key=value ...]     OMP_NUM_THREADS=1 on a shared machine

Makes a synthetic competition, trains a fold, and measures the distance of infer's check (inference/outliers.py). The
photographs are crops of the two that scikit-learn brings. Words are settings of the sequence (demo_test=, epochs=).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.core.command_line import parse
from rsna.data.cache import read_index
from rsna.data.letterbox import read_png
from rsna.inference.image_files import NewImage
from rsna.inference.new_images import dataset_of
from rsna.inference.outliers import both_sides, distances, embed, fit
from rsna.models.registry import settings_of

SRC = Path(__file__).resolve().parent.parent / "src"
QUICK = {"demo_train": "40", "demo_test": "20", "epochs": "1"}


def changed(images: np.ndarray) -> dict[str, np.ndarray]:
    """(n, S, S) uint8 test images, as they are and changed in several ways; and images of something else."""
    rng, n, size = np.random.default_rng(0), len(images), images.shape[1]
    photographs = []
    for k in range(n):
        grey = cv2.cvtColor(load_sample_images().images[k % 2], cv2.COLOR_RGB2GRAY)
        side = int(rng.integers(150, 400))
        top, left = (int(rng.integers(0, extent - side)) for extent in grey.shape)
        photographs.append(
            cv2.resize(grey[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
        )
    quarter = slice(size // 4, size - size // 4)
    noise = rng.integers(0, 256, images.shape).astype(np.uint8)
    return {
        "unchanged": images,
        "mirrored": images[:, :, ::-1],
        "inverted": 255 - images,
        "turned_by_90": np.rot90(images, axes=(1, 2)),
        "turned_by_180": np.rot90(images, 2, axes=(1, 2)),
        "left_half_black": np.where(np.arange(size) < size // 2, 0, images),
        "middle_enlarged": np.stack([cv2.resize(image[quarter, quarter], (size, size)) for image in images]),
        "noise": noise,
        "smooth_noise": np.stack([cv2.GaussianBlur(image, (0, 0), size / 16) for image in noise]),
        "photographs": np.stack(photographs),
    }


def main() -> None:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    settings = (QUICK if words.pop("quick", "") == "true" else {}) | {"jobs": "1", "fold": "0"} | words
    with tempfile.TemporaryDirectory() as root:
        typed = ["preset=demo", f"root={root}", *(f"{key}={value}" for key, value in settings.items())]
        for name in ("make_demo", "make_folds", "cache_images", "train"):
            subprocess.run([sys.executable, str(SRC / f"{name}.py"), *typed], check=True, stdout=subprocess.DEVNULL)
        cfg = parse(typed, settings_of)
        reference = fit(*(embed(cfg, side) for side in both_sides(cfg)))
        index = read_index(cfg.cache_dir, cfg.size)
        names = index.loc[index["split"] == "test", "patientId"]
        images = np.stack([read_png(cfg.cache_dir / "test" / f"{name}.png", cfg.size) for name in names])
        print(f"{len(images)} images of each kind; threshold from {reference['held_out']:.0f} held-out images")
        for kind, pixels in changed(images).items():
            squares = [np.ascontiguousarray(image, dtype=np.uint8) for image in pixels]
            dataset = dataset_of([NewImage(Path(str(k)), image.shape, [image]) for k, image in enumerate(squares)], 0)
            flagged = (distances(reference, embed(cfg, dataset)) > reference["threshold"]).mean()
            print(f"ratio flagged_of_{kind} {flagged:.3f}")


if __name__ == "__main__":
    main()
