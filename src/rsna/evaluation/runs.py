"""Finished runs: what a run folder holds, and how runs compare on the images that they share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rsna.core.config import (
    AugmentSettings,
    CacheSettings,
    ComputeSettings,
    Config,
    FoldSettings,
    FusionSettings,
    ModelSettings,
    PredictSettings,
    SeedSettings,
    TrainSettings,
)
from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json
from rsna.core.stamps import SCORES_JSON, check_fused
from rsna.core.tables import read_table
from rsna.data.competition import read_predictions
from rsna.evaluation.bootstrap import paired_interval
from rsna.evaluation.metric import image_scores, keep_confident

DECISIVE = (
    FoldSettings,
    SeedSettings,
    CacheSettings,
    ModelSettings,
    ComputeSettings,
    TrainSettings,
    AugmentSettings,
    PredictSettings,
    FusionSettings,
)  # what tells runs apart


@dataclass(frozen=True)
class Run:
    """A run that has been scored."""

    folder: Path
    scores: dict[str, Any]  # scores.json
    predictions: pd.DataFrame  # oof.csv

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kept(self) -> pd.DataFrame:
        """The predictions at the run's own threshold."""
        return keep_confident(self.predictions, self.scores["threshold"])

    @property
    def ids(self) -> list[str]:
        return self.predictions["patientId"].drop_duplicates().tolist()


def read_run(folder: Path, predict: str, evaluate: str) -> Run:
    """oof.csv and scores.json of a run. Raises UserError if one is missing, broken or older than the other.

    predict, evaluate: the commands that make the two.
    """
    predictions = read_predictions(folder / "oof.csv", predict)
    path = folder / "scores.json"
    scores = read_json(path, evaluate, SCORES_JSON)
    if scores["oof"] != content_hash(folder / "oof.csv"):
        raise UserError(f"{path} is of other predictions; run: {evaluate}")
    return Run(folder, scores, predictions)


def find_runs(working: Path, folds_csv: Path) -> tuple[list[Run], dict[str, str]]:
    """The scored runs in a folder, best first; and the names of those that cannot be compared, with the reason.

    Those are not scored, or not since they were predicted or fused anew, or of other folds.
    """
    runs, refused = [], {}
    for folder in sorted(path for path in working.glob("*") if is_run(path)):
        try:
            fuse = f"./run.sh ensemble name={folder.name}"
            run = read_run(folder, fuse, f"./run.sh evaluate name={folder.name}")
            check_fused(folder, folds_csv, fuse)
            runs.append(run)
        except UserError as error:
            refused[folder.name] = str(error)
    return sorted(runs, key=lambda run: (-len(run.ids), -run.scores["mAP"], run.name)), refused


def is_run(folder: Path) -> bool:
    """Whether a folder was made by training or by fusing runs: not the cache, not something else."""
    return any(folder.glob("fold*/config.yaml")) or (folder / "ensemble.json").is_file()


def compare_runs(
    runs: list[Run], reference: Run, truth: pd.DataFrame, people: pd.Series, n_resamples: int, seed: int
) -> pd.DataFrame:
    """One row per run: its score and spread, and the paired difference to the reference on the images of both.

    Each run is taken at its own threshold. people: patientId -> person. Images that `people` lacks are left out.
    """
    of_run = {run.folder: all_scores(run, truth) for run in [*runs, reference]}
    rows = []
    for run in runs:
        shared = people.index.intersection(run.ids).intersection(reference.ids)
        pair = [of_run[one.folder][of_run[one.folder].index.isin(shared)] for one in (run, reference)]
        difference = (np.nan, np.nan, np.nan)
        if run is not reference:
            difference = paired_interval(pair[0], pair[1], people[shared], n_resamples, seed)
        rows.append(
            {"run": run.name, **describe(run), **dict(zip(("difference", "low", "high"), difference, strict=True))}
        )
        rows[-1]["shared images"] = len(shared)
    return pd.DataFrame(rows)


def all_scores(run: Run, truth: pd.DataFrame) -> pd.Series:
    """The run's image scores at its own threshold, of the images that count."""
    return image_scores(truth[truth["patientId"].isin(run.ids)], run.kept).mean(axis=1)


def describe(run: Run) -> dict[str, Any]:
    """What a run's files say of it; None where they do not."""
    scores = run.scores
    by_fold = [fold["mAP"] for fold in scores["per_fold"] if fold["mAP"] is not None]
    low, high = scores["interval"]
    return {
        "images": scores["images"],
        "mAP": scores["mAP"],
        "spread": float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else np.nan,
        "interval": f"{low:.4f} to {high:.4f}",
        "honest": scores.get("cross_fitted_mAP"),
        "AUC": scores["AUC"],
        "threshold": scores["threshold"],
        "seconds": training_seconds(run.folder),
        "megabytes": sum(path.stat().st_size for path in run.folder.glob("fold*/*.pt")) / 2**20,
    }


def training_seconds(folder: Path) -> float:
    """Seconds that all recorded epochs of all folds took together; NaN if nothing was recorded."""
    paths = sorted(folder.glob("fold*/seconds.csv"))
    tables = [read_table(path, ["epoch", "seconds"]) for path in paths]
    return float(sum(table["seconds"].sum() for table in tables)) if tables else np.nan


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a run was made with, as far as its files tell: training, then prediction and ensemble."""
    known, found, trained = Config().only(*DECISIVE), dict[str, Any](), Config().only(TrainSettings)
    for path in sorted(folder.glob("fold*/config.yaml"))[:1]:
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a settings file ({str(error).splitlines()[0]}); train again") from None
        found |= {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    # prediction may have had a precision of its own
    trained = {key: found[key] for key in trained if key in found}
    for path in [*sorted(folder.glob("fold*/predict.json"))[:1], folder / "ensemble.json"]:
        found |= read_json(path).get("made_from", {}) if path.is_file() else {}
    return {key: value for key, value in (found | trained).items() if key in known}


def as_made(cfg: Config) -> Config:
    """The same, but with the settings that the run in its folder was made with, whatever was said now."""
    own: dict[str, Any] = read_settings(cfg.run_dir)
    stamp = cfg.run_dir / "ensemble.json"
    folds = read_json(stamp).get("made_from", {}).get("fold_list") if stamp.is_file() else None
    if folds:
        own["fold"] = ",".join(map(str, folds))
    return replace(cfg, **own)


def differing_settings(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the settings of each run those that are not the same in all that have them; an ensemble has few."""
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    values = {key: {str(own[key]) for own in settings.values() if key in own} for key in keys}
    return {name: {key: own[key] for key in own if len(values[key]) > 1} for name, own in settings.items()}


def people_of(folds: pd.DataFrame) -> pd.Series:
    """patientId -> person, from folds.csv."""
    return folds.drop_duplicates("patientId").set_index("patientId")["group"].astype(str)
