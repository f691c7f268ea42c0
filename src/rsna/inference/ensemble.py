"""Fuse a run's predictions: the views of each fold and run, then the runs, then the folds. Nothing else fuses.

Out of fold one fold has seen each image; on the test images all of them are fused. test_by_fold.csv keeps what each
fold predicts for the test images, with confidences that compare with those of oof.csv.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.artifacts import current_manifest, is_current, manifest_path, record, require, run_names, withdraw
from rsna.core.config import Config, FusionSettings, command
from rsna.core.errors import UserError
from rsna.core.files import file_lock
from rsna.core.tables import read_table, write_table
from rsna.data.competition import PREDICTION_COLUMNS, read_folds, read_predictions
from rsna.inference.box_fusion import fuse_tables


def fuse_run(cfg: Config) -> tuple[int, int] | None:
    """Write {oof,oof_no_tta,test,test_by_fold}.csv and {oof,test}_images.csv of a run; None if they are current.

    Returns how many images are in oof.csv and in test.csv. Raises UserError for a fold whose predictions are missing,
    or not as predict wrote them, or of other folds.
    """
    check_predictions(cfg)
    with file_lock(cfg.run_dir):
        if is_current(cfg, "ensemble"):
            return None
        made = current_manifest(cfg, "ensemble")
        withdraw(cfg, "ensemble")
        n_oof, n_test = write_boxes(cfg)
        write_images(cfg)
        record(cfg, "ensemble", made=made)
    return n_oof, n_test


def check_predictions(cfg: Config) -> None:
    """Raise UserError unless every fold of every run has finished predictions that belong to its inputs of now."""
    if cfg.runs and cfg.name in run_names(cfg):
        raise UserError(f"name={cfg.name} is one of runs={cfg.runs}: give the ensemble a name of its own")
    read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    for run in model_runs(cfg):
        for fold in cfg.fold_list:
            if not manifest_path(run, "predict", fold).is_file():
                other = f"./run.sh name={run.name} fold={fold} ..."  # its settings are not known here
                rebuild = other if cfg.runs else command(cfg, "train", fold=str(fold)) + " and predict"
                missing = f"{run.fold_dir(fold)}: no finished predictions of fold {fold}"
                raise UserError(f"{missing}; run: {rebuild}, or choose the folds to fuse: fold=...")
            require(run, "predict", fold)


def model_runs(cfg: Config) -> list[Config]:
    """The config of each run that is fused: those of runs=a,b, or the run itself."""
    return [replace(cfg, name=name, runs="") for name in run_names(cfg)]


def tables_of(cfg: Config, name: str) -> list[list[Path]]:
    """The tables of predict that are fused: of each fold those of all runs."""
    return [[run.fold_dir(fold) / f"{name}.csv" for run in model_runs(cfg)] for fold in cfg.fold_list]


def write_boxes(cfg: Config) -> tuple[int, int]:
    """Fuse the boxes and write the four tables; returns the images of oof and test."""
    valid, test = (
        [[list(read_views(path).values()) for path in paths] for paths in tables_of(cfg, name)]
        for name in ("valid", "test")
    )
    by_fold = [fuse_fold(runs, cfg) for runs in test]
    tables = {
        "oof": pd.concat([fuse_fold(runs, cfg) for runs in valid]),
        "oof_no_tta": pd.concat([fuse_fold([views[:1] for views in runs], cfg) for runs in valid]),
        "test_by_fold": pd.concat([table.assign(fold=k) for k, table in zip(cfg.fold_list, by_fold, strict=True)]),
        "test": fuse_models(by_fold, cfg),
    }
    for name, table in tables.items():
        write_table(table, cfg.run_dir / f"{name}.csv")
    return tables["oof"]["patientId"].nunique(), tables["test"]["patientId"].nunique()


def fuse_fold(runs: list[list[pd.DataFrame]], settings: FusionSettings) -> pd.DataFrame:
    """The views of each run fused, then the runs."""
    return fuse_models([fuse_tables(views, settings) for views in runs], settings)


def fuse_models(tables: list[pd.DataFrame], settings: FusionSettings) -> pd.DataFrame:
    """The fused table of several runs or folds; that of a single one as it is."""
    return fuse_tables(tables, settings) if len(tables) > 1 else tables[0]


def read_views(path: Path) -> dict[str, pd.DataFrame]:
    """A table of predict by view, the plain one first. Raises UserError that names the first bad row."""
    views = read_predictions(path, more=["view"]).groupby("view", sort=False)
    return {str(view): rows[PREDICTION_COLUMNS] for view, rows in views}


def write_images(cfg: Config) -> None:
    """Write the mean class probabilities: out of fold over views and runs, on the test images over folds too."""
    oof, test = (
        [mean_images([mean_of_views(path) for path in paths]) for paths in tables_of(cfg, f"{name}_images")]
        for name in ("valid", "test")
    )
    write_table(pd.concat(oof).reset_index(), cfg.run_dir / "oof_images.csv")
    write_table(mean_images(test).reset_index(), cfg.run_dir / "test_images.csv")


def mean_of_views(path: Path) -> pd.DataFrame:
    """Class probabilities by patientId, mean over the views; NaN for an image that could not be decoded."""
    table = read_table(path, ["patientId", "view", "p_opacity"]).drop(columns="view")
    return table.groupby("patientId", sort=False).mean()


def mean_images(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables of the same images by patientId, over the columns they share: of 2 and 3 classes p_opacity."""
    columns = [name for name in tables[0] if all(name in table for table in tables)]
    values = [table.loc[tables[0].index, columns].to_numpy(dtype=float) for table in tables]
    return pd.DataFrame(np.mean(values, axis=0), index=tables[0].index, columns=columns)
