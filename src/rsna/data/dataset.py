"""One sample: a cached image with its box and class; the two sides of a fold; and the loaders that batch them."""

import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.data.augment import Augmentation
from rsna.data.boxes import xywh_to_xyxy, xyxy_to_cxcywh
from rsna.data.cache import read_index, read_png
from rsna.data.competition import BOX_COLUMNS, CLASSES, LABELS_CSV, largest_box, read_folds, read_labels, truth_boxes
from rsna.data.letterbox import original_to_cached


@dataclass(frozen=True)
class Samples:
    """Images of one split, row by row; boxes in pixels of the cached image."""

    ids: list[str]
    paths: list[Path]
    boxes_xyxy: NDArray[np.float64]  # (n, 4), the largest box; NaN where there is none
    labels: NDArray[np.int64]  # (n,) class index; opacity is the last class
    geometry: NDArray[np.float64]  # (n, 4) scale_x, scale_y, pad_x, pad_y; see images.original_to_cached
    shapes: NDArray[np.int64]  # (n, 2) rows, cols of the original image

    def side(self, k: int) -> int:
        """The side of cached image k: its longer side fills it."""
        return round(max(self.shapes[k][::-1] * self.geometry[k][:2]))


def make_samples(ids: pd.Series, index: pd.DataFrame, cache: Path, truth: pd.DataFrame, labels: Any = 0) -> Samples:
    """Join patientIds, the cache's index (rows of one split, status ok), truth boxes and class indices.

    cache: the folder with the PNGs. Raises UserError for an image that is not in the cache, and for a truth box
    that leaves its image.
    """
    images = ids.to_frame("patientId")
    table = images.merge(index, on="patientId", how="left", validate="one_to_one")
    absent = table.loc[table["scale_x"].isna(), "patientId"]
    if len(absent):
        raise UserError(
            f"{cache}: {len(absent)} images are not in it, first {absent.iloc[0]}: is their DICOM in input/? "
            "With it there run cache_images again; without it take their rows out of the labels and make new folds"
        )
    check_inside(truth, table)
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


