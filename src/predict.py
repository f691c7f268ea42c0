"""Predict each fold's validation images and the test images, with test-time views fused.

    python src/predict.py fold=0..4 [tta=plain,hflip] [tta_scales=1.0] [checkpoint=best] [only_test=true]

Writes working/<name>/fold<k>/{valid,test}.csv, and valid_plain.csv: what the plain view alone says. With only_test=true
test.csv alone: the others must be there, from the same network.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from rsna.startup import run
from rsna.core.config import (
    CacheSettings,
    ComputeSettings,
    Config,
    FusionSettings,
    ModelSettings,
    PredictSettings,
    command,
)
from rsna.core.errors import UserError
from rsna.core.executor import count_workers
from rsna.core.files import content_hash
from rsna.core.locks import file_lock
from rsna.core.stages import FREE_TO_USERS
from rsna.core.stamps import begin, is_complete, mark_complete
from rsna.core.tables import read_table, write_table
from rsna.data.cache import read_index
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, SAMPLE_CSV, read_folds, read_sample, with_empty_rows
from rsna.data.dataset import ImageDataset, make_samples
from rsna.data.loader import make_loader
from rsna.inference.box_fusion import fuse_tables
from rsna.inference.predictor import parse_views, predict_views, prediction_table
from rsna.models.checkpoint import load_checkpoint
from rsna.models.device import explain_failures, pick_device, pick_precision
from rsna.models.registry import build_model


def main(cfg: Config) -> None:
    for fold in cfg.fold_list:
        with file_lock(cfg.fold_dir(fold)):
            make_predictions(cfg, fold)


def make_predictions(cfg: Config, fold: int) -> None:
    """Predict one fold, unless that is done."""
    outputs = [cfg.fold_dir(fold) / f"{name}.csv" for name in ("valid", "valid_plain", "test")]
    facts = prediction_facts(cfg, fold)
    stamp = cfg.fold_dir(fold) / "predict.json"
    if is_complete(stamp, facts, outputs):
        print(f"fold {fold}: predictions complete -> {outputs[0]}")
        return
    model = load_network(cfg, fold)
    check_inputs(cfg)
    begin(stamp)
    predict_fold(cfg, fold, model)
    mark_complete(stamp, facts, outputs)
    written = outputs[-1:] if cfg.only_test else outputs
    print(f"fold {fold}: predicted -> {', '.join(path.name for path in written)} in {cfg.fold_dir(fold)}")


def prediction_facts(cfg: Config, fold: int) -> dict[str, Any]:
    """What a fold's predictions depend on."""
    files = {
        "network": cfg.fold_dir(fold) / f"{cfg.checkpoint}.pt",
        "folds.csv": cfg.folds_csv,
        "index.csv": cfg.cache_dir / "index.csv",
        SAMPLE_CSV: Path(cfg.input) / SAMPLE_CSV,
    }
    facts = cfg.only(PredictSettings, FusionSettings, ComputeSettings, CacheSettings, ModelSettings) | {
        name: content_hash(path) for name, path in files.items()
    }
    # who then predicts all of it must not take validation tables of who knows what settings for these
    return facts | ({"only_test": True} if cfg.only_test else {})


def load_network(cfg: Config, fold: int) -> Any:
    """The fold's trained network. Raises UserError if it is not there, not finished or of other settings."""
    check_finished(cfg, fold)
    if cfg.only_test and not all((cfg.fold_dir(fold) / f"{name}.csv").is_file() for name in ("valid", "valid_plain")):
        raise UserError(f"only_test=true: {cfg.fold_dir(fold)} lacks valid.csv or valid_plain.csv to leave as it is")
    checkpoint = load_checkpoint(cfg.fold_dir(fold) / f"{cfg.checkpoint}.pt", cfg, fold, ignore=FREE_TO_USERS)
    model = build_model(cfg, weights="none")
    model.load_state_dict(checkpoint["model"])
    return model


def check_inputs(cfg: Config) -> None:
    """Raise UserError for a file that is missing or broken, before the tables of an earlier run are given up."""
    read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    read_index(cfg.cache_dir, cfg.size)
    read_sample(Path(cfg.input))


def predict_fold(cfg: Config, fold: int, model: Any) -> None:
    """Write valid.csv, valid_plain.csv and test.csv of one fold."""
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    valid_ids = folds.loc[folds["fold"] == fold, "patientId"].tolist()
    parts = [("valid", valid_ids, "train"), ("test", read_sample(Path(cfg.input)), "test")]
    for name, ids, split in parts[1:] if cfg.only_test else parts:
        tables = predict_images(cfg, model, ids, split, f"fold {fold} {name}")
        if name == "valid":
            write_table(tables[0], cfg.fold_dir(fold) / "valid_plain.csv")
        fused = fuse_tables(tables, cfg.wbf_iou, cfg.missing_weight, cfg.max_boxes)
        write_table(fused, cfg.fold_dir(fold) / f"{name}.csv")


def check_finished(cfg: Config, fold: int) -> None:
    """Raise UserError if the fold's training stopped before its last epoch."""
    train = command(cfg, "train")
    history = read_table(cfg.fold_dir(fold) / "history.csv", ["epoch"], maker=train)
    if len(history) < cfg.total_epochs:
        raise UserError(f"{cfg.fold_dir(fold)}: trained {len(history)} of {cfg.total_epochs} epochs; to go on: {train}")


def predict_images(cfg: Config, model: Any, ids: list[str], split: str, title: str) -> list[pd.DataFrame]:
    """One prediction table per view, the plain view first; refused images keep an empty row and are said."""
    index = read_index(cfg.cache_dir, cfg.size)
    index = index[index["split"] == split]
    refused = index.loc[index["status"] != "ok", "patientId"]
    blind = [name for name in ids if name in set(refused)]
    if blind:
        print(f"{title}: {len(blind)} images could not be decoded and get no box, such as {blind[0]}")
    seen = pd.Series([name for name in ids if name not in set(blind)], dtype=str)
    if seen.empty:
        return [with_empty_rows(pd.DataFrame(columns=PREDICTION_COLUMNS), ids)]
    no_truth = pd.DataFrame(columns=["patientId", *BOX_COLUMNS], dtype=object)
    samples = make_samples(seen, index[index["status"] == "ok"], cfg.cache_dir / split, no_truth)
    device = pick_device(cfg.device)
    precision = pick_precision(cfg.precision, device)
    workers = count_workers(cfg.workers) if device.type != "cpu" else 0
    loader = make_loader(ImageDataset(samples), 2 * cfg.batch_size, workers, device)
    with explain_failures(cfg):
        views = predict_views(model.to(device), loader, parse_views(cfg.tta, cfg.tta_scales), device, precision, title)
    return [with_empty_rows(prediction_table(samples, *view, cfg.size), ids) for view in views]


if __name__ == "__main__":
    run(main)
