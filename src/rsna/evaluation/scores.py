"""Scores of predictions: the metric with its interval, other scores, baselines, and everything in scores.json."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.artifacts import current_manifest, is_current, record, require, withdraw
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import read_json, write_json
from rsna.core.locks import file_lock
from rsna.core.tables import write_table
from rsna.data import competition
from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS, largest_box
from rsna.evaluation.baselines import BASELINES, baselines
from rsna.evaluation.bootstrap import interval
from rsna.evaluation.detection_curves import detection_scores
from rsna.evaluation.metric import image_scores, keep_confident, of_images, threshold_sweep, top_confidences
from rsna.evaluation.operating_point import Images, choose_point
from rsna.evaluation.threshold import apply_gates, best_score, cross_fit, mean_or_none, with_scaled_boxes

# what other modules read from scores.json, with the types; see core.files.fits
NUMBER, MAYBE = int | float, int | float | None
FOLD_JSON = {"fold": int, "images": int, "positives": int, "AUC": MAYBE, "IoU": MAYBE, "mAP": MAYBE}
# fmt: off
POINT_JSON = {
    "chosen_on": str, "images": int, "positives": int, "threshold": NUMBER, "box_scale": NUMBER,
    "bins": {"edges": [NUMBER], "positives": [int], "negatives": [int]}, "resampling": [int, int],
}
SCORES_JSON = {
    "threshold": NUMBER, "box_scale": NUMBER, "operating_point": POINT_JSON, "per_fold": [FOLD_JSON], "images": int,
    "mAP": NUMBER, "interval": [NUMBER, NUMBER], "with_box": NUMBER, "no_tta_best_mAP": NUMBER, "AUC": MAYBE,
    "IoU": MAYBE, "cross_fitted_mAP": MAYBE, "cross_fitted_thresholds": dict,
    "baselines": dict.fromkeys(BASELINES, MAYBE),
}
# fmt: on


def opacity_auc(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """ROC AUC of each image's highest confidence for "has an opacity"; NaN if all images are positive or none is."""
    top = top_confidences(predictions)
    return auc_of_images(top, top.index.isin(truth["patientId"]))


def auc_of_images(top: pd.Series, positive: NDArray[np.bool_]) -> float:
    """As opacity_auc, from each image's highest confidence and whether it has an opacity."""
    # imported here because it takes most of a second, which would delay the start of training
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, top)) if 0 < positive.sum() < len(positive) else float("nan")


