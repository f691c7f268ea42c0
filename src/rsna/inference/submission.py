"""From a run's test.csv to submissions/<name>.csv: the threshold, Kaggle's format, the check, the manifest."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.artifacts import current_manifest, is_current, record, require, withdraw
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import file_lock, read_json, write_then_rename
from rsna.data.cache import read_index
from rsna.data.competition import SAMPLE_CSV, read_predictions, read_sample
from rsna.data.submission_format import check_submission, format_submission
from rsna.evaluation.scores import read_scores
from rsna.evaluation.threshold import OperatingPoint, point_for_test

# what others take from submissions/<name>.json, and of what type
SUBMISSION_JSON = {"images": int, "images_with_box": int, "threshold": int | float, "threshold_from": str}


@dataclass(frozen=True)
class Submission:
    """A submission that was written and read back."""

    boxes: pd.DataFrame  # its boxes: patientId, confidence, x, y, width, height
    point: OperatingPoint
    images: int
    images_with_box: int


def write_submission(cfg: Config) -> Submission | None:
    """Write submissions/<name>.csv and its manifest; None if they are current.

    Raises UserError where the run's tables or scores are missing or do not belong to each other.
    """
    ids = read_sample(Path(cfg.input))
    index = read_index(cfg.cache_dir, cfg.size)
    shapes = index[index["split"] == "test"].set_index("patientId")[["rows", "cols"]]
    with file_lock(cfg.run_dir):
        require(cfg, "ensemble")
        made = current_manifest(cfg, "make_submission")
        predictions = read_test(cfg, ids)
        point = choose_point(cfg, predictions)
        if is_current(cfg, "make_submission"):
            return None
        withdraw(cfg, "make_submission")
        if len(extra := shapes.index.difference(ids)):
            names = f"{len(extra)} test images, first {extra[0]}, are not in {SAMPLE_CSV}"
            print(f"WARNING: {names} and get no row; is it whole?")
        table = format_submission(point.apply(predictions), ids, shapes)
        with write_then_rename(cfg.submission_csv) as temporary:
            table.to_csv(temporary, index=False)
            boxes = check_submission(temporary, ids, shapes).dropna(subset=["confidence"])
        counts: dict[str, Any] = {"images": len(ids), "images_with_box": boxes["patientId"].nunique()}
        results = {"threshold": point.threshold, "threshold_from": point.how_chosen, **counts}
        record(cfg, "make_submission", made=made, **results)
    return Submission(boxes, point, **counts)


def read_test(cfg: Config, ids: list[str]) -> pd.DataFrame:
    """The run's test.csv. Raises UserError if an image of the sample submission is not in it."""
    path = cfg.run_dir / "test.csv"
    predictions = read_predictions(path, command(cfg, "ensemble"))
    missing = set(ids) - set(predictions["patientId"])
    if missing:
        raise UserError(f"{path}: no row for {min(missing)} and {len(missing) - 1} more; rerun predict and ensemble")
    return predictions


def choose_point(cfg: Config, predictions: pd.DataFrame) -> OperatingPoint:
    """threshold= where it is a number, else the one that point_for_test chooses. Raises UserError without scores."""
    if cfg.threshold != "auto":
        return OperatingPoint(float(cfg.threshold), how_chosen="given as threshold=")
    require(cfg, "evaluate")
    scores = read_scores(cfg.run_dir, command(cfg, "evaluate"))
    by_fold = read_predictions(cfg.run_dir / "test_by_fold.csv", command(cfg, "ensemble"), more=["fold"])
    return point_for_test(predictions, by_fold, scores["threshold"])


def read_submission(cfg: Config) -> dict[str, Any]:
    """The manifest of a run's submission. Raises UserError if it is missing, broken, or of another file or scores."""
    require(cfg, "make_submission")
    return read_json(cfg.submission_csv.with_suffix(".json"), command(cfg, "make_submission"), SUBMISSION_JSON)


def upload_command(cfg: Config) -> str:
    """What to type to upload the submission with Kaggle's client."""
    words = ["kaggle", "competitions", "submit", "-c", "rsna-pneumonia-detection-challenge"]
    return shlex.join([*words, "-f", str(cfg.submission_csv), "-m", cfg.name])
