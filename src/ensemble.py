"""Fuse the fold predictions of a run, or several runs, into working/<name>/{oof,oof_plain,test}.csv.

python src/ensemble.py fold=0..4 [name=...]          the folds of one run
python src/ensemble.py name=both runs=a,b            the runs a and b, each already fused
"""

from pathlib import Path

import pandas as pd

from competition import PREDICTION_COLUMNS
from config import Config, load_config
from files import UserError, fingerprint, is_complete, mark_complete, read_table, write_table
from fusion import fuse_tables

TABLES = ("oof", "oof_plain", "test")


def main(cfg: Config) -> None:
    members = run_members(cfg) if cfg.runs else fold_members(cfg)
    outputs = [cfg.run_dir / f"{name}.csv" for name in TABLES]
    facts = {key: getattr(cfg, key) for key in ("fusion_iou", "elsewhere", "max_boxes", "fold_list", "runs")}
    facts |= {str(path.relative_to(cfg.working)): fingerprint(path) for paths in members.values() for path in paths}
    stamp = cfg.run_dir / "ensemble.json"
    if not is_complete(stamp, facts, outputs):
        for output, paths in zip(outputs, members.values(), strict=True):
            write_table(fuse_files(paths, output.stem, cfg), output)
        mark_complete(stamp, facts)
    n_images = [read_table(path, PREDICTION_COLUMNS)["patientId"].nunique() for path in outputs]
    print(
        f"ensemble of {len(members['test'])}: {n_images[0]} out-of-fold and {n_images[2]} test images -> {outputs[2]}"
    )


def fold_members(cfg: Config) -> dict[str, list[Path]]:
    """The tables of every fold that was asked for, by the table they go into. Raises UserError if one is missing."""
    sources = {"oof": "valid.csv", "oof_plain": "valid_plain.csv", "test": "test.csv"}
    members = {table: [cfg.fold_dir(fold) / name for fold in cfg.fold_list] for table, name in sources.items()}
    for fold, path in zip(cfg.fold_list, members["test"], strict=True):
        if not path.is_file():
            raise UserError(f"{path}: no such file; run: ./run.sh fold={fold}, or say which folds to fuse: fold=...")
    return members


def run_members(cfg: Config) -> dict[str, list[Path]]:
    """The tables of every run in runs=a,b. Raises UserError if one is missing or is the run itself."""
    names = cfg.runs.split(",")
    if cfg.name in names:
        raise UserError(f"name={cfg.name} is one of runs={cfg.runs}: give the ensemble a name of its own")
    members = {table: [Path(cfg.working) / name / f"{table}.csv" for name in names] for table in TABLES}
    for name, path in zip(names, members["test"], strict=True):
        if not path.is_file():
            raise UserError(f"{path}: no such file; run: python src/ensemble.py name={name}")
    return members


def fuse_files(paths: list[Path], table: str, cfg: Config) -> pd.DataFrame:
    """Fold tables of different images are stacked (out of fold), tables of the same images are fused."""
    members = [read_table(path, PREDICTION_COLUMNS) for path in paths]
    if table != "test" and not cfg.runs:
        return pd.concat(members, ignore_index=True)
    return fuse_tables(members, cfg.fusion_iou, cfg.elsewhere, cfg.max_boxes)


if __name__ == "__main__":
    main(load_config())
