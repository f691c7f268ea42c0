"""Fuse a run's predictions: first the views of each fold and run, then the runs, then the folds.

An out-of-fold image is predicted by one fold, a test image by all. test_by_fold.csv keeps each single fold's test
predictions, whose confidences are comparable with those in oof.csv.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.artifacts import current_manifest, is_current, manifest_path, read_manifest, record, require, withdraw
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.locks import file_lock
from rsna.core.stages import FREE_TO_USERS
from rsna.core.tables import read_numbers, read_table, write_table
from rsna.data.competition import PREDICTION_COLUMNS, read_folds, read_predictions, read_truth
from rsna.evaluation.metric import of_images
from rsna.evaluation.threshold import Gate
from rsna.inference.box_fusion import fuse_tables
from rsna.inference.gate import Fused, choose_gate, parse_gate

ALL_VIEWS, PLAIN_VIEW = slice(None), slice(1)


def fuse_run(cfg: Config) -> dict[str, Any] | None:
    """Write {oof,oof_no_tta,test,test_by_fold}.csv and {oof,test}_images.csv of a run; None if they are current.

    Returns the result of write_tables. Raises UserError as check_predictions does.
    """
    check_predictions(cfg)
    with file_lock(cfg.run_dir):
        if is_current(cfg, "ensemble"):
            return None
        made = current_manifest(cfg, "ensemble")
        withdraw(cfg, "ensemble")
        results = write_tables(cfg)
        record(cfg, "ensemble", made=made, **results)
    return results


def check_predictions(cfg: Config) -> None:
    """Raise UserError unless every fold of every run has finished predictions that match its current inputs."""
    runs = cfg.fused_runs
    if cfg.runs and cfg.name in [run.name for run in runs]:
        raise UserError(f"name={cfg.name} is one of runs={cfg.runs}: give the ensemble a name of its own")
    read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    for run in runs:
        settings: dict[int, dict[str, Any]] = {}
        for fold in cfg.fold_list:
            if not manifest_path(run, "predict", fold).is_file():
                other = f"./run.sh name={run.name} fold={fold} ..."  # its settings are not known here
                rebuild = other if cfg.runs else command(run, "train", fold=str(fold)) + " and predict"
                missing = f"{run.fold_dir(fold)}: no finished predictions of fold {fold}"
                raise UserError(f"{missing}; run: {rebuild}, or choose the folds to fuse: fold=...")
            settings[fold] = require(run, "predict", fold)["settings"]
            path = manifest_path(run, "train", fold)
            if path.is_file():
                settings[fold] |= read_manifest(path, command(run, "train", fold=str(fold)))["settings"]
        check_alike(run, settings)


def check_alike(run: Config, settings: dict[int, dict[str, Any]]) -> None:
    """Raise UserError unless the settings (fold -> settings) of all folds are the same, except for FREE_TO_USERS."""
    first, wanted = next(iter(settings.items()))
    for fold, found in settings.items():
        for key in sorted(wanted.keys() | found.keys()):
            if key not in FREE_TO_USERS and found.get(key) != wanted.get(key):
                made = f"fold {fold} was made with {key}={found.get(key)}, fold {first} with {key}={wanted.get(key)}"
                remedy = "train and predict all folds with the same settings, or set another name="
                raise UserError(f"{run.run_dir}: {made}; {remedy}")


def write_tables(cfg: Config) -> dict[str, Any]:
    """Fuse and write all tables. Returns `oof` and `test`, the numbers of images, and `gate`, see choose_gate."""
    runs = runs_with_boxes(cfg)
    valid = [fuse_fold(cfg, runs, fold, "valid", ALL_VIEWS, PLAIN_VIEW) for fold in cfg.fold_list]
    oof, no_tta = (joined(parts) for parts in zip(*valid, strict=True))
    test = [fuse_fold(cfg, runs, fold, "test", ALL_VIEWS)[0] for fold in cfg.fold_list]
    all_test = fuse_models([fold.boxes for fold in test], [fold.images for fold in test], cfg)
    gate, gain, by_fold = pick_gate(cfg, oof)
    gated_test = [gate.apply(part.boxes, part.images) for part in test]
    gated_oof = gate.apply(oof.boxes, oof.images)
    if by_fold:  # evaluate applies other gates, for the cross-fitted score
        gated_oof = gated_oof.assign(ungated=oof.boxes["confidence"])
    tables = {
        "oof": gated_oof,
        "oof_no_tta": gate.apply(no_tta.boxes, no_tta.images),
        "test": gate.apply(all_test.boxes, all_test.images),
        "test_by_fold": pd.concat([t.assign(fold=k) for k, t in zip(cfg.fold_list, gated_test, strict=True)]),
        "oof_images": oof.images.reset_index(),
        "test_images": all_test.images.reset_index(),
    }
    for name, table in tables.items():
        write_table(table, cfg.run_dir / f"{name}.csv")
    gates = {str(fold): [own.alpha, own.beta] for fold, own in by_fold.items()}
    chosen = {**asdict(gate), "gain": gain, "by_fold": gates}
    return {"oof": len(oof.images), "test": len(all_test.images), "gate": chosen}


def runs_with_boxes(cfg: Config) -> list[Config]:
    """The runs whose models predict boxes; others only add class probabilities. Raises UserError if there is none."""
    tables = [(run, read_views(run.fold_dir(cfg.fold_list[0]) / "valid.csv")) for run in cfg.fused_runs]
    runs = [run for run, views in tables if next(iter(views.values()))["confidence"].notna().any()]
    if not runs:
        names = ",".join(run.name for run in cfg.fused_runs)
        changes = {"preset": f"{cfg.preset},detector".lstrip(","), "name": "both", "runs": f"<detector>,{names}"}
        fused = command(replace(cfg, members="", member_configs=[]), "ensemble", **changes)
        remedy = f"fuse a classifier with a run that has boxes, such as: {fused}"
        raise UserError(f"{names}: no predicted boxes; {remedy}; if it is another model, its training diverged")
    return runs


def fuse_fold(cfg: Config, runs: list[Config], fold: int, part: str, *views: slice) -> list[Fused]:
    """One fold's predictions for `valid` or `test`, fused over views and runs: once for each of `views`."""
    boxes = [[*read_views(run.fold_dir(fold) / f"{part}.csv").values()] for run in runs]
    images = [read_probabilities(run.fold_dir(fold) / f"{part}_images.csv") for run in cfg.fused_runs]
    fused = []
    for chosen in views:
        probabilities = [table[table["view"].isin(table["view"].unique()[chosen])] for table in images]
        fused.append(fuse_views(cfg, runs, [tables[chosen] for tables in boxes], probabilities))
    return fused


