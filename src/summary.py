"""Print what came out of a run: scores by fold, the threshold, baselines, the test score if it can be known.

python src/summary.py [name=...] [test_labels=<labels csv of the test images>]
"""

from pathlib import Path
from typing import Any

import pandas as pd

import scoring
from competition import LABELS_CSV, read_labels, truth_boxes
from config import Config, load_config
from files import read_json
from submission import parse_submission

Row = tuple[str, Any, Any, Any, str]


def main(cfg: Config) -> None:
    scores = read_json(cfg.run_dir / "scores.json", maker=f"python src/evaluate.py name={cfg.name}")
    maker = f"python src/make_submission.py name={cfg.name}"
    submission = read_json(cfg.submission_csv.with_suffix(".json"), maker)
    rows = [fold_row(fold) for fold in scores["per_fold"]] + out_of_fold_rows(scores)
    if Path(cfg.test_labels).is_file():
        rows += test_rows(cfg, submission["threshold"])
    print(f"\nrun {cfg.name}")
    header = ["", "images", "AUC", "IoU", "mAP"]
    table = pd.DataFrame(rows, columns=header).set_index("").rename_axis(None)
    width = max(len(row[0]) for row in rows)
    table.index = table.index.str.ljust(width)
    table["mAP"] = table["mAP"].str.ljust(table["mAP"].str.len().max())
    print(table.to_string(float_format="{:.3f}".format, na_rep=""))
    print_threshold(scores, submission)
    for path in (cfg.folds_csv, cfg.cache_dir, cfg.run_dir, cfg.submission_csv):
        print(f"wrote {path}")


def fold_row(fold: dict[str, Any]) -> Row:
    return f"fold {fold['fold']}", fold["images"], fold["AUC"], fold["IoU"], f"{fold['mAP']:.4f}"


def out_of_fold_rows(scores: dict[str, Any]) -> list[Row]:
    """All folds together, the honest estimate, and the baselines on the same images."""
    n = scores["images"]
    spread = pd.Series([fold["mAP"] for fold in scores["per_fold"]]).std()
    low, high = scores["interval"]
    return [
        ("out of fold", n, scores["AUC"], scores["IoU"], f"{scores['mAP']:.4f} ± {spread:.4f} over folds"),
        ("  95 % interval", n, None, None, f"{low:.4f} to {high:.4f} (people resampled)"),
        ("  threshold from the other folds", n, None, None, f"{scores['cross_fitted_mAP']:.4f}"),
        ("  plain view only, no flip", n, None, None, f"{scores['plain_mAP']:.4f}"),
        *((f"  {name}", n, None, None, f"{value:.4f}") for name, value in scores["baselines"].items()),
    ]


def test_rows(cfg: Config, threshold: float) -> list[Row]:
    """The submission against the truth of the test images, with the same baselines; only ever a last look."""
    kept = parse_submission(cfg.submission_csv)
    ids = kept["patientId"].drop_duplicates().tolist()
    kept = kept.dropna(subset=["confidence"])
    truth = scoring.of_images(truth_boxes(read_labels(Path(cfg.test_labels))), ids)
    median = scoring.median_boxes(truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV)), ids)
    scores = scoring.describe(kept, truth, ids, pd.Series(ids, index=ids), cfg.bootstrap, cfg.seed)
    plain = scoring.baselines(median, kept, truth)
    low, high = scores["interval"]
    return [
        ("submission, test images", len(ids), None, None, f"{scores['mAP']:.4f}"),
        ("  95 % interval", len(ids), None, None, f"{low:.4f} to {high:.4f}"),
        *((f"  {name}", len(ids), None, None, f"{value:.4f}") for name, value in plain.items()),
    ]


def print_threshold(scores: dict[str, Any], submission: dict[str, Any]) -> None:
    print("AUC: opacity or not; IoU: best box with the largest true box, on positives; mAP: the competition's metric")
    print(
        f"threshold {submission['threshold']:.4f} ({submission['threshold_from']}): boxes with less confidence are not "
        f"submitted;\n  {scores['with_box']:.1%} of the out-of-fold images and "
        f"{submission['images_with_box'] / submission['images']:.1%} of the test images got a box"
    )


if __name__ == "__main__":
    main(load_config())
