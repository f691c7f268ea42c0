"""Write submissions/<name>.csv from a run's test.csv: operating point, Kaggle's format, check, manifest."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.artifacts import current_manifest, is_current, manifest_path, read_manifest, record, require
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import ABSENT, content_hash, read_json, write_then_rename
from rsna.core.locks import file_lock
from rsna.core.stages import names_file
from rsna.core.tables import read_numbers
from rsna.data.cache import read_index
from rsna.data.competition import SAMPLE_CSV, read_predictions, read_sample
from rsna.data.submission_format import check_submission, format_submission
from rsna.evaluation.operating_point import SURFACE_COLUMNS
from rsna.evaluation.prior import estimate_prior, mean_score
from rsna.evaluation.scores import read_scores
from rsna.evaluation.threshold import OperatingPoint, best_threshold, point_for_test

# what other modules read from submissions/<name>.json, with the types
SUBMISSION_JSON = {"images": int, "images_with_box": int, "threshold": int | float, "threshold_from": str}


@dataclass(frozen=True)
class Submission:
    """A submission that was written and read back."""

    boxes: pd.DataFrame  # patientId, confidence, x, y, width, height in original pixels
    point: OperatingPoint
    images: int
    images_with_box: int


def write_submission(cfg: Config) -> Submission | None:
    """Write the submission and its manifest; None if they are current. Raises UserError if an input is not current."""
    ids = read_sample(Path(cfg.input))
    shapes = read_index(cfg.cache_dir, cfg.size, "test").set_index("patientId")[["rows", "cols"]]
    with file_lock(cfg.run_dir):
        require(cfg, "ensemble")
        made = current_manifest(cfg, "make_submission")
        predictions = read_predictions(cfg.run_dir / "test.csv", command(cfg, "ensemble"))
        point = choose_point(cfg, predictions)
        if is_current(cfg, "make_submission"):
            return None
        if len(extra := shapes.index.difference(ids)):
            names = f"{len(extra)} test images, first {extra[0]}, are not in {SAMPLE_CSV}"
            print(f"WARNING: {names} and get no row; is it whole?")
        table = format_submission(point.apply(predictions), ids, shapes)
        with write_then_rename(cfg.submission_csv) as temporary:
            table.to_csv(temporary, index=False)
            claim(cfg, temporary)
            boxes = check_submission(temporary, ids, shapes).dropna(subset=["confidence"])
        counts: dict[str, Any] = {"images": len(ids), "images_with_box": boxes["patientId"].nunique()}
        chosen: dict[str, Any] = {"threshold": point.threshold, "threshold_from": point.how_chosen}
        record(cfg, "make_submission", made=made, **chosen, box_scale=point.box_scale, **counts)
    return Submission(boxes, point, **counts)


def claim(cfg: Config, new: Path) -> None:
    """Raise UserError if `new` would replace a submission that this program did not write."""
    path, manifest = cfg.submission_csv, manifest_path(cfg, "make_submission")
    # a command that was killed may have left the same file without its manifest
    known = {ABSENT, content_hash(new)}
    if manifest.is_file():
        known |= set(read_manifest(manifest, command(cfg, "make_submission"))["outputs"].values())
    if content_hash(path) not in known:
        raise UserError(f"{path}: not as make_submission wrote it, and not overwritten; move it, or set another name=")


def choose_point(cfg: Config, predictions: pd.DataFrame) -> OperatingPoint:
    """The operating point: threshold= and box_scale= where they are numbers, else from scores.json; see point_for_test.

    Raises UserError if scores are needed and missing, or were made with another box_scale= or calibrate=.
    """
    given = "given as threshold="
    if "auto" not in (cfg.threshold, cfg.box_scale):
        return OperatingPoint(float(cfg.threshold), float(cfg.box_scale), given)
    rebuild = command(cfg, "evaluate")
    made_with = require(cfg, "evaluate")["settings"]
    wanted = {"box_scale": cfg.box_scale}
    if cfg.calibrate != "auto" and not names_file(cfg, "calibrate"):  # a file's content is compared by `require`
        wanted["calibrate"] = cfg.calibrate
    for key, value in wanted.items():
        if (found := made_with.get(key)) != value:
            path = cfg.run_dir / "scores.json"
            raise UserError(f"{path}: made with {key}={found}, and now {key}={value}; run: {rebuild}")
    scores = read_scores(cfg.run_dir, rebuild)
    if cfg.threshold != "auto":
        return OperatingPoint(float(cfg.threshold), scores["box_scale"], given)
    by_fold = read_predictions(cfg.run_dir / "test_by_fold.csv", command(cfg, "ensemble"), more=["fold"])
    threshold, why = threshold_for_prior(cfg, scores, by_fold)
    point = point_for_test(predictions, by_fold, threshold, scores["box_scale"])
    return replace(point, how_chosen=point.how_chosen + why)


def threshold_for_prior(cfg: Config, scores: dict[str, Any], by_fold: pd.DataFrame) -> tuple[float, str]:
    """The out-of-fold threshold, corrected for the fraction of positives given by prior=; and the reason, as text."""
    point = scores["operating_point"]
    if cfg.prior == "none":
        return scores["threshold"], ""
    share = point["positives"] / point["images"]
    if cfg.prior == "auto":
        prior, low, high = estimate_prior(point["bins"], by_fold, *point["resampling"])
        words = f"estimated, 95 % interval {low:.1%} to {high:.1%}"
        if low <= share <= high:
            why = f". Positives: {prior:.1%} of the test images ({words}), {share:.1%} out of fold"
            return scores["threshold"], f"{why}: not clearly different, so the threshold is not corrected"
    else:
        prior, words = float(cfg.prior), "prior="
    surface = read_numbers(cfg.run_dir / "surface.csv", SURFACE_COLUMNS, command(cfg, "evaluate"))
    rows = surface[np.isclose(surface["box_scale"], scores["box_scale"])]
    threshold = best_threshold(rows.assign(score=mean_score(rows["found"], rows["false_alarms"], prior)))
    return threshold, f". The threshold is corrected from {share:.1%} positives out of fold to {prior:.1%} ({words})"


def read_submission(cfg: Config) -> dict[str, Any]:
    """Read the manifest of a run's submission. Raises UserError if it is missing, broken or not current."""
    require(cfg, "make_submission")
    path, rebuild = cfg.submission_csv.with_suffix(".json"), command(cfg, "make_submission")
    found = read_json(path, rebuild, SUBMISSION_JSON)
    if not 0 <= found["images_with_box"] <= found["images"] or not found["images"]:
        raise UserError(f"{path}: 'images' is not valid; delete it and run: {rebuild}")
    return found


def upload_command(cfg: Config) -> str:
    """The shell command that uploads the submission with Kaggle's client."""
    words = ["kaggle", "competitions", "submit", "-c", "rsna-pneumonia-detection-challenge"]
    return shlex.join([*words, "-f", str(cfg.submission_csv), "-m", cfg.name])
