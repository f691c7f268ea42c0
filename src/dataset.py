"""One sample: a cached image with its box and class; and the loaders that batch them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from augment import Augmentation
from boxes import xywh_to_xyxy, xyxy_to_cxcywh
from competition import BOX_COLUMNS, CLASSES, largest_box
from files import UserError
from images import original_to_cached, read_png


@dataclass(frozen=True)
class Samples:
    """Images of one split, row by row; boxes in pixels of the cached image."""

    ids: list[str]
    paths: list[Path]
    boxes_xyxy: NDArray[np.float64]  # (n, 4), the largest box; NaN where there is none
    labels: NDArray[np.int64]  # (n,) class index; opacity is the last class
    geometry: NDArray[np.float64]  # (n, 4) scale_x, scale_y, pad_x, pad_y; see images.original_to_cached
    shapes: NDArray[np.int64]  # (n, 2) rows, cols of the original image


def make_samples(ids: pd.Series, index: pd.DataFrame, cache: Path, truth: pd.DataFrame, labels: Any = 0) -> Samples:
    """Join patientIds, the cache's index (rows of one split, status ok), truth boxes and class indices.

    cache: the folder with the PNGs. Raises UserError for an image that is not in the cache.
    """
    images = ids.to_frame("patientId")
    table = images.merge(index, on="patientId", how="left", validate="one_to_one")
    absent = table.loc[table["scale_x"].isna(), "patientId"]
    if len(absent):
        raise UserError(f"{cache}: {len(absent)} images are not cached, first {absent.iloc[0]}; run cache_images first")
    box = images.merge(largest_box(truth), on="patientId", how="left")[BOX_COLUMNS].to_numpy(dtype=float)
    geometry = table[["scale_x", "scale_y", "pad_x", "pad_y"]].to_numpy(dtype=float)
    return Samples(
        ids=table["patientId"].tolist(),
        paths=[cache / f"{name}.png" for name in table["patientId"]],
        boxes_xyxy=original_to_cached(xywh_to_xyxy(box), geometry),
        labels=np.broadcast_to(np.asarray(labels, dtype=np.int64), len(table)),
        geometry=geometry,
        shapes=table[["rows", "cols"]].to_numpy(dtype=np.int64),
    )


def class_index(folds: pd.DataFrame, n_classes: int) -> NDArray[np.int64]:
    """(n,) class of each row of folds.csv: with 2 classes 0 / 1 = opacity, with 3 the position in CLASSES.

    Raises UserError if three classes are asked for and the class of an image is not known.
    """
    if n_classes == 2:
        return folds["target"].to_numpy(dtype=np.int64)
    index: pd.Series = folds["class"].map({name: k for k, name in enumerate(CLASSES)})
    if index.isna().any():
        name = folds.loc[index.isna(), "patientId"].iloc[0]
        raise UserError(f"folds.csv: no class for {name}; say classes=2, or add the detailed class info and new folds")
    return np.asarray(index, dtype=np.int64)


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples as tensors. With an augmentation, image k of epoch e always changes in the same way."""

    def __init__(self, samples: Samples, augmentation: Augmentation | None = None, seed: tuple[int, ...] = ()) -> None:
        self.samples, self.augmentation, self.seed = samples, augmentation, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples.ids)

    def __getitem__(self, k: int) -> dict[str, Any]:
        """image (1, S, S) uint8; box (4,) float32 cxcywh in [0, 1], zeros without one; has_box; label; row."""
        image, box = read_png(self.samples.paths[k]), self.samples.boxes_xyxy[k]
        if self.augmentation:
            # seeded by image and epoch, not by worker: the number of workers changes nothing
            rng = np.random.default_rng([*self.seed, self.epoch, k])
            image, box = self.augmentation(image, box, rng)
        box_cxcywh = xyxy_to_cxcywh(box) / len(image)
        has_box = bool(np.all(box_cxcywh[2:] > 0))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "box": torch.tensor(box_cxcywh if has_box else np.zeros(4), dtype=torch.float32),
            "has_box": has_box,
            "label": int(self.samples.labels[k]),
            "row": k,
        }


class EpochSampler(Sampler[int]):
    """A new order each epoch that depends on the seed and the epoch alone."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([*self.dataset.seed, self.dataset.epoch])
        return iter(rng.permutation(len(self.dataset)).tolist())


def make_loader(dataset: ImageDataset, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """Batches: shuffled and whole where the dataset augments, in order and complete where it does not.

    A last training batch that is not full is dropped: batch statistics of a single image are none.
    """
    training = dataset.augmentation is not None
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(dataset) if training else None,
        drop_last=training,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
