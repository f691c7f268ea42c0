"""Fuse the fold predictions of a run, or of several runs, into working/<name>/{oof,oof_plain,test,test_by_fold}.csv.

    python src/ensemble.py fold=0..4 [name=...]          the folds of one run
    python src/ensemble.py name=both runs=a,b            the folds of the runs a and b

First the runs are fused fold by fold, then the folds: out of fold there is one of them for each image, on the test
images all of them agree or not. test_by_fold.csv keeps the stage between, whose confidences compare with oof.csv's.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import content_hash
from rsna.core.locks import file_lock
from rsna.core.stamps import begin, check_stamp, is_complete, mark_complete
from rsna.core.tables import read_table, write_table
from rsna.data.competition import PREDICTION_COLUMNS, read_predictions
from rsna.evaluation.scores import with_scaled_boxes
from rsna.inference.box_fusion import fuse_tables

SOURCES = ("valid", "valid_plain", "test")
OUTPUTS = ("oof", "oof_plain", "test", "test_by_fold")


def main(cfg: Config) -> None:
    runs = run_folders(cfg)
    outputs = {name: cfg.run_dir / f"{name}.csv" for name in OUTPUTS}
    facts, stamp = ensemble_facts(cfg, runs), cfg.run_dir / "ensemble.json"
    with file_lock(cfg.run_dir):
        if not is_complete(stamp, facts, list(outputs.values())):
            begin(stamp)
            write_tables(cfg, runs, outputs)
            mark_complete(stamp, facts, list(outputs.values()))
    print_counts(cfg, len(runs), outputs)


def write_tables(cfg: Config, runs: list[Path], outputs: dict[str, Path]) -> None:
    """Fuse the runs fold by fold, then the folds."""
    valid, plain, test = ({fold: fuse_runs(cfg, runs, fold, name) for fold in cfg.fold_list} for name in SOURCES)
    write_scaled(pd.concat(valid.values()), outputs["oof"], cfg.box_scale)
    write_scaled(pd.concat(plain.values()), outputs["oof_plain"], cfg.box_scale)
    by_fold = pd.concat([table.assign(fold=fold) for fold, table in test.items()])
    write_scaled(by_fold, outputs["test_by_fold"], cfg.box_scale)
    write_scaled(fuse(cfg, list(test.values())), outputs["test"], cfg.box_scale)


def print_counts(cfg: Config, n_runs: int, outputs: dict[str, Path]) -> None:
    n_images = {name: read_table(path, ["patientId"])["patientId"].nunique() for name, path in outputs.items()}
    members = f"{len(cfg.fold_list)} folds of {n_runs} run(s)"
    print(
        f"ensemble of {members}: {n_images['oof']} out-of-fold and {n_images['test']} test images -> {outputs['test']}"
    )


def write_scaled(table: pd.DataFrame, path: Path, box_scale: float) -> None:
    """Write predictions with their boxes scaled; at 1 every digit stays as it is."""
    write_table(table if box_scale == 1 else with_scaled_boxes(table, box_scale), path)


def run_folders(cfg: Config) -> list[Path]:
    """The folders of the runs to fuse: runs=a,b or the run itself.

    Raises UserError for a fold without predictions, or with some that predict did not write, or with other folds.
    """
    names = cfg.runs.split(",") if cfg.runs else [cfg.name]
    if cfg.runs and cfg.name in names:
        raise UserError(f"name={cfg.name} is one of runs={cfg.runs}: give the ensemble a name of its own")
    if not cfg.folds_csv.is_file():
        raise UserError(f"{cfg.folds_csv}: no such file; run: {command(cfg, 'make_folds')}")
    folders = [Path(cfg.working) / name for name in names]
    for folder in folders:
        for fold in cfg.fold_list:
            if not (folder / f"fold{fold}" / "predict.json").is_file():
                raise UserError(
                    f"{folder / f'fold{fold}'}: no finished predictions of fold {fold}; make them with "
                    f"{own_command(cfg, folder.name, fold)}, or say which folds to fuse: fold=..."
                )
            tables = [folder / f"fold{fold}" / f"{name}.csv" for name in SOURCES]
            facts = {"folds.csv": content_hash(cfg.folds_csv)}
            check_stamp(folder / f"fold{fold}" / "predict.json", facts, tables, own_command(cfg, folder.name, fold))
    return folders


def own_command(cfg: Config, name: str, fold: int) -> str:
    """What to type to train and predict a fold of one run; the settings of other runs are not known here."""
    return (
        f"./run.sh name={name} fold={fold} ..." if cfg.runs else command(cfg, "train", fold=str(fold)) + " and predict"
    )


def ensemble_facts(cfg: Config, runs: list[Path]) -> dict[str, Any]:
    """What the fused tables depend on."""
    facts = {
        key: getattr(cfg, key) for key in ("wbf_iou", "missing_weight", "max_boxes", "box_scale", "fold_list", "runs")
    }
    paths = [run / f"fold{fold}" / f"{name}.csv" for run in runs for fold in cfg.fold_list for name in SOURCES]
    tables = {str(path.relative_to(cfg.working)): content_hash(path) for path in paths}
    return facts | tables | {"folds.csv": content_hash(cfg.folds_csv)}


def fuse_runs(cfg: Config, runs: list[Path], fold: int, name: str) -> pd.DataFrame:
    """The table `name` of one fold, fused over the runs."""
    return fuse(cfg, [read_predictions(run / f"fold{fold}" / f"{name}.csv") for run in runs])


def fuse(cfg: Config, members: list[pd.DataFrame]) -> pd.DataFrame:
    if len(members) == 1:
        return members[0][PREDICTION_COLUMNS]
    return fuse_tables(members, cfg.wbf_iou, cfg.missing_weight, cfg.max_boxes)


if __name__ == "__main__":
    run(main)
