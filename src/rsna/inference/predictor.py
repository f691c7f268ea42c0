"""Predict with one fold: for each test-time view of an image, boxes in original pixels and class probabilities.

Nothing is fused here; inference/ensemble.py does that. The result depends only on config and files.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from rsna.core import artifacts
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import ABSENT
from rsna.core.locks import file_lock
from rsna.core.sources import hash_of
from rsna.core.stages import FREE_TO_USERS, SAMPLE, TEST_IMAGES, files_of
from rsna.core.tables import write_table
from rsna.data.boxes import Floats, xyxy_to_xywh
from rsna.data.cache import read_index
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, read_folds, read_sample, with_empty_rows
from rsna.data.dataset import ImageDataset, Samples, make_samples
from rsna.data.letterbox import cached_to_original
from rsna.data.loader import make_loader
from rsna.execution.processes import count_workers
from rsna.inference.tta import TtaTransform, parse_transforms
from rsna.models.checkpoint import load_checkpoint
from rsna.models.device import explain_failures, mixed_precision, pick_device, pick_precision
from rsna.models.registry import build_model

VIEW_COLUMNS = ["patientId", "view", *PREDICTION_COLUMNS[1:]]
Tables = tuple[pd.DataFrame, pd.DataFrame]  # VIEW_COLUMNS, one row per box; class probabilities, one row per image
Views = list[tuple[Floats, Floats, Floats]]  # per transform: boxes (N, n, 4), scores (N, n), class probabilities (N, c)
# number of classes -> probability columns of {valid,test}_images.csv, in the order of the network's classes
PROBABILITY_COLUMNS = {2: ["p_negative", "p_opacity"], 3: ["p_normal", "p_not_normal", "p_opacity"]}


def predict_fold(cfg: Config, fold: int) -> bool:
    """Write the fold's {valid,test}.csv and {valid,test}_images.csv, with rows per view; False if they are current.

    With only_test=true it writes the test tables only. Raises UserError, before any file is replaced, if an input is
    missing, unfinished or was made with other settings.
    """
    with file_lock(cfg.fold_dir(fold), wait=cfg.engine == "ray"):
        parts = images_to_predict(cfg, fold)
        if artifacts.is_current(cfg, "predict", fold):
            return False
        made = manifest_after(cfg, fold)
        model = load_model(cfg, fold)
        artifacts.withdraw(cfg, "predict", fold)
        for name, (split, ids) in parts.items():
            boxes, images = predict_images(cfg, model, ids, split, f"fold {fold} {name}")
            write_table(boxes, cfg.fold_dir(fold) / f"{name}.csv")
            write_table(images, cfg.fold_dir(fold) / f"{name}_images.csv")
        artifacts.record(cfg, "predict", fold, made)
    print(f"fold {fold}: predicted -> {', '.join(f'{name}.csv' for name in parts)} in {cfg.fold_dir(fold)}")
    return True


def images_to_predict(cfg: Config, fold: int) -> dict[str, tuple[str, list[str]]]:
    """Table name -> (folder in the cache, patientIds). Raises UserError if a file is missing or broken."""
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    read_index(cfg.cache_dir, cfg.size)
    valid = {"valid": ("train", folds.loc[folds["fold"] == fold, "patientId"].tolist())}
    test = {"test": ("test", read_sample(Path(cfg.input)))}
    return test if cfg.only_test else valid | test


def manifest_after(cfg: Config, fold: int) -> dict[str, Any]:
    """The manifest to be written after prediction.

    With only_test=true the validation tables are kept, but the new manifest covers them too. So they must be unchanged
    and made with the same settings and checkpoint; raises UserError if not. Without the training images, as in
    Kaggle's inference kernel, their hash in the earlier manifest is kept.
    """
    made = artifacts.current_manifest(cfg, "predict", fold)
    if not cfg.only_test:
        return made
    path = artifacts.manifest_path(cfg, "predict", fold)
    rebuild = f"run once without it: {command(cfg, 'predict', fold=str(fold), only_test='false')}"
    if not path.is_file():
        raise UserError(f"only_test=true: {path}: no such file to vouch for the validation tables; {rebuild}")
    found = artifacts.read_manifest(path)
    changes = artifacts.differences(found, made, ignore=files_of((SAMPLE, TEST_IMAGES), cfg, fold))
    if changes:
        raise UserError(f"only_test=true: {path}: the validation tables are of other settings ({changes}); {rebuild}")
    for key in (f"fold{fold}/valid.csv", f"fold{fold}/valid_images.csv"):
        if found["outputs"].get(key) != hash_of(cfg.run_dir / key):
            raise UserError(f"only_test=true: {cfg.run_dir / key}: missing, or not as predict wrote it; {rebuild}")
    inputs = {key: found["inputs"].get(key, now) if now == ABSENT else now for key, now in made["inputs"].items()}
    return made | {"inputs": inputs}


def load_model(cfg: Config, fold: int) -> Any:
    """The fold's trained model. Raises UserError if it is missing, unfinished, or was trained with other settings."""
    artifacts.require(cfg, "train", fold, settings=True, ignore=FREE_TO_USERS)
    checkpoint = load_checkpoint(cfg.fold_dir(fold) / f"{cfg.checkpoint}.pt", cfg, fold, ignore=FREE_TO_USERS)
    model = build_model(cfg, weights="none")
    model.load_state_dict(checkpoint["model"])
    return model


