"""Augmented training images with their boxes on one sheet, as the network sees them."""

import numpy as np

from rsna.core.config import Config
from rsna.data.boxes import box_area, cxcywh_to_xyxy
from rsna.data.competition import CLASSES
from rsna.data.dataset import ImageDataset, load_fold
from rsna.reporting.montage import GREEN, Picture, draw_tile, stack_rows
from rsna.training.fold import make_train_set

PER_ROW, EPOCHS = 6, 4


def draw_batch_sheet(cfg: Config, fold: int) -> Picture:
    """The same images of a fold in several epochs, one row each."""
    dataset = make_train_set(cfg, fold, load_fold(cfg, fold).train)
    rows = choose_rows(dataset)
    names = CLASSES if cfg.num_classes == 3 else ["no opacity", "opacity"]
    return stack_rows([draw_epoch(dataset, rows, epoch, names) for epoch in range(EPOCHS)])


def choose_rows(dataset: ImageDataset) -> list[int]:
    """Rows of some training images, two thirds of them with a box; the same for the same settings."""
    order = np.random.default_rng(dataset.seed).permutation(len(dataset))
    positive = np.array([len(boxes) > 0 for boxes in dataset.samples.boxes_xyxy])[order]
    with_box, without = order[positive], order[~positive]
    n_with = max(PER_ROW * 2 // 3, PER_ROW - len(without))
    return [*with_box[:n_with].tolist(), *without[: PER_ROW - n_with].tolist()]


def draw_epoch(dataset: ImageDataset, rows: list[int], epoch: int, names: list[str]) -> list[Picture]:
    """One row of tiles: these images as they are augmented in an epoch, with all their boxes."""
    tiles = []
    for sample in (dataset[epoch, row] for row in rows):
        image = sample["image"][0].numpy()
        boxes_xyxy = cxcywh_to_xyxy(sample["boxes"].numpy().astype(float)) * len(image)
        inside = boxes_xyxy[box_area(boxes_xyxy) > 0]
        tiles.append(draw_tile(image, [(inside, GREEN)], f"epoch {epoch + 1}", names[sample["label"]]))
    return tiles