def check_inside(truth: pd.DataFrame, images: pd.DataFrame) -> None:
    """Raise UserError for a truth box that leaves its image by a pixel; images: patientId, rows, cols."""
    boxes = truth.merge(images[["patientId", "rows", "cols"]], on="patientId")
    outside = (boxes["x"] + boxes["width"] > boxes["cols"] + 1) | (boxes["y"] + boxes["height"] > boxes["rows"] + 1)
    if outside.any():
        box = boxes[outside].iloc[0]
        corner = f"({box['x'] + box['width']:g}, {box['y'] + box['height']:g})"
        raise UserError(
            f"{LABELS_CSV}, patientId {box['patientId']}: the box ends at {corner}, beyond its image of "
            f"{box['cols']} x {box['rows']} pixels; {int(outside.sum())} such box(es); mend or remove them"
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
        raise UserError(
            f"folds.csv: no class for {name}; set num_classes=2, or add the detailed class info and new folds"
        )
    return np.asarray(index, dtype=np.int64)


@dataclass
class FoldData:
    """The two sides of a fold and the truth boxes of its validation images (original pixels)."""

    train: Samples
    valid: Samples
    truth: pd.DataFrame


def load_fold(cfg: Config, fold: int) -> FoldData:
    """The samples of a fold, from folds.csv, the labels and the cache; images that were refused are left out."""
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    index = read_index(cfg.cache_dir, cfg.size)
    usable = index[(index["split"] == "train") & (index["status"] == "ok")]
    refused = set(index.loc[(index["split"] == "train") & (index["status"] != "ok"), "patientId"])
    folds = folds[~folds["patientId"].isin(refused)]
    parts = []
    for side in (folds["fold"] != fold, folds["fold"] == fold):
        images = folds[side].reset_index(drop=True)
        if images.empty:
            raise UserError(f"{cfg.folds_csv}: fold {fold} leaves nothing to train or to validate on")
        labels = class_index(images, cfg.num_classes)
        parts.append(make_samples(images["patientId"], usable, cfg.cache_dir / "train", truth, labels))
    train, valid = parts
    print(f"fold {fold}: trains on {len(train.ids)} images, validates on {len(valid.ids)}, {len(refused)} refused")
    return FoldData(train, valid, truth[truth["patientId"].isin(valid.ids)])


class ImageMemory:
    """Cached images, each decoded once and then kept, by whichever process needs it first.

    Anonymous memory that forked loader processes share: unlike /dev/shm it has no small limit in containers. A page
    takes memory once it is written.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.images = np.frombuffer(mmap.mmap(-1, len(paths) * size * size), np.uint8).reshape(-1, size, size)
        self.decoded = np.frombuffer(mmap.mmap(-1, len(paths)), np.uint8)

    def read(self, k: int) -> NDArray[np.uint8]:
        """Image k, (S, S) uint8. Raises UserError as images.read_png does."""
        if not self.decoded[k]:
            self.images[k] = read_png(self.paths[k], self.images.shape[1])
            # two processes may both decode an image; they write the same bytes, and the mark comes last
            self.decoded[k] = 1
        return self.images[k]


def memory_for(data: FoldData, size: int, share: float) -> list[ImageMemory | None]:
    """Memory for the training and the validation images, if together they take no more than this share of all.

    Not where loader processes do not share it: they do if they are forked, see make_loader.
    """
    sides = (data.train.paths, data.valid.paths)
    if sys.platform != "linux" or sum(map(len, sides)) * size * size > share * machine_memory():
        return [None, None]
    return [ImageMemory(paths, size) for paths in sides]


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less in a container with a limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    stated = [path.read_text().strip() for path in limits if path.is_file()]
    return min([physical, *(int(limit) for limit in stated if limit.isdigit())])


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples as tensors: dataset[k] as they are, dataset[epoch, k] as the augmentation changes them in that epoch."""

    def __init__(
        self,
        samples: Samples,
        augmentation: Augmentation | None = None,
        seed: tuple[int, ...] = (),
        memory: ImageMemory | None = None,
    ) -> None:
        self.samples, self.augmentation, self.seed, self.memory = samples, augmentation, seed, memory

    def __len__(self) -> int:
        return len(self.samples.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """image (1, S, S) uint8; box (4,) float32 cxcywh in [0, 1], zeros without one; has_box; label; row."""
        epoch, k = key if isinstance(key, tuple) else (None, key)
        image = self.memory.read(k) if self.memory else read_png(self.samples.paths[k], self.samples.side(k))
        box = self.samples.boxes_xyxy[k]
        if self.augmentation and epoch is not None:
            # seeded by image and epoch, not by worker: the number of workers changes nothing
            rng = np.random.default_rng([*self.seed, epoch, k])
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


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, image), epoch after epoch; the order in each depends on the seed and the epoch alone.

    One stream over all epochs: loader processes begin the next epoch while the last one is validated. Started anew for
    each, they would let a GPU wait for its first batch; in short epochs of large batches a fifth of the time.
    A last batch of an epoch that is not full is left out: batch statistics of a single image are none.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int, epochs: range) -> None:
        self.n_images, self.seed, self.epochs = len(dataset), dataset.seed, epochs
        self.batch_size = min(batch_size, self.n_images)

    @property
    def steps(self) -> int:
        """Batches of one epoch."""
        return self.n_images // self.batch_size

    def __len__(self) -> int:
        return self.steps * len(self.epochs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.n_images)
            for rows in order[: self.steps * self.batch_size].reshape(self.steps, -1).tolist():
                yield [(epoch, row) for row in rows]


def make_loader(
    dataset: ImageDataset, batches: int | EpochBatches, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Batches as EpochBatches says; or, given their size, all images once, in order and as they are.

    With loader processes OpenCV keeps to one thread from here on, in this process too.
    """
    if workers:
        # its threads do not survive a fork: a process that inherits them hangs; nor need processes threads of their own
        one_thread()
    how = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    return DataLoader(
        dataset,
        **how,
        num_workers=workers,
        worker_init_fn=one_thread,
        # starting a process per core costs a second or two, which each validation would pay again
        persistent_workers=workers > 0,
        # forked processes share ImageMemory; newer Pythons start them otherwise unless told
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
    )


def one_thread(_: int = 0) -> None:
    cv2.setNumThreads(1)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
