"""Printed scores: of a run, and of any prediction table or submission, whatever made it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.tables import read_table
from rsna.data.competition import LABELS_CSV, people_of_images, read_labels, read_predictions, truth_boxes
from rsna.data.submission_format import SUBMISSION_COLUMNS, parse_submission
from rsna.evaluation.detection_curves import detection_scores
from rsna.evaluation.metric import keep_confident, of_images
from rsna.evaluation.scores import describe, iou_on_positives, spread_of_folds
from rsna.evaluation.threshold import best_point


def print_scores(scores: dict[str, Any], path: Path) -> None:
    """Print the scores that decide between runs; path: scores.json, which holds all of them."""
    folds = pd.DataFrame(scores["per_fold"]).rename(columns={"cross_fitted_mAP": "cross-fitted mAP"})
    print(folds.fillna(np.nan).to_string(index=False, float_format="{:.4f}".format, na_rep="-"))
    print_map(scores, f", folds ± {spread_of_folds(scores):.4f}".replace(", folds ± nan", ""))
    print(by_name("mAP by view position", scores["per_view_position"]))
    print_point(scores)
    if scores["cross_fitted_mAP"] is None:
        print("a cross-fitted score, with threshold and gate chosen on the other folds, takes at least two folds")
    else:
        print(f"cross-fitted, with threshold and gate chosen on the other folds: {scores['cross_fitted_mAP']:.4f}")
    print(by_name("on the same images", scores["baselines"]))
    print_detection_scores(scores)
    fused, plain = scores["best_mAP"], scores["no_tta_best_mAP"]
    if plain > fused:
        costs = "NOTE: test-time augmentation costs here: the plain view alone scores"
        print(f"{costs} {plain:.4f}, fused {fused:.4f} (tta=plain)")
    else:
        print(f"test-time augmentation: {fused:.4f}, the plain view alone {plain:.4f}")
    print(f"scores -> {path}")


def print_point(scores: dict[str, Any]) -> None:
    """Print the operating point, and on which images it was chosen."""
    point, with_box = scores["operating_point"], f"{scores['with_box']:.1%} get a box"
    if not point["intervals"]:
        print(f"threshold {scores['threshold']:.4f}: the best on these predictions, {with_box}")
        return
    ((low, high), (smallest, largest)), best = point["intervals"], point["of_all_images"]
    print(f"threshold {scores['threshold']:.4f}, 95 % interval {low:.4f} to {high:.4f}; {with_box}")
    print(f"box scale {scores['box_scale']:g}, 95 % interval {smallest:g} to {largest:g}")
    print(f"both chosen on {point['chosen_on']}, {point['positives']} of {point['images']} positive;")
    print(f"all out-of-fold images would choose threshold {best[0]:.4f}, box scale {best[1]:g}")


def print_map(scores: dict[str, Any], spread: str = "") -> None:
    low, high = scores["interval"]
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}{spread}")
    print(by_name("mAP by IoU threshold", scores["per_iou"], 3))


def print_detection_scores(scores: dict[str, Any]) -> None:
    """Print AP50 and FROC, which papers report; both use all boxes, whatever the threshold."""
    print(f"over all thresholds: AP50 {scores['AP50']:.4f}")
    print(by_name("FROC, sensitivity at false positives per image", scores["FROC"], 3))


def by_name(title: str, values: dict[str, float], digits: int = 4) -> str:
    return f"{title}: " + "  ".join(f"{name}: {value:.{digits}f}" for name, value in values.items())


def score_file(cfg: Config) -> None:
    """Print the score of predictions= against labels=. Raises UserError if an image has no label or no image counts."""
    path, labels_csv = Path(cfg.predictions), Path(cfg.labels or Path(cfg.input) / LABELS_CSV)
    labels = read_labels(labels_csv)
    is_submission = path.is_file() and set(SUBMISSION_COLUMNS) <= set(read_table(path, ["patientId"]).columns)
    predictions = parse_submission(path) if is_submission else read_predictions(path)
    ids, n_labelled = predictions["patientId"].drop_duplicates(), labels["patientId"].nunique()
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        problem = f"{len(unknown)} images have no row in {labels_csv}, such as {min(unknown)}"
        raise UserError(f"{path}: {problem}; set labels=")
    truth = of_images(truth_boxes(labels), ids)
    kept = keep_confident(predictions, threshold_for(cfg, predictions, truth, is_submission))
    if len(ids) < n_labelled:
        print(f"scored {len(ids)} images; {n_labelled - len(ids)} labelled images are not in {path}")
    if truth.empty and kept.empty:
        raise UserError(f"{path}: no image counts: there is neither a truth box nor a prediction")
    scores = describe(kept, truth, people_of_images(Path(cfg.input), ids), cfg.bootstrap, cfg.seed)
    print_map(scores)
    print(f"{scores['images']} images, {scores['positives']} positive, {scores['with_box']:.1%} with a box")
    iou = iou_on_positives(predictions, truth)
    print(f"IoU of the most confident box with the largest true box, on positives: {iou:.4f}")
    print_detection_scores(detection_scores(truth, predictions, len(ids)))


def threshold_for(cfg: Config, predictions: pd.DataFrame, truth: pd.DataFrame, is_submission: bool) -> float:
    """threshold= if it is a number; with auto, -inf for a submission and the best threshold for a prediction table."""
    if cfg.threshold != "auto":
        return float(cfg.threshold)
    if is_submission:
        return -np.inf
    threshold = best_point(predictions, truth).threshold
    print(f"threshold {threshold:.4f}: chosen on these very labels, so the score is too high; or set threshold=")
    return threshold
