"""Print what came out of a run: scores by fold, the threshold, baselines, the test score if it can be known.

python src/summary.py [name=...] [test_labels=<labels csv of the test images>]
"""

from pathlib import Path
from typing import Any

import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json
from rsna.core.stamps import SCORES_JSON, SUBMISSION_JSON
from rsna.data.competition import LABELS_CSV, read_labels, truth_boxes
from rsna.data.submission_format import parse_submission
from rsna.evaluation import scores as scoring

Row = tuple[str, Any, Any, Any, str]


def main(cfg: Config) -> None:
    scores, submission = read_results(cfg)
    rows = [fold_row(fold) for fold in scores["per_fold"]] + out_of_fold_rows(scores)
    if Path(cfg.test_labels).is_file():
        rows += test_rows(cfg)
    elif Path(cfg.test_labels) != Path(cfg.root) / "test_labels.csv":
        raise UserError(f"test_labels={cfg.test_labels}: no such file")
    print(f"\nrun {cfg.name}")
    header = ["", "images", "AUC", "IoU", "mAP"]
    table = pd.DataFrame(rows, columns=header).set_index("").rename_axis(None)
    width = max(len(row[0]) for row in rows)
    table.index = table.index.str.ljust(width)
    table["mAP"] = table["mAP"].str.ljust(table["mAP"].str.len().max())
    print(table.to_string(float_format="{:.3f}".format, na_rep=""))
    print_threshold(scores, submission)
    print_paths(cfg)


def print_paths(cfg: Config) -> None:
    print(f"to see boxes on images: {command(cfg, 'show_results')}")
    for path in (cfg.folds_csv, cfg.cache_dir, cfg.run_dir, cfg.submission_csv):
        print(f"results in {path}")


def read_results(cfg: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """scores.json and the submission's json. Raises UserError if they are missing or do not belong together."""
    scores = read_json(cfg.run_dir / "scores.json", command(cfg, "evaluate"), SCORES_JSON)
    maker = command(cfg, "make_submission")
    submission = read_json(cfg.submission_csv.with_suffix(".json"), maker, SUBMISSION_JSON)
    made_from = submission["made_from"]
    found = {"submission": content_hash(cfg.submission_csv), "scores.json": content_hash(cfg.run_dir / "scores.json")}
    if any(made_from.get(name) != value for name, value in found.items()):
        raise UserError(f"{cfg.submission_csv} does not belong to its json and scores.json; run: {maker}")
    return scores, submission


def fold_row(fold: dict[str, Any]) -> Row:
    return f"fold {fold['fold']}", fold["images"], fold["AUC"], fold["IoU"], in_digits(fold["mAP"])


def out_of_fold_rows(scores: dict[str, Any]) -> list[Row]:
    """All folds together, the honest estimate, and the baselines on the same images."""
    n = scores["images"]
    by_fold = pd.Series([fold["mAP"] for fold in scores["per_fold"]])
    spread = f" ± {by_fold.std():.4f} over folds" if len(by_fold) > 1 else ""
    low, high = scores["interval"]
    return [
        ("out of fold", n, scores["AUC"], scores["IoU"], in_digits(scores["mAP"]) + spread),
        ("  95 % interval", n, None, None, f"{low:.4f} to {high:.4f} (people resampled)"),
        ("  threshold from the other folds", n, None, None, in_digits(scores["cross_fitted_mAP"])),
        ("  plain view only, its best threshold", n, None, None, in_digits(scores["plain_best_mAP"])),
        *((f"  {name}", n, None, None, in_digits(value)) for name, value in scores["baselines"].items()),
    ]


def in_digits(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def test_rows(cfg: Config) -> list[Row]:
    """The submission against the truth of the test images, with the same baselines; only ever a last look."""
    kept = parse_submission(cfg.submission_csv)
    ids = kept["patientId"].drop_duplicates().tolist()
    kept = kept.dropna(subset=["confidence"])
    labels = read_labels(Path(cfg.test_labels))
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(f"test_labels={cfg.test_labels}: no row for {len(unknown)} test images, such as {min(unknown)}")
    truth = scoring.of_images(truth_boxes(labels), ids)
    median = scoring.median_boxes(truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV)), ids)
    scores = scoring.describe(kept, truth, ids, pd.Series(ids, index=ids), cfg.bootstrap, cfg.seed)
    plain = scoring.baselines(median, kept, truth)
    if not scores["per_iou"]:
        return [("submission, test images", len(ids), None, None, "nothing to score: no truth and no box")]
    low, high = scores["interval"]
    return [
        ("submission, test images", len(ids), None, None, f"{scores['mAP']:.4f}"),
        ("  95 % interval", len(ids), None, None, f"{low:.4f} to {high:.4f}"),
        *((f"  {name}", len(ids), None, None, f"{value:.4f}") for name, value in plain.items()),
    ]


def print_threshold(scores: dict[str, Any], submission: dict[str, Any]) -> None:
    print("AUC: opacity or not; IoU: best box with the largest true box, on positives; mAP: the competition's metric,")
    print("here at one threshold for all folds (while training: at the one that suits the fold's epoch best)")
    print(f"threshold {submission['threshold']:.4f}: {submission['threshold_from']}")
    print(
        f"{scores['with_box']:.1%} of the out-of-fold images and "
        f"{submission['images_with_box'] / submission['images']:.1%} of the test images got a box"
    )


if __name__ == "__main__":
    run(main)
