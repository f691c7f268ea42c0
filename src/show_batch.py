"""Draw augmented training images with their boxes, as the network sees them: a row for each of four epochs.

python src/show_batch.py [fold=0] [size=...] [rotate=...]   -> working/<name>/batch.png
"""

from pathlib import Path

import numpy as np

from rsna.startup import run
from rsna.core.config import Config
from rsna.data.boxes import cxcywh_to_xyxy
from rsna.data.cache import write_png
from rsna.data.competition import CLASSES
from rsna.data.dataset import ImageDataset, load_fold
from rsna.reporting.montage import GREEN, Picture, draw_tile, stack_rows
from rsna.training.loop import make_train_set

PER_ROW, EPOCHS = 6, 4


def main(cfg: Config) -> None:
    fold = cfg.fold_list[0]
    dataset = make_train_set(cfg, fold, load_fold(cfg, fold).train)
    rows = choose(dataset)
    names = CLASSES if cfg.num_classes == 3 else ["no opacity", "opacity"]
    path = Path(cfg.run_dir) / "batch.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(stack_rows([draw_epoch(dataset, rows, epoch, names) for epoch in range(EPOCHS)]), path)
    print(f"the same images in {EPOCHS} epochs, one row each, as the network sees them -> {path}")


def choose(dataset: ImageDataset) -> list[int]:
    """Rows of some training images, two thirds of them with a box; the same for the same settings."""
    rng = np.random.default_rng(dataset.seed)
    order = rng.permutation(len(dataset))
    positive = ~np.isnan(dataset.samples.boxes_xyxy[order, 0])
    with_box, without = order[positive], order[~positive]
    n_with = max(PER_ROW * 2 // 3, PER_ROW - len(without))
    return [*with_box[:n_with].tolist(), *without[: PER_ROW - n_with].tolist()]


def draw_epoch(dataset: ImageDataset, rows: list[int], epoch: int, names: list[str]) -> list[Picture]:
    """One row of tiles: these images as they are changed in an epoch."""
    tiles = []
    for sample in (dataset[epoch, row] for row in rows):
        image = sample["image"][0].numpy()
        boxes = cxcywh_to_xyxy(sample["box"].numpy().astype(float)[None])[: int(sample["has_box"])] * len(image)
        tiles.append(draw_tile(image, [(boxes, GREEN)], f"epoch {epoch + 1}", names[sample["label"]]))
    return tiles


if __name__ == "__main__":
    run(main)
