"""Finished runs: what a run folder holds, and how runs compare on the images that they share."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.artifacts import read_manifest, require, with_settings
from rsna.core.command_line import changed_settings, command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.tables import read_numbers
from rsna.core.validation import parse_weights
from rsna.data.competition import read_predictions
from rsna.evaluation.bootstrap import paired_interval
from rsna.evaluation.metric import image_scores, keep_confident, of_images
from rsna.evaluation.scores import read_scores, spread_of_folds
from rsna.evaluation.threshold import with_scaled_boxes


@dataclass(frozen=True)
class Run:
    """A run that has been scored."""

    folder: Path
    scores: dict[str, Any]  # scores.json
    predictions: pd.DataFrame  # oof.csv, boxes scaled as for the submission

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def kept(self) -> pd.DataFrame:
        """The predictions at the run's own threshold."""
        return keep_confident(self.predictions, self.scores["threshold"])

    @cached_property
    def ids(self) -> list[str]:
        return self.predictions["patientId"].drop_duplicates().tolist()


def read_run(cfg: Config) -> Run:
    """oof.csv and scores.json of a run. Raises UserError if they, or what they were made from, are not current."""
    require(cfg, "evaluate")
    predictions = read_predictions(cfg.run_dir / "oof.csv", command(cfg, "ensemble"))
    scores = read_scores(cfg.run_dir, command(cfg, "evaluate"))
    return Run(cfg.run_dir, scores, with_scaled_boxes(predictions, scores["box_scale"]))


def find_runs(cfg: Config) -> tuple[list[Run], dict[str, str]]:
    """The scored runs in working/, those of most images and highest score first; by name, why others are left out."""
    runs, refused = [], {}
    for folder in run_folders(cfg):
        try:
            runs.append(read_run(as_made(replace(cfg.of_run(folder.name), fold="all"))))
        except UserError as error:
            refused[folder.name] = str(error)
    return sorted(runs, key=lambda run: (-len(run.ids), -run.scores["mAP"], run.name)), refused


def run_folders(cfg: Config) -> list[Path]:
    """The folders in working/ that training or fusion made, not the cache or something else."""
    folders = sorted(Path(cfg.working).glob("*"))
    return [f for f in folders if any(f.glob("fold*/config.yaml")) or (f / "ensemble.json").is_file()]


def compare_runs(cfg: Config, runs: list[Run], reference: Run, truth: pd.DataFrame, people: pd.Series) -> pd.DataFrame:
    """One row per run: its score and spread, and the paired difference to the reference on the images of both.

    Each run at its own threshold. people: patientId -> person, the unit that is resampled; images without are left out.
    """
    scores = {run.folder: image_scores(of_images(truth, run.ids), run.kept).mean(axis=1) for run in [*runs, reference]}
    rows = []
    for run in runs:
        shared = people.index.intersection(run.ids).intersection(reference.ids)
        own, other = (table[table.index.isin(shared)] for table in (scores[run.folder], scores[reference.folder]))
        draws = people[shared], cfg.bootstrap, cfg.seed
        difference, low, high = [np.nan] * 3 if run is reference else paired_interval(own, other, *draws)
        paired = {"difference": difference, "low": low, "high": high, "shared images": len(shared)}
        rows.append({"run": run.name, **describe(run), **paired})
    return pd.DataFrame(rows)


def describe(run: Run) -> dict[str, Any]:
    """The figures of a run in its files; None or NaN for those that are not there."""
    scores = run.scores
    low, high = scores["interval"]
    return {
        "images": scores["images"],
        "mAP": scores["mAP"],
        "spread": spread_of_folds(scores),
        "interval": f"{low:.4f} to {high:.4f}",
        "cross_fitted": scores.get("cross_fitted_mAP"),
        "AUC": scores["AUC"],
        "threshold": scores["threshold"],
        "seconds": training_seconds(run.folder),
        "megabytes": sum(path.stat().st_size for path in files_of_folds(run.folder, "*.pt")) / 2**20,
    }


def training_seconds(folder: Path) -> float:
    """Seconds that all recorded epochs of all folds, and of all members, took; NaN if nothing was recorded."""
    tables = [read_numbers(path, ["epoch", "seconds"]) for path in files_of_folds(folder, "seconds.csv")]
    return float(sum(table["seconds"].sum() for table in tables)) if tables else np.nan


def files_of_folds(folder: Path, pattern: str) -> list[Path]:
    """Files in the folders of a run's folds, and in those of its members."""
    members = parse_weights(str(read_settings(folder).get("members", "")))
    runs = [folder, *(folder.with_name(f"{folder.name}_{member}") for member in members)]
    return sorted(path for run in runs for path in run.glob(f"fold*/{pattern}"))


def manifests(folder: Path) -> list[dict[str, Any]]:
    """Of a run: the manifests of fusion, prediction and training (first fold each), those that are there."""
    patterns = ("ensemble.json", "fold*/predict.json", "fold*/train.json")
    return [read_manifest(path) for pattern in patterns for path in sorted(folder.glob(pattern))[:1]]


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run, as its manifests record them: of training, then of prediction and fusion."""
    settings: dict[str, Any] = {}
    # the precision shown is that of training: prediction may have had another
    for manifest in reversed(manifests(folder)):
        settings |= {key: value for key, value in manifest["settings"].items() if key not in settings}
    settings.pop("fold_list", None)
    return settings


def as_made(cfg: Config) -> Config:
    """The config with the settings that the run was made with, whatever is set now."""
    for manifest in manifests(cfg.run_dir):
        cfg = with_settings(cfg, manifest)
    return cfg


def as_shown(cfg: Config) -> Config:
    """Like as_made, but prints which of the given settings have no effect. Raises UserError if there is no such run."""
    names = [folder.name for folder in run_folders(cfg)]
    if cfg.name not in names:
        remedy = f"choose one of: {', '.join(names)}" if names else f"train one first: {command(cfg, 'train')}"
        raise UserError(f"name={cfg.name}: no such run in {cfg.working}; {remedy}")
    made = read_settings(cfg.run_dir)
    for key, value in changed_settings(cfg).items():
        if made.get(key, value) not in (value, "a file"):
            print(f"{key}={value} has no effect here: {cfg.name} was made with {key}={made[key]}")
    shown = as_made(cfg)
    if cfg.fold != "all" and cfg.fold_list != shown.fold_list:
        print(f"fold={cfg.fold} has no effect here: {cfg.name} was made with fold={shown.fold}")
    return shown


def differing_settings(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each run, the settings on which the runs differ. A setting that a run lacks is not compared."""
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    values = {key: {str(own[key]) for own in settings.values() if key in own} for key in keys}
    return {name: {key: own[key] for key in own if len(values[key]) > 1} for name, own in settings.items()}


def people_of(folds: pd.DataFrame) -> pd.Series:
    """patientId -> person, from folds.csv."""
    return folds.set_index("patientId")["group"].astype(str)
