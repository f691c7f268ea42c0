"""Score out-of-fold predictions and choose the confidence threshold; or score any predictions against labels.

python src/evaluate.py [name=...]                          -> working/<name>/scores.json, threshold.csv
python src/evaluate.py predictions=<table or submission> [labels=<labels csv>] [threshold=0.4]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import content_hash, write_json
from rsna.core.locks import file_lock
from rsna.core.stamps import check_fused
from rsna.core.tables import read_table, write_table
from rsna.data.competition import LABELS_CSV, read_folds, read_labels, read_people, read_predictions, truth_boxes
from rsna.data.submission_format import SUBMISSION_COLUMNS, parse_submission
from rsna.evaluation import scores as scoring
from rsna.evaluation.metric import best_threshold, image_scores, keep_confident, threshold_sweep


def main(cfg: Config) -> None:
    if cfg.predictions:
        score_file(cfg, Path(cfg.predictions), Path(cfg.labels or Path(cfg.input) / LABELS_CSV))
        return
    predictions, plain, folds = read_run(cfg)
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    sweep = threshold_sweep(scoring.of_images(truth, predictions["patientId"]), predictions)
    scores = score_run(cfg, predictions, plain, truth, folds, best_threshold(sweep))
    with file_lock(cfg.run_dir):
        write_table(sweep, cfg.run_dir / "threshold.csv")
        write_json(scores, cfg.run_dir / "scores.json")
    print_scores(scores, cfg.run_dir / "scores.json")


def read_run(cfg: Config) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """oof.csv, oof_plain.csv, and the rows of folds.csv (by patientId) of their images.

    Raises UserError where a file is missing or does not belong to the others.
    """
    maker = command(cfg, "ensemble")
    predictions, plain = (read_predictions(cfg.run_dir / f"{name}.csv", maker) for name in ("oof", "oof_plain"))
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")
    check_fused(cfg.run_dir, cfg.folds_csv, maker)
    return predictions, plain, folds.loc[predictions["patientId"].drop_duplicates()]


def score_run(
    cfg: Config,
    predictions: pd.DataFrame,
    plain: pd.DataFrame,
    all_truth: pd.DataFrame,
    folds: pd.DataFrame,
    threshold: float,
) -> dict[str, Any]:
    """Everything that scores.json holds. folds: rows of folds.csv by patientId, only of predicted images."""
    truth = scoring.of_images(all_truth, folds.index)
    kept = keep_confident(predictions, threshold)
    fair, thresholds = scoring.cross_fitted_scores(predictions, truth, folds["fold"])
    image_score = image_scores(truth, kept).mean(axis=1)
    if image_score.empty:
        raise UserError(f"{cfg.run_dir / 'oof.csv'}: nothing to score: no image has an opacity")
    median = scoring.median_boxes(all_truth, folds.index.tolist(), folds["fold"].tolist())
    return {
        "name": cfg.name,
        "oof": content_hash(cfg.run_dir / "oof.csv"),
        "threshold": threshold,
        **scoring.describe(kept, truth, folds.index.tolist(), folds["group"], cfg.bootstrap, cfg.seed),
        "cross_fitted_mAP": mean_or_none(fair),
        "AUC": scoring.opacity_auc(predictions, truth),
        "IoU": scoring.iou_on_positives(predictions, truth),
        "best_mAP": scoring.best_score(predictions, truth),
        "plain_best_mAP": scoring.best_score(plain, truth),
        "accuracy": scoring.accuracy(predictions, truth),
        "box_scales": scoring.scale_scores(predictions, truth, folds["fold"]),
        "per_view": by_column(image_score, folds["view"].astype(object).fillna("unknown")),
        "baselines": scoring.baselines(median, kept, truth),
        "per_fold": [
            score_fold(fold, ids, predictions, truth, image_score, fair)
            for fold, ids in folds.groupby("fold").groups.items()
        ],
        "cross_fitted_thresholds": {str(fold): value for fold, value in thresholds.items()},
    }


def mean_or_none(scores: pd.Series) -> float | None:
    """The mean image score; None where there is none, as JSON has no NaN."""
    return float(scores.mean()) if len(scores) else None


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
        "mAP": mean_or_none(scores[scores.index.isin(ids)]),
        "cross_fitted_mAP": mean_or_none(fair[fair.index.isin(ids)]),
    }


def by_column(scores: pd.Series, values: pd.Series) -> dict[str, float]:
    """Mean image score by the value that `values` (index patientId) has for the image."""
    return {str(key): float(value) for key, value in scores.groupby(values.reindex(scores.index)).mean().items()}


def print_scores(scores: dict[str, Any], path: Path) -> None:
    """The scores as lines that a person can read."""
    folds = pd.DataFrame(scores["per_fold"])
    low, high = scores["interval"]
    spread = f", folds ± {folds['mAP'].std():.4f}" if len(folds) > 1 else ""
    folds = folds.rename(columns={"cross_fitted_mAP": "mAP at the others' threshold"})
    print(folds.to_string(index=False, float_format="{:.4f}".format, na_rep="-"))
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}{spread}")
    print("mAP by IoU threshold: " + "  ".join(f"{key} {value:.3f}" for key, value in scores["per_iou"].items()))
    print("mAP by view position: " + "  ".join(f"{key} {value:.4f}" for key, value in scores["per_view"].items()))
    print(f"threshold {scores['threshold']:.4f}: the best on these predictions, {scores['with_box']:.1%} get a box")
    if scores["cross_fitted_mAP"] is None:
        print("what the choice of the threshold is honestly worth takes two folds at least")
    else:
        print(f"with the threshold chosen on the other folds the score is {scores['cross_fitted_mAP']:.4f}")
    print("on the same images: " + ", ".join(f"{name} {value:.4f}" for name, value in scores["baselines"].items()))
    print_scales(scores)
    print_views(scores)
    print(f"scores -> {path}")


def print_scales(scores: dict[str, Any]) -> None:
    """Say what smaller or larger boxes would score, and whether the choice carries over to other folds."""
    found = scores["box_scales"]
    by_scale = "  ".join(f"{scale} {value:.4f}" for scale, value in found["best"].items())
    print(f"boxes scaled about their centres, each at its best threshold: {by_scale}")
    fair, plain = found["cross_fitted_mAP"], scores["cross_fitted_mAP"]
    if fair is not None and plain is not None:
        print(
            f"scale and threshold chosen on the other folds: {fair:.4f}, the threshold alone {plain:.4f}: "
            + ("it pays, see box_scale=" if fair > plain else "it does not pay")
        )


def print_views(scores: dict[str, Any]) -> None:
    """Say whether the test-time views pay, each way at the threshold that suits it best."""
    fused, plain = scores["best_mAP"], scores["plain_best_mAP"]
    if plain > fused:
        print(
            f"NOTE: test-time views cost here: the plain view alone scores {plain:.4f}, fused {fused:.4f} (tta=plain)"
        )
    else:
        print(f"test-time views: {fused:.4f}, the plain view alone {plain:.4f}")


def score_file(cfg: Config, path: Path, labels_csv: Path) -> None:
    """Print the score of a prediction table or a submission, whoever made it."""
    labels = read_labels(labels_csv)
    is_submission = path.is_file() and set(SUBMISSION_COLUMNS) <= set(read_table(path, ["patientId"]).columns)
    predictions = parse_submission(path) if is_submission else read_predictions(path)
    ids = predictions["patientId"].drop_duplicates().tolist()
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} images have no row in {labels_csv}, such as {min(unknown)}; say labels="
        )
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
    run(main)
