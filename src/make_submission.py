"""Write submissions/<name>.csv in Kaggle's format from working/<name>/test.csv, and where it came from.

python src/make_submission.py [name=...] [threshold=auto|0.35]
"""

from pathlib import Path

import numpy as np
import pandas as pd

from competition import LABELS_CSV, PREDICTION_COLUMNS, read_sample
from config import Config, load_config
from files import UserError, fingerprint, read_json, read_table, write_json, write_table
from images import read_index
from metric import halfway, keep_confident
from submission import check_submission, format_submission


def main(cfg: Config) -> None:
    predictions = read_table(cfg.run_dir / "test.csv", PREDICTION_COLUMNS, maker=f"./run.sh name={cfg.name}")
    ids = read_sample(Path(cfg.input))
    check_ids(cfg.run_dir / "test.csv", predictions, ids)
    threshold, reason = choose_threshold(cfg, predictions)
    index = read_index(cfg.cache_dir)
    shapes = index[index["split"] == "test"].set_index("patientId")[["rows", "cols"]]
    kept = keep_confident(predictions, threshold)
    write_table(format_submission(kept, ids, shapes), cfg.submission_csv)
    checked = check_submission(cfg.submission_csv, ids, shapes)
    write_json(provenance(cfg, threshold, reason, checked), cfg.submission_csv.with_suffix(".json"))
    print_submission(cfg, checked, threshold, reason)


def choose_threshold(cfg: Config, predictions: pd.DataFrame) -> tuple[float, str]:
    """The confidence threshold for the test images and where it comes from.

    auto: what gives the same share of test images a box as the best threshold gives out of fold. The number
    itself does not carry over: a test image is seen by all folds and an out-of-fold image by one, and the more
    members there are to disagree on the place, the lower the fused confidence. Raises UserError if auto has
    nothing to go by.
    """
    if cfg.threshold != "auto":
        return float(cfg.threshold), "given as threshold="
    path = cfg.run_dir / "scores.json"
    maker = f"python src/evaluate.py name={cfg.name}"
    scores = read_json(path, maker)
    if scores["oof"] != fingerprint(cfg.run_dir / "oof.csv"):
        raise UserError(f"{path} is of other predictions; run: {maker}")
    threshold = threshold_of_share(predictions, scores["with_box"])
    direct = keep_confident(predictions, scores["threshold"])["patientId"].nunique()
    share = f"{scores['with_box']:.1%} of the images get a box, as out of fold at its best, {scores['threshold']:.4f}"
    return threshold, f"{share}, which here would give {direct / predictions['patientId'].nunique():.1%}"


def threshold_of_share(predictions: pd.DataFrame, share: float) -> float:
    """The confidence threshold that leaves boxes on this share of the images (rounded to a whole image)."""
    top = predictions.groupby("patientId")["confidence"].max().fillna(0.0).sort_values(ascending=False).to_numpy()
    n_kept = round(share * len(top))
    return float(halfway(top[n_kept - 1] if n_kept else np.inf, top[n_kept] if n_kept < len(top) else -np.inf))


def check_ids(path: Path, predictions: pd.DataFrame, ids: list[str]) -> None:
    missing = set(ids) - set(predictions["patientId"])
    if missing:
        raise UserError(
            f"{path}: no row for {min(missing)} and {len(missing) - 1} more; run predict and ensemble again"
        )


def provenance(cfg: Config, threshold: float, reason: str, checked: pd.DataFrame) -> dict[str, object]:
    """What stands beside a submission: enough to make it again and to know what to expect of it."""
    with_box = checked.dropna(subset=["confidence"])["patientId"].nunique()
    made_from = {
        "test.csv": fingerprint(cfg.run_dir / "test.csv"),
        "scores.json": fingerprint(cfg.run_dir / "scores.json"),
        LABELS_CSV: fingerprint(Path(cfg.input) / LABELS_CSV),
    }
    images = {"images": int(checked["patientId"].nunique()), "images_with_box": int(with_box)}
    return {"name": cfg.name, "threshold": threshold, "threshold_from": reason, **images, "made_from": made_from}


def print_submission(cfg: Config, checked: pd.DataFrame, threshold: float, reason: str) -> None:
    boxes = checked.dropna(subset=["confidence"])
    total, with_box = checked["patientId"].nunique(), boxes["patientId"].nunique()
    print(f"threshold {threshold:.4f} ({reason})")
    print(f"{with_box} of {total} images ({with_box / total:.1%}) got a box, {len(boxes)} boxes")
    if len(boxes):
        print(f"confidences from {boxes['confidence'].min():.4f} to {boxes['confidence'].max():.4f}")
    print(f"checked against the sample submission -> {cfg.submission_csv}")
    print(
        f"to upload: kaggle competitions submit -c rsna-pneumonia-detection-challenge "
        f"-f '{cfg.submission_csv}' -m '{cfg.name}'"
    )


if __name__ == "__main__":
    main(load_config())
