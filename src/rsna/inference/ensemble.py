"""Fuse a run's predictions: the views of each fold and run, then the runs, then the folds. Nothing else fuses.

Out of fold one fold has seen each image; on the test images all of them are fused. test_by_fold.csv keeps what each
fold predicts for the test images, with confidences that compare with those of oof.csv.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.artifacts import is_current, manifest_path, record, require, run_names, withdraw
from rsna.core.config import Config, FusionSettings, command
from rsna.core.errors import UserError
from rsna.core.locks import file_lock
from rsna.core.tables import read_table, write_table
from rsna.data.competition import PREDICTION_COLUMNS, read_folds, read_predictions
from rsna.evaluation.threshold import with_scaled_boxes
from rsna.inference.box_fusion import fuse_tables

Views = dict[str, pd.DataFrame]  # name of the view -> its table; the plain view is first


def fuse_run(cfg: Config) -> bool:
    """Write {oof,oof_no_tta,test,test_by_fold}.csv and {oof,test}_images.csv of a run; False if they are current.

    Raises UserError for a fold whose predictions are missing, or not as predict wrote them, or of other folds.
    """
    check_predictions(cfg)
    with file_lock(cfg.run_dir):
        if is_current(cfg, "ensemble"):
            return False
        withdraw(cfg, "ensemble")
        write_boxes(cfg)
        write_images(cfg)
        record(cfg, "ensemble")
    return True


def check_predictions(cfg: Config) -> None:
    """Raise UserError unless every fold of every run has finished predictions that belong to its inputs of now."""
    if cfg.runs and cfg.name in run_names(cfg):
        raise UserError(f"name={cfg.name} is one of runs={cfg.runs}: give the ensemble a name of its own")
    read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    for run in model_runs(cfg):
        for fold in cfg.fold_list:
            if not manifest_path(run, "predict", fold).is_file():
                # the settings of other runs are not known here
                other = f"./run.sh name={run.name} fold={fold} ..."
                rebuild = other if cfg.runs else command(cfg, "train", fold=str(fold)) + " and predict"
                raise UserError(
                    f"{run.fold_dir(fold)}: no finished predictions of fold {fold}; run: {rebuild}, or choose the "
                    "folds to fuse: fold=..."
                )
            require(run, "predict", fold)


def model_runs(cfg: Config) -> list[Config]:
    """The config of each run that is fused: those of runs=a,b, or the run itself."""
    return [replace(cfg, name=name, runs="") for name in run_names(cfg)]


def write_boxes(cfg: Config) -> None:
    """Fuse the boxes and write the four tables."""
    oof, no_tta, test = [], [], {}
    for fold in cfg.fold_list:
        valid = [read_views(run.fold_dir(fold) / "valid.csv") for run in model_runs(cfg)]
        oof.append(fuse_models([fuse_tables(list(views.values()), cfg) for views in valid], cfg))
        no_tta.append(fuse_models([fuse_tables([next(iter(views.values()))], cfg) for views in valid], cfg))
        found = [read_views(run.fold_dir(fold) / "test.csv") for run in model_runs(cfg)]
        test[fold] = fuse_models([fuse_tables(list(views.values()), cfg) for views in found], cfg)
    tables = {
        "oof": pd.concat(oof),
        "oof_no_tta": pd.concat(no_tta),
        "test_by_fold": pd.concat([table.assign(fold=fold) for fold, table in test.items()]),
        "test": fuse_models(list(test.values()), cfg),
    }
    for name, table in tables.items():
        write_table(with_scaled_boxes(table, cfg.box_scale), cfg.run_dir / f"{name}.csv")


def fuse_models(tables: list[pd.DataFrame], settings: FusionSettings) -> pd.DataFrame:
    """The fused table of several runs or folds; that of a single one as it is."""
    return fuse_tables(tables, settings) if len(tables) > 1 else tables[0]


def read_views(path: Path) -> Views:
    """A table of predict by view, in the file's order. Raises UserError that names the first bad row."""
    table = read_predictions(path).assign(view=read_table(path, ["view"])["view"].to_numpy())
    return {str(view): rows[PREDICTION_COLUMNS] for view, rows in table.groupby("view", sort=False)}


def write_images(cfg: Config) -> None:
    """Write the mean class probabilities: out of fold over views and runs, on the test images over folds too."""
    oof, test = (
        [
            mean_images([mean_of_views(run.fold_dir(fold) / f"{name}_images.csv") for run in model_runs(cfg)])
            for fold in cfg.fold_list
        ]
        for name in ("valid", "test")
    )
    write_table(pd.concat(oof).reset_index(), cfg.run_dir / "oof_images.csv")
    write_table(mean_images(test).reset_index(), cfg.run_dir / "test_images.csv")


def mean_of_views(path: Path) -> pd.DataFrame:
    """Class probabilities by patientId, mean over the views; NaN for an image that could not be decoded."""
    table = read_table(path, ["patientId", "view", "p_opacity"]).drop(columns="view")
    return table.groupby("patientId", sort=False).mean()


def mean_images(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables of the same images, patientId in the index, over the columns that all of them have.

    Runs may have two classes or three; p_opacity they have in common.
    """
    columns = [name for name in tables[0] if all(name in table for table in tables)]
    values = [table.loc[tables[0].index, columns].to_numpy(dtype=float) for table in tables]
    return pd.DataFrame(np.mean(values, axis=0), index=tables[0].index, columns=columns)


def count_images(cfg: Config) -> tuple[int, int]:
    """How many images are in oof.csv and in test.csv."""
    tables = [read_table(cfg.run_dir / f"{name}.csv", ["patientId"]) for name in ("oof", "test")]
    n_oof, n_test = (table["patientId"].nunique() for table in tables)
    return n_oof, n_test
