"""Samples: cached images with their boxes and classes; the training and validation part of a fold; their tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rsna.core.artifacts import require_upstream
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.sources import INDEX_CSV
from rsna.data.augment import Augmentation
from rsna.data.boxes import Floats, xywh_to_xyxy, xyxy_to_cxcywh
from rsna.data.cache import read_index
from rsna.data.competition import BOX_COLUMNS, CLASSES, LABELS_CSV, read_folds, read_truth
from rsna.data.letterbox import GEOMETRY_COLUMNS, original_to_cached, read_png


@dataclass(frozen=True)
class Samples:
    """n cached images with their boxes and classes, row by row."""

    ids: list[str]
    paths: list[Path]
    boxes_xyxy: list[Floats]  # per image (n_k, 4) in cached pixels, largest (in original pixels) first; n_k may be 0
    labels: NDArray[np.int64]  # (n,) class index; opacity is the last class
    geometry: Floats  # (n, 4) scale_x, scale_y, pad_x, pad_y; see letterbox.original_to_cached
    shapes: NDArray[np.int64]  # (n, 2) rows, cols of the original image
    hashes: Sequence[str] = ()  # of the PNGs, from the cache's index; empty: they are not checked


Reader = Callable[[int], NDArray[np.uint8]]  # k -> image k (S, S)
NO_BOXES = pd.DataFrame(columns=["patientId", *BOX_COLUMNS], dtype=object)


def make_samples(
    ids: pd.Series, index: pd.DataFrame, cache: Path, truth: pd.DataFrame = NO_BOXES, labels: Any = 0
) -> Samples:
    """Join patientIds with their rows of the cache's index, their true boxes and class indices.

    index: rows of one split; cache: the folder of the PNGs; truth: xywh in original pixels. Raises UserError if an
    image is not in the cache or was refused, or if a true box extends beyond its image.
    """
    table = ids.to_frame("patientId").merge(index, on="patientId", how="left", validate="one_to_one")
    absent = table.loc[table["scale_x"].isna(), "patientId"]
    if len(absent):
        problem = f"{len(absent)} images are not in it, first {absent.iloc[0]}: is their DICOM in input/?"
        remedy = "If it is, rerun cache_images; if not, remove their rows from the labels and make new folds"
        raise UserError(f"{cache}: {problem} {remedy}")
    check_inside(truth, table)
    geometry = table[GEOMETRY_COLUMNS].to_numpy(dtype=float)
    return Samples(
        ids=table["patientId"].tolist(),
        paths=[cache / f"{name}.png" for name in table["patientId"]],
        boxes_xyxy=boxes_by_image(truth, table["patientId"], geometry),
        labels=np.broadcast_to(np.asarray(labels, dtype=np.int64), len(table)),
        geometry=geometry,
        shapes=table[["rows", "cols"]].to_numpy(dtype=np.int64),
        hashes=table["png_hash"].astype(object).fillna("").map(str).tolist(),
    )


def boxes_by_image(truth: pd.DataFrame, ids: pd.Series, geometry: Floats) -> list[Floats]:
    """For each of `ids` its boxes (n_k, 4) xyxy in cached pixels, by decreasing area in original pixels; stable."""
    truth = truth[truth["patientId"].isin(ids)]
    row = pd.Index(ids).get_indexer(truth["patientId"])
    boxes_xywh = truth[BOX_COLUMNS].to_numpy(dtype=float)
    order = np.lexsort((-boxes_xywh[:, 2] * boxes_xywh[:, 3], row))
    boxes_xyxy = original_to_cached(xywh_to_xyxy(boxes_xywh[order]), geometry[row[order]])
    bounds = np.searchsorted(row[order], np.arange(len(ids) + 1)).tolist()
    return [boxes_xyxy[start:end] for start, end in pairwise(bounds)]


def check_inside(truth: pd.DataFrame, images: pd.DataFrame) -> None:
    """Raise UserError if a true box extends beyond its image by more than a pixel; images: patientId, rows, cols."""
    boxes = truth.merge(images[["patientId", "rows", "cols"]], on="patientId")
    outside = (boxes["x"] + boxes["width"] > boxes["cols"] + 1) | (boxes["y"] + boxes["height"] > boxes["rows"] + 1)
    if outside.any():
        box = boxes[outside].iloc[0]
        corner = f"({box['x'] + box['width']:g}, {box['y'] + box['height']:g})"
        problem = f"the box ends at {corner}, beyond its image of {box['cols']} x {box['rows']} pixels"
        count = f"{int(outside.sum())} such box(es); fix or remove them"
        raise UserError(f"{LABELS_CSV}, patientId {box['patientId']}: {problem}; {count}")


def class_index(folds: pd.DataFrame, num_classes: int) -> NDArray[np.int64]:
    """The class index (n,) of each row of folds.csv. Raises UserError if a class is unknown.

    With 2 classes 1 is opacity; with 3 it is the index into CLASSES.
    """
    if num_classes == 2:
        return folds["target"].to_numpy(dtype=np.int64)
    index = pd.Index(CLASSES).get_indexer(pd.Index(folds["class"]))
    if (index < 0).any():
        problem = f"no class for {folds.loc[index < 0, 'patientId'].iloc[0]}"
        raise UserError(f"folds.csv: {problem}; set num_classes=2, or add the detailed class info and make new folds")
    return index.astype(np.int64)


@dataclass
class FoldData:
    """The training and the validation images of a fold."""

    train: Samples
    valid: Samples
    truth: pd.DataFrame  # true boxes of the validation images, xywh in original pixels
    train_people: Sequence[str] = ()  # sorted; from the column group of folds.csv
    valid_people: Sequence[str] = ()


def load_fold(cfg: Config, fold: int) -> FoldData:
    """Load a fold from folds.csv, the labels and the cache, without the images that the cache refused.

    Raises UserError if a file is missing or broken, or if no image is left to train or validate on.
    """
    require_upstream(cfg, "train", fold)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    truth = read_truth(Path(cfg.input))
    index = read_index(cfg.cache_dir, cfg.size, "train")
    refused = set(index.loc[index["status"] != "ok", "patientId"])
    folds = folds[~folds["patientId"].isin(refused)]
    parts, people = [], []
    for side in (folds["fold"] != fold, folds["fold"] == fold):
        images = folds[side].reset_index(drop=True)
        if images.empty:
            problem = f"fold {fold} leaves nothing to train or to validate on"
            if refused:
                problem += f"; {len(refused)} images were refused, see {cfg.cache_dir / INDEX_CSV}"
            raise UserError(f"{cfg.folds_csv}: {problem}")
        labels = class_index(images, cfg.num_classes)
        parts.append(make_samples(images["patientId"], index, cfg.cache_dir / "train", truth, labels))
        people.append(sorted(set(images["group"].astype(str))))
    train, valid = parts
    print(f"fold {fold}: trains on {len(train.ids)} images, validates on {len(valid.ids)}, {len(refused)} refused")
    return FoldData(train, valid, truth[truth["patientId"].isin(valid.ids)], *people)


@dataclass(eq=False)
class ImageDataset(Dataset[dict[str, Any]]):
    """Samples as tensors: dataset[k] is not augmented, dataset[epoch, k] has the augmentation of that epoch."""

    samples: Samples
    augmentation: Augmentation | None = None
    seed: tuple[int, ...] = ()
    read: Reader | None = None  # None: decode an image's PNG each time

    def decode(self, k: int) -> NDArray[np.uint8]:
        # the longer side of the original fills the cached square
        side = round(max(self.samples.shapes[k][::-1] * self.samples.geometry[k][:2]))
        return read_png(self.samples.paths[k], side, *self.samples.hashes[k : k + 1])

    def __len__(self) -> int:
        return len(self.samples.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """image (1, S, S) uint8; boxes (n, 4) float32 cxcywh in [0, 1]; label; row, the image's index.

        A box that the augmentation moved out of the image has a side of 0.
        """
        epoch, k = key if isinstance(key, tuple) else (None, key)
        image, boxes_xyxy = (self.read or self.decode)(k), self.samples.boxes_xyxy[k]
        if self.augmentation and epoch is not None:
            # seeded by image and epoch, so that the number of workers does not matter
            rng = np.random.default_rng([*self.seed, epoch, k])
            image, boxes_xyxy = self.augmentation(image, boxes_xyxy, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "boxes": torch.from_numpy(xyxy_to_cxcywh(boxes_xyxy) / len(image)).float(),
            "label": int(self.samples.labels[k]),
            "row": k,
        }
