"""Write submissions/<name>.csv in Kaggle's format from working/<name>/test.csv, and where it came from.

python src/make_submission.py [name=...] [threshold=auto|0.35]
"""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json, write_json, write_then_rename
from rsna.core.locks import file_lock
from rsna.core.stamps import SCORES_JSON, check_fused
from rsna.core.tables import read_table
from rsna.data.cache import read_index
from rsna.data.competition import LABELS_CSV, PREDICTION_COLUMNS, SAMPLE_CSV, read_predictions, read_sample
from rsna.data.submission_format import check_submission, format_submission
from rsna.evaluation.metric import halfway, keep_confident


def main(cfg: Config) -> None:
    ids = read_sample(Path(cfg.input))
    predictions = read_test(cfg, ids)
    threshold, reason = choose_threshold(cfg, predictions)
    index = read_index(cfg.cache_dir, cfg.size)
    shapes = index[index["split"] == "test"].set_index("patientId")[["rows", "cols"]]
    say_left_out(shapes.index.difference(ids))
    submission = format_submission(keep_confident(predictions, threshold), ids, shapes)
    with file_lock(cfg.run_dir):
        with write_then_rename(cfg.submission_csv) as temporary:
            submission.to_csv(temporary, index=False)
            checked = check_submission(temporary, ids, shapes)
        write_json(provenance(cfg, threshold, reason, checked), cfg.submission_csv.with_suffix(".json"))
    print_submission(cfg, checked, threshold, reason)


def choose_threshold(cfg: Config, predictions: pd.DataFrame) -> tuple[float, str]:
    """The confidence threshold for the test images and where it comes from.

    The best threshold out of fold does not carry over as a number: a test image is seen by all folds and an
    out-of-fold image by one, and where members disagree on the place the fused confidence is lower. But each
    fold's own test table is on the scale of its out-of-fold table. So auto counts the share of the test images
    that get a box from single folds at that threshold, and gives the same share a box in the fused table: if
    the test images hold more opacities than the training images, more get a box. Raises UserError if auto has
    nothing to go by.
    """
    if cfg.threshold != "auto":
        return float(cfg.threshold), "given as threshold="
    path, maker = cfg.run_dir / "scores.json", command(cfg, "evaluate")
    scores = read_json(path, maker, SCORES_JSON)
    if scores["oof"] != content_hash(cfg.run_dir / "oof.csv"):
        raise UserError(f"{path} is of other predictions; run: {maker}")
    by_fold = read_table(cfg.run_dir / "test_by_fold.csv", [*PREDICTION_COLUMNS, "fold"], command(cfg, "ensemble"))
    shares = by_fold.groupby(["fold", "patientId"])["confidence"].max().ge(scores["threshold"]).groupby("fold").mean()
    threshold = threshold_of_share(predictions, float(shares.mean()))
    return threshold, (
        f"{shares.mean():.1%} of the test images, as many as single folds give a box at {scores['threshold']:.4f}, "
        f"the best threshold out of fold"
    )


def threshold_of_share(predictions: pd.DataFrame, share: float) -> float:
    """The confidence threshold that gives a share of the images a box that is as near to `share` as ties allow."""
    top = predictions.groupby("patientId")["confidence"].max().fillna(0.0).sort_values(ascending=False).to_numpy()
    ends = np.append(0, np.flatnonzero(np.diff(top, append=-np.inf)) + 1)
    n_kept = int(ends[np.abs(ends - share * len(top)).argmin()])
    return float(halfway(top[n_kept - 1] if n_kept else np.inf, top[n_kept] if n_kept < len(top) else -np.inf))


def read_test(cfg: Config, ids: list[str]) -> pd.DataFrame:
    """The run's test.csv. Raises UserError if an image is missing, or if it is not what the folds predict now."""
    path, maker = cfg.run_dir / "test.csv", command(cfg, "ensemble")
    predictions = read_predictions(path, maker)
    check_fused(cfg.run_dir, cfg.folds_csv, maker)
    missing = set(ids) - set(predictions["patientId"])
    if missing:
        raise UserError(
            f"{path}: no row for {min(missing)} and {len(missing) - 1} more; run predict and ensemble again"
        )
    return predictions


def say_left_out(names: pd.Index) -> None:
    if len(names):
        print(
            f"WARNING: {len(names)} test images, first {names[0]}, are not in {SAMPLE_CSV} and get no row; is it whole?"
        )


def provenance(cfg: Config, threshold: float, reason: str, checked: pd.DataFrame) -> dict[str, object]:
    """What stands beside a submission: enough to make it again and to know what to expect of it."""
    with_box = checked.dropna(subset=["confidence"])["patientId"].nunique()
    made_from = {
        "test.csv": content_hash(cfg.run_dir / "test.csv"),
        "scores.json": content_hash(cfg.run_dir / "scores.json"),
        LABELS_CSV: content_hash(Path(cfg.input) / LABELS_CSV),
    }
    made_from["submission"] = content_hash(cfg.submission_csv)
    images = {"images": int(checked["patientId"].nunique()), "images_with_box": int(with_box)}
    return {"name": cfg.name, "threshold": threshold, "threshold_from": reason, **images, "made_from": made_from}


def print_submission(cfg: Config, checked: pd.DataFrame, threshold: float, reason: str) -> None:
    boxes = checked.dropna(subset=["confidence"])
    total, with_box = checked["patientId"].nunique(), boxes["patientId"].nunique()
    print(f"threshold {threshold:.4f} ({reason})")
    print(f"{with_box} of {total} images ({with_box / total:.1%}) got a box, {len(boxes)} boxes")
    if len(boxes):
        print(f"confidences from {boxes['confidence'].min():.4f} to {boxes['confidence'].max():.4f}")
    else:
        print("WARNING: without any box it scores 0 on each image with an opacity; say a lower threshold=")
    print(f"checked against the sample submission -> {cfg.submission_csv}")
    if cfg.preset == "demo":
        print("synthetic images: nothing to upload; with Kaggle's files in input/ the command would stand here")
        return
    print(
        f"to upload: kaggle competitions submit -c rsna-pneumonia-detection-challenge "
        f"-f {shlex.quote(str(cfg.submission_csv))} -m {cfg.name}"
    )


if __name__ == "__main__":
    run(main)