def predict_images(cfg: Config, model: Any, ids: list[str], split: str, title: str) -> Tables:
    """As predict_dataset, for cached images; those that could not be decoded are reported and get empty rows."""
    index = read_index(cfg.cache_dir, cfg.size, split)
    all_ids, undecoded = pd.Series(ids, dtype=str), index.loc[index["status"] != "ok", "patientId"]
    usable, refused = all_ids[~all_ids.isin(undecoded)], all_ids[all_ids.isin(undecoded)]
    if len(refused):
        print(f"{title}: {len(refused)} images could not be decoded and get no box, such as {refused.iloc[0]}")
    samples = make_samples(usable, index, cfg.cache_dir / split)
    return predict_dataset(cfg, model, ImageDataset(samples), ids, title)


def predict_dataset(cfg: Config, model: Any, dataset: ImageDataset, ids: list[str], title: str) -> Tables:
    """Predict all views: boxes with VIEW_COLUMNS, and class probabilities, for all `ids`, view by view.

    An id that is not in the dataset gets one row of empty fields per view in both tables.
    """
    samples = dataset.samples
    transforms, columns = parse_transforms(cfg.tta, cfg.tta_scales), PROBABILITY_COLUMNS[cfg.num_classes]
    nothing = np.empty((0, 1, 4)), np.empty((0, 1)), np.empty((0, len(columns)))
    views = run_model(cfg, model, dataset, transforms, title) if len(dataset) else [nothing] * len(transforms)
    boxes, images = [], []
    for transform, (boxes_xyxy, scores, probabilities) in zip(transforms, views, strict=True):
        table = with_empty_rows(prediction_table(samples, boxes_xyxy, scores, cfg.size), ids)
        boxes.append(table.assign(view=transform.name))
        table = pd.DataFrame(probabilities, samples.ids, columns).reindex(ids).rename_axis("patientId").reset_index()
        images.append(table.assign(view=transform.name))
    return pd.concat(boxes)[VIEW_COLUMNS], pd.concat(images)[["patientId", "view", *columns]]


def run_model(cfg: Config, model: Any, dataset: ImageDataset, transforms: Sequence[TtaTransform], title: str) -> Views:
    """predict_views for a dataset, on the device and in the precision of the config."""
    device = pick_device(cfg.device)
    workers = count_workers(cfg.workers) if device.type != "cpu" else 0
    loader = make_loader(dataset, 2 * cfg.batch_size, workers, device)
    with explain_failures(cfg):
        batches = tqdm(loader, desc=title, unit="batch", leave=False, disable=None)  # None: on a terminal only
        return predict_views(model.to(device), batches, transforms, device, pick_precision(cfg.precision, device))


@torch.inference_mode()
def predict_views(
    model: Any, batches: Iterable[Any], transforms: Sequence[TtaTransform], device: torch.device, precision: torch.dtype
) -> Views:
    """The model's predictions for each view (transform) of all images; boxes xyxy in [0, 1] of the model's input.

    The boxes of flipped and scaled views are mapped back to the unchanged image.
    """
    model.eval()
    collected: list[list[tuple[Floats, ...]]] = [[] for _ in transforms]
    for batch in batches:
        images = batch["image"].to(device, non_blocking=True)
        for transform, parts in zip(transforms, collected, strict=True):
            seen = transform.forward(images)  # outside autocast: bfloat16 is too coarse for coordinates
            with mixed_precision(device, precision):
                outputs = model(seen)
            boxes, scores, probabilities = (to_numpy(values) for values in model.decode(outputs))
            parts.append((transform.inverse(boxes), scores, probabilities))
    return [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in collected]  # type: ignore[misc]


def to_numpy(values: Tensor) -> Floats:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float64)


def prediction_table(samples: Samples, boxes_xyxy: Floats, scores: Floats, size: int) -> pd.DataFrame:
    """Boxes (N, n, 4) xyxy in [0, 1] of the model's input -> patientId, confidence, x, y, width, height.

    In original pixels, clipped to the image; scores: (N, n); size: side of the model's input, pixels. Boxes outside
    the image are left out. An image without boxes gets one row with empty fields.
    """
    count = boxes_xyxy.shape[1]
    shapes = np.repeat(samples.shapes, count, axis=0)
    original = cached_to_original(boxes_xyxy.reshape(-1, 4) * size, np.repeat(samples.geometry, count, axis=0))
    clipped = np.clip(original, 0, shapes[:, [1, 0, 1, 0]])
    table = pd.DataFrame(xyxy_to_xywh(clipped), columns=BOX_COLUMNS)
    table = table.assign(patientId=np.repeat(samples.ids, count), confidence=scores.reshape(-1))
    return with_empty_rows(table[(table["width"] > 0) & (table["height"] > 0)], samples.ids)
