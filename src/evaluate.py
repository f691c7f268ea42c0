"""Score out-of-fold predictions and choose the confidence threshold; or score any predictions against labels.

python src/evaluate.py [name=...]                          -> working/<name>/scores.json, threshold.csv
python src/evaluate.py predictions=<table or submission> [labels=<labels csv>] [threshold=0.4]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scoring
from competition import FOLD_COLUMNS, LABELS_CSV, PREDICTION_COLUMNS, read_labels, read_people, truth_boxes
from config import Config, load_config
from files import UserError, fingerprint, read_table, write_json, write_table
from metric import best_threshold, image_scores, keep_confident, threshold_sweep
from submission import SUBMISSION_COLUMNS, parse_submission


def main(cfg: Config) -> None:
    if cfg.predictions:
        score_file(cfg, Path(cfg.predictions), Path(cfg.labels or Path(cfg.input) / LABELS_CSV))
        return
    predictions = read_table(cfg.run_dir / "oof.csv", PREDICTION_COLUMNS, maker=f"./run.sh name={cfg.name}")
    folds = read_table(cfg.folds_csv, FOLD_COLUMNS, maker="python src/make_folds.py").set_index("patientId")
    folds = folds.loc[predictions["patientId"].drop_duplicates()]
    truth = scoring.of_images(truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV)), folds.index)
    sweep = threshold_sweep(truth, predictions)
    scores = score_run(cfg, predictions, truth, folds, best_threshold(sweep))
    write_table(sweep, cfg.run_dir / "threshold.csv")
    write_json(scores, cfg.run_dir / "scores.json")
    print_scores(scores, cfg.run_dir / "scores.json")


def score_run(
    cfg: Config, predictions: pd.DataFrame, truth: pd.DataFrame, folds: pd.DataFrame, threshold: float
) -> dict[str, Any]:
    """Everything that scores.json holds. folds: rows of folds.csv by patientId, only of predicted images."""
    kept = keep_confident(predictions, threshold)
    fair, thresholds = scoring.cross_fitted_scores(predictions, truth, folds["fold"])
    plain = read_table(cfg.run_dir / "oof_plain.csv", PREDICTION_COLUMNS)
    image_score = image_scores(truth, kept).mean(axis=1)
    median = scoring.median_boxes(truth, folds.index.tolist(), folds["fold"].tolist())
    return {
        "name": cfg.name,
        "oof": fingerprint(cfg.run_dir / "oof.csv"),
        "threshold": threshold,
        **scoring.describe(kept, truth, folds.index.tolist(), folds["group"], cfg.bootstrap, cfg.seed),
        "cross_fitted_mAP": float(fair.mean()),
        "AUC": scoring.opacity_auc(predictions, truth),
        "IoU": scoring.iou_on_positives(predictions, truth),
        "plain_mAP": scoring.best_score(plain, truth),
        "per_view": by_column(image_score, folds["view"].fillna("unknown")),
        "baselines": scoring.baselines(median, kept, truth),
        "per_fold": [
            score_fold(fold, ids, predictions, truth, image_score, fair) | {"cross_fitted_threshold": thresholds[fold]}
            for fold, ids in folds.groupby("fold").groups.items()
        ],
    }


def score_fold(
    fold: Any, ids: pd.Index, predictions: pd.DataFrame, truth: pd.DataFrame, scores: pd.Series, fair: pd.Series
) -> dict[str, Any]:
    """The line of one fold; `scores` at the common threshold, `fair` at that of the other folds."""
    own, own_truth = scoring.of_images(predictions, ids), scoring.of_images(truth, ids)
    return {
        "fold": int(fold),
        "images": len(ids),
        "positives": int(own_truth["patientId"].nunique()),
        "AUC": scoring.opacity_auc(own, own_truth),
        "IoU": scoring.iou_on_positives(own, own_truth),
        "mAP": float(scores[scores.index.isin(ids)].mean()),
        "cross_fitted_mAP": float(fair[fair.index.isin(ids)].mean()),
    }


def by_column(scores: pd.Series, values: pd.Series) -> dict[str, float]:
    """Mean image score by the value that `values` (index patientId) has for the image."""
    return {str(key): float(value) for key, value in scores.groupby(values.reindex(scores.index)).mean().items()}


def print_scores(scores: dict[str, Any], path: Path) -> None:
    """The scores as lines that a person can read."""
    folds = pd.DataFrame(scores["per_fold"])
    low, high = scores["interval"]
    print(folds.to_string(index=False, float_format="{:.4f}".format))
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}, folds ± {folds['mAP'].std():.4f}")
    print("mAP by IoU threshold: " + "  ".join(f"{key} {value:.3f}" for key, value in scores["per_iou"].items()))
    print("mAP by view position: " + "  ".join(f"{key} {value:.4f}" for key, value in scores["per_view"].items()))
    print(
        f"threshold {scores['threshold']:.4f}: the best of all on these predictions ({scores['with_box']:.1%} of "
        f"images get a box); chosen on the other folds instead, the score is {scores['cross_fitted_mAP']:.4f}"
    )
    print("on the same images: " + ", ".join(f"{name} {value:.4f}" for name, value in scores["baselines"].items()))
    if scores["plain_mAP"] > scores["mAP"]:
        print(
            f"WARNING: test-time views cost: the plain view alone scores {scores['plain_mAP']:.4f}; "
            f"say tta=plain for predict and the stages after it"
        )
    else:
        print(f"test-time views: {scores['mAP']:.4f}, the plain view alone {scores['plain_mAP']:.4f}")
    print(f"scores -> {path}")


def score_file(cfg: Config, path: Path, labels_csv: Path) -> None:
    """Print the score of a prediction table or a submission, whoever made it."""
    labels = read_labels(labels_csv)
    is_submission = path.is_file() and set(SUBMISSION_COLUMNS) <= set(read_table(path, ["patientId"]).columns)
    predictions = parse_submission(path) if is_submission else read_table(path, PREDICTION_COLUMNS)
    ids = predictions["patientId"].drop_duplicates().tolist()
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(f"{path}: {len(unknown)} images have no row in {labels_csv}, such as {min(unknown)}")
    truth = scoring.of_images(truth_boxes(labels), ids)
    threshold = file_threshold(cfg, predictions, truth, is_submission)
    people = read_people(Path(cfg.input))
    group = pd.Series(ids, index=ids) if people is None else people.reindex(ids).fillna(pd.Series(ids, index=ids))
    scores = scoring.describe(keep_confident(predictions, threshold), truth, ids, group, cfg.bootstrap, cfg.seed)
    print_file_scores(path, scores, labels["patientId"].nunique())


def file_threshold(cfg: Config, predictions: pd.DataFrame, truth: pd.DataFrame, is_submission: bool) -> float:
    if cfg.threshold != "auto":
        return float(cfg.threshold)
    if is_submission:
        return -np.inf
    threshold = best_threshold(threshold_sweep(truth, predictions))
    print(f"threshold {threshold:.4f}: chosen on these very labels, so the score flatters; or say threshold=")
    return threshold


def print_file_scores(path: Path, scores: dict[str, Any], n_labelled: int) -> None:
    if scores["images"] < n_labelled:
        print(f"scored {scores['images']} images; {n_labelled - scores['images']} labelled images are not in {path}")
    if not scores["per_iou"]:
        raise UserError(f"{path}: no image counts: there is neither a truth box nor a prediction")
    low, high = scores["interval"]
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    print("mAP by IoU threshold: " + "  ".join(f"{key} {value:.3f}" for key, value in scores["per_iou"].items()))
    print(f"{scores['images']} images, {scores['positives']} positive, {scores['with_box']:.1%} with a box")
    print(f"IoU of the most confident box with the largest truth box, on positives: {scores['IoU']:.4f}")


if __name__ == "__main__":
    main(load_config())