def fuse_views(cfg: Config, runs: list[Config], boxes: list[list[pd.DataFrame]], images: list[pd.DataFrame]) -> Fused:
    """Fuse one fold's predictions: the views of each run, then the runs.

    runs: those with boxes; boxes: for each of them one table per view; images: probabilities of all runs, view by view.
    """
    weights = [weight for run, weight in zip(cfg.fused_runs, cfg.fusion_weights, strict=True) if run in runs]
    means = [table.drop(columns="view").groupby("patientId", sort=False).mean() for table in images]
    return fuse_models([fuse_tables(views, cfg) for views in boxes], means, cfg, weights)


def joined(parts: Sequence[Fused]) -> Fused:
    """Concatenate predictions of different images."""
    return Fused(pd.concat([part.boxes for part in parts]), pd.concat([part.images for part in parts]))


def pick_gate(cfg: Config, oof: Fused) -> tuple[Gate, float | None, dict[Any, Gate]]:
    """The gate that gate= sets, without a gain; with gate=auto the result of choose_gate."""
    if cfg.gate != "auto":
        return parse_gate(cfg.gate), None, {}
    truth = of_images(read_truth(Path(cfg.input)), oof.images.index)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")["fold"]
    return choose_gate(oof, truth, folds[oof.images.index])


def fuse_models(
    boxes: list[pd.DataFrame], images: list[pd.DataFrame], cfg: Config, weights: list[float] | None = None
) -> Fused:
    """Fuse the boxes of several runs or folds, of which a single table is kept as it is; average the probabilities."""
    return Fused(fuse_tables(boxes, cfg, weights) if len(boxes) > 1 else boxes[0], mean_images(images))


def read_views(path: Path) -> dict[str, pd.DataFrame]:
    """Read a table of predict: view -> boxes, the plain view first. Raises UserError that names the first bad row."""
    views = read_predictions(path, more=["view"]).groupby("view", sort=False)
    return {str(view): rows[PREDICTION_COLUMNS] for view, rows in views}


def read_probabilities(path: Path) -> pd.DataFrame:
    """patientId, view and one probability per class; NaN for an image that could not be decoded."""
    columns = read_table(path, ["patientId", "view", "p_opacity"]).columns
    return read_numbers(path, [name for name in columns if name.startswith("p_")])


def mean_images(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables of the same images (index patientId), in their common columns.

    Models with 2 and with 3 classes have only p_opacity in common.
    """
    columns = [name for name in tables[0] if all(name in table for table in tables)]
    values = [table.loc[tables[0].index, columns].to_numpy(dtype=float) for table in tables]
    return pd.DataFrame(np.mean(values, axis=0), index=tables[0].index, columns=columns)