def accuracy(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Fraction of images classified correctly if a highest confidence above 0.5 means "has an opacity"."""
    top = top_confidences(predictions)
    return float(((top > 0.5) == top.index.isin(truth["patientId"])).mean())


def corner_errors(predicted_xyxy: Floats, true_xyxy: Floats) -> dict[str, float]:
    """Mean absolute error of box corners (n, 4) in [0, 1] of the model's input, in pixels of an image of 512 px.

    true_xyxy is NaN where an image has no box. `L1` leaves such images out; `L1_post` takes the whole image as their
    true box, as the fast.ai post does.
    """
    whole = np.where(np.isnan(true_xyxy), [0.0, 0.0, 1.0, 1.0], true_xyxy)
    error = 512 * np.abs(predicted_xyxy - whole).mean(axis=1)
    return {"L1": float(error[~np.isnan(true_xyxy[:, 0])].mean()), "L1_post": float(error.mean())}


def iou_on_positives(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """IoU of the most confident box with the largest true box (0 without a box), averaged over the positive images."""
    top = predictions.sort_values("confidence", ascending=False, kind="stable").drop_duplicates("patientId")
    pairs = largest_box(truth).merge(top, on="patientId", how="left", suffixes=("", "_predicted"))
    predicted = pairs[[f"{column}_predicted" for column in BOX_COLUMNS]].fillna(0.0).to_numpy(dtype=float)
    iou = box_iou(xywh_to_xyxy(predicted), xywh_to_xyxy(pairs[BOX_COLUMNS].to_numpy(dtype=float)))
    return float(iou.mean()) if len(iou) else float("nan")


def describe(kept: pd.DataFrame, truth: pd.DataFrame, people: pd.Series, n_resamples: int, seed: int) -> dict[str, Any]:
    """mAP with its 95 % interval, and counts; one box at least. people: patientId -> person, all images."""
    scores = image_scores(truth, kept)
    return {
        "images": len(people),
        "positives": int(truth["patientId"].nunique()),
        "with_box": kept["patientId"].nunique() / len(people),
        "mAP": float(scores.to_numpy().mean()),
        "interval": interval(scores.mean(axis=1), people, n_resamples, seed),
        "per_iou": {f"{threshold:.2f}": float(value) for threshold, value in scores.mean().items()},
    }


def read_scores(run_dir: Path, rebuild: str) -> dict[str, Any]:
    """Read scores.json of a run. Raises UserError if it is missing or broken; rebuild: the command that makes it."""
    return read_json(run_dir / "scores.json", rebuild, SCORES_JSON)


def spread_of_folds(scores: dict[str, Any]) -> float:
    """Standard deviation of the folds' mAP in scores.json; NaN unless two folds have one."""
    return float(pd.Series([fold["mAP"] for fold in scores["per_fold"]], dtype=float).std())


@dataclass(frozen=True)
class OutOfFold:
    """The out-of-fold predictions of a run, and the truth; boxes xywh in original pixels."""

    predictions: pd.DataFrame  # oof.csv
    gated: dict[int, pd.Series]  # fold -> confidences with the gate chosen on the other folds; empty without a gate
    no_tta: pd.DataFrame  # oof_no_tta.csv
    folds: pd.DataFrame  # rows of folds.csv of the predicted images, index patientId
    truth: pd.DataFrame  # true boxes of the predicted images
    all_truth: pd.DataFrame  # true boxes of all training images
    labelled: pd.Index  # patientIds of all training images, in the order of the labels


def evaluate_run(cfg: Config) -> dict[str, Any] | None:
    """Choose a run's operating point, write scores.json and its tables, return the scores; None if they are current.

    Raises UserError if the predictions are missing or not current.
    """
    with file_lock(cfg.run_dir):
        require(cfg, "ensemble")
        made = current_manifest(cfg, "evaluate")
        found = read_out_of_fold(cfg)
        if is_current(cfg, "evaluate"):
            return None
        images = Images(found.predictions, found.truth, found.folds["group"])
        surface, point = choose_point(images, found.labelled, cfg)
        predictions, no_tta = (with_scaled_boxes(t, point["box_scale"]) for t in (found.predictions, found.no_tta))
        found = replace(found, predictions=predictions, no_tta=no_tta)
        scores = {"name": cfg.name, **score_run(found, point["threshold"], cfg.bootstrap, cfg.seed)}
        scores |= {"box_scale": point["box_scale"], "operating_point": point}
        withdraw(cfg, "evaluate")
        write_table(threshold_sweep(found.truth, found.predictions), cfg.run_dir / "threshold.csv")
        write_table(surface, cfg.run_dir / "surface.csv")
        write_json(scores, cfg.run_dir / "scores.json")
        record(cfg, "evaluate", made=made)
    return scores


def read_out_of_fold(cfg: Config) -> OutOfFold:
    """Read a run's predictions, its folds and the labels. Raises UserError if no image has an opacity."""
    rebuild, oof_csv = command(cfg, "ensemble"), cfg.run_dir / "oof.csv"
    gates = read_json(cfg.run_dir / "ensemble.json", rebuild, {"gate": {"by_fold": dict}})["gate"]["by_fold"]
    predictions = competition.read_predictions(oof_csv, rebuild, more=["ungated"] if gates else [])
    no_tta = competition.read_predictions(cfg.run_dir / "oof_no_tta.csv", rebuild)
    gated = apply_gates(predictions, cfg.run_dir / "oof_images.csv", gates)
    predictions = predictions[competition.PREDICTION_COLUMNS]
    folds = competition.read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")
    folds = folds.loc[predictions["patientId"].drop_duplicates()]
    labels = competition.read_labels(Path(cfg.input) / competition.LABELS_CSV)
    all_truth = competition.truth_boxes(labels)
    truth = of_images(all_truth, folds.index)
    if truth.empty:
        raise UserError(f"{oof_csv}: nothing to score: no image has an opacity")
    return OutOfFold(predictions, gated, no_tta, folds, truth, all_truth, pd.Index(labels["patientId"].unique()))


def score_run(found: OutOfFold, threshold: float, n_resamples: int, seed: int) -> dict[str, Any]:
    """The content of scores.json, except for name, box scale and operating point."""
    predictions, folds, truth = found.predictions, found.folds, found.truth
    kept = keep_confident(predictions, threshold)
    image_score = image_scores(truth, kept).mean(axis=1)
    cross_fitted, points = cross_fit(predictions, truth, folds["fold"], found.gated)
    view = folds["view"].astype(object).fillna("unknown").astype(str)
    return {
        "threshold": threshold,
        **describe(kept, truth, folds["group"], n_resamples, seed),
        "cross_fitted_mAP": mean_or_none(cross_fitted),
        "AUC": opacity_auc(predictions, truth),
        "IoU": iou_on_positives(predictions, truth),
        "best_mAP": best_score(predictions, truth),
        "no_tta_best_mAP": best_score(found.no_tta, truth),
        "accuracy": accuracy(predictions, truth),
        **detection_scores(truth, predictions, len(folds)),
        "per_view_position": image_score.groupby(view).mean().to_dict(),
        "baselines": baselines(found.all_truth, folds["fold"], kept, truth),
        "per_fold": score_folds(found, image_score, cross_fitted),
        "cross_fitted_thresholds": {str(fold): chosen.threshold for fold, chosen in points.items()},
    }


def score_folds(found: OutOfFold, scores: pd.Series, cross_fitted: pd.Series) -> list[dict[str, Any]]:
    """`per_fold` of scores.json; image scores at the common threshold, and at the one chosen on the other folds."""
    lines: list[dict[str, Any]] = []
    fold_of = found.folds["fold"]
    fold_of_box, fold_of_truth = (table["patientId"].map(fold_of) for table in (found.predictions, found.truth))
    for fold, ids in fold_of.groupby(fold_of).groups.items():
        predictions, truth = found.predictions[fold_of_box == fold], found.truth[fold_of_truth == fold]
        line: dict[str, Any] = {"fold": int(str(fold)), "images": len(ids), "positives": truth["patientId"].nunique()}
        line |= {"AUC": opacity_auc(predictions, truth), "IoU": iou_on_positives(predictions, truth)}
        for name, table in {"mAP": scores, "cross_fitted_mAP": cross_fitted}.items():
            line[name] = mean_or_none(table[table.index.isin(ids)])
        lines.append(line)
    return lines
