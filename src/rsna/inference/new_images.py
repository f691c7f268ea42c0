"""Predict images from anywhere with a finished run: its networks, views, fusion, gate and operating point."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.artifacts import manifest_path, read_manifest, require, with_settings
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.data.competition import PREDICTION_COLUMNS, read_predictions, with_empty_rows
from rsna.data.dataset import ImageDataset, Samples
from rsna.data.letterbox import fit_letterbox
from rsna.data.submission_format import SMALLEST_CONFIDENCE, keep_inside
from rsna.evaluation.runs import as_made, as_shown
from rsna.evaluation.threshold import Gate, OperatingPoint
from rsna.execution.processes import map_files
from rsna.inference.ensemble import fuse_models, fuse_views, runs_with_boxes
from rsna.inference.gate import Fused
from rsna.inference.image_files import NewImage, read_image
from rsna.inference.outliers import Reference, distances, embed, load_reference
from rsna.inference.predictor import load_model, predict_dataset
from rsna.inference.submission import choose_point

AT_ONCE = 512  # images in memory; a multiple of the batch, so that batches are those of predict
DECIMALS = {"confidence": 4, "x": 1, "y": 1, "width": 1, "height": 1, "p_opacity": 4}  # as in a submission


def predict_files(cfg: Config, paths: Sequence[Path]) -> pd.DataFrame:
    """A row per box, and one per image without a box and per refused file, in the order of the files.

    Columns: file, confidence, x, y, width, height (pixels of the image itself), p_opacity, flag and refused (the
    reasons). cfg: of as_predicted. Raises UserError unless its run is finished and current.
    """
    require(cfg, "evaluate")
    point = choose_point(cfg, read_predictions(cfg.run_dir / "test.csv", command(cfg, "ensemble")))
    reference = load_reference(cfg)
    print(f"threshold {point.threshold:.4f}: {point.how_chosen}")
    print(f"box sides scaled by {point.box_scale:g}")
    usual = f"{1 - reference['false_alarms']:.1%} of {reference['held_out']:.0f} held-out images"
    print(f"flagged as unlike the training images: what is farther from them than {usual}")
    n_networks = len(cfg.fold_list) * len(cfg.fused_runs)
    print(f"files: {len(paths)}; networks for each image: {n_networks}", flush=True)
    read = partial(read_image, sizes=[member.size for member in cfg.fused_runs])
    crashed, parts = partial(NewImage, refused="the process that decoded it died"), []
    for start in range(0, len(paths), AT_ONCE):
        images = list(map_files(read, paths[start : start + AT_ONCE], cfg, "images", crashed))
        parts.append(predict_images(cfg, images, point, reference))
        if len(paths) > AT_ONCE:
            print(f"{start + len(images)} of {len(paths)} files", flush=True)
    # files at which a worker died come out of order
    return pd.concat(parts).set_index("file").loc[[str(path) for path in paths]].reset_index()


def predict_images(cfg: Config, images: list[NewImage], point: OperatingPoint, reference: Reference) -> pd.DataFrame:
    """The table of predict_files for these images."""
    files, usable = [str(image.path) for image in images], [image for image in images if not image.refused]
    table = pd.DataFrame({name: [getattr(image, name) for image in images] for name in ("flag", "refused")}, files)
    boxes, p_opacity = pd.DataFrame(columns=PREDICTION_COLUMNS), pd.Series(dtype=float)
    if usable:
        fused = fuse_images(cfg, usable)
        shapes = pd.DataFrame([image.shape for image in images], files, ["rows", "cols"])
        boxes, p_opacity = keep_inside(point.apply(fused.boxes), shapes), fused.images["p_opacity"]
        boxes["confidence"] = boxes["confidence"].clip(SMALLEST_CONFIDENCE, 1)
        far = distances(reference, embed(cfg.fused_runs[0], dataset_of(usable, 0))) > reference["threshold"]
        unlike = table.index.isin([str(image.path) for image, is_far in zip(usable, far, strict=True) if is_far])
        table.loc[unlike, "flag"] = (table["flag"] + "; unlike the training images").str.removeprefix("; ")
    boxes = with_empty_rows(boxes, files).set_index("patientId").rename_axis("file")
    return boxes.assign(p_opacity=p_opacity.reindex(boxes.index)).round(DECIMALS).join(table).reset_index()


def as_predicted(cfg: Config) -> Config:
    """cfg with the settings of the run: those of scoring, fusion and prediction, and those of the runs it fuses."""
    shown = as_shown(cfg)
    scored = with_settings(shown, read_manifest(manifest_path(cfg, "evaluate"), command(shown, "evaluate")))
    cfg = replace(scored, box_scale=scored.box_scale if cfg.box_scale == "auto" else cfg.box_scale)
    runs = [as_made(cfg.of_run(run.name)) for run in cfg.fused_runs]
    # as_made gives the precision of training
    made = [read_manifest(manifest_path(run, "predict", cfg.fold_list[0]), command(run, "predict")) for run in runs]
    return replace(cfg, member_configs=[with_settings(*pair) for pair in zip(runs, made, strict=True)])


def fuse_images(cfg: Config, images: list[NewImage]) -> Fused:
    """The predictions of all folds and views of a run, fused and gated, before the operating point."""
    files, folds, with_boxes = [str(image.path) for image in images], [], runs_with_boxes(cfg)
    for fold in cfg.fold_list:
        boxes, classes = [], []
        for k, member in enumerate(cfg.fused_runs):
            model, title = load_model(member, fold), f"{member.name} fold {fold}"
            own, probabilities = predict_dataset(member, model, dataset_of(images, k), files, title)
            classes.append(probabilities)
            if member in with_boxes:
                boxes.append([rows for _, rows in own.groupby("view", sort=False)])
        folds.append(fuse_views(cfg, with_boxes, boxes, classes))
    fused = fuse_models([fold.boxes for fold in folds], [fold.images for fold in folds], cfg)
    gate = require(cfg, "ensemble")["gate"]
    return Fused(Gate(gate["alpha"], gate["beta"]).apply(fused.boxes, fused.images), fused.images)


def dataset_of(images: list[NewImage], k: int) -> ImageDataset:
    """The k-th square of each image as a dataset: the input of the k-th fused run."""
    pixels, none = [image.squares[k] for image in images], np.zeros(len(images), np.int64)
    geometry = np.array([fit_letterbox(*image.shape, len(image.squares[k]))[2] for image in images])
    boxes, shapes = [np.empty((0, 4))] * len(images), np.array([image.shape for image in images])
    samples = Samples([str(image.path) for image in images], [], boxes, none, geometry, shapes)
    return ImageDataset(samples, read=pixels.__getitem__)
