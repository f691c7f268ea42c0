"""What a set of predictions is worth: the metric, its uncertainty, and plain baselines on the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.artifacts import record, require
from rsna.core.config import Config
from rsna.core.files import read_json, write_json
from rsna.core.tables import write_table
from rsna.data.boxes import box_iou, scale_boxes, xywh_to_xyxy
from rsna.data.competition import (
    BOX_COLUMNS,
    LABELS_CSV,
    PREDICTION_COLUMNS,
    largest_box,
    read_folds,
    read_labels,
    read_predictions,
    truth_boxes,
)
from rsna.evaluation.metric import (
    best_threshold,
    bootstrap_interval,
    image_scores,
    keep_confident,
    mean_average_precision,
)
from rsna.evaluation.metric import threshold_sweep as sweep

Floats = NDArray[np.float64]
# sizes of the predicted boxes that are tried out: the challenge's best found that smaller ones score higher
BOX_SCALES = (0.8, 0.875, 0.95, 1.0, 1.05)


def opacity_auc(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Area under the ROC curve of each image's highest confidence for "has an opacity"; NaN if all are alike."""
    # here, since it takes most of a second to import: training has begun by then
    from sklearn.metrics import roc_auc_score

    top = predictions.fillna({"confidence": 0.0}).groupby("patientId")["confidence"].max()
    positive = top.index.isin(truth["patientId"])
    return float(roc_auc_score(positive, top)) if 0 < positive.sum() < len(positive) else float("nan")


def accuracy(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Share of images whose highest confidence is above .5 if and only if they have an opacity."""
    top = predictions.fillna({"confidence": 0.0}).groupby("patientId")["confidence"].max()
    return float(((top > 0.5) == top.index.isin(truth["patientId"])).mean())


def corner_errors(predicted_xyxy: Floats, true_xyxy: Floats) -> dict[str, float]:
    """Mean absolute error of a corner's coordinate, in pixels of a picture of 512: (n, 4) in [0, 1] of the input.

    true_xyxy is NaN where an image has no box. `L1` is taken on images with a box; `L1_post` on all, with the whole
    image as the truth of those without: what the fast.ai post reports, where an answer like that costs nothing.
    """
    whole = np.where(np.isnan(true_xyxy), [0.0, 0.0, 1.0, 1.0], true_xyxy)
    error = 512 * np.abs(predicted_xyxy - whole).mean(axis=1)
    return {"L1": float(error[~np.isnan(true_xyxy[:, 0])].mean()), "L1_post": float(error.mean())}


def iou_on_positives(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Mean IoU of each positive's most confident box with its largest truth box; 0 for one without a box."""
    top = predictions.sort_values("confidence", ascending=False, kind="stable").drop_duplicates("patientId")
    pairs = largest_box(truth).merge(top, on="patientId", how="left", suffixes=("", "_predicted"))
    predicted = pairs[[f"{column}_predicted" for column in BOX_COLUMNS]].fillna(0.0).to_numpy(dtype=float)
    iou = box_iou(xywh_to_xyxy(predicted), xywh_to_xyxy(pairs[BOX_COLUMNS].to_numpy(dtype=float)))
    return float(iou.mean()) if len(iou) else float("nan")


def best_score(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """The mAP at the threshold that suits these very images best: for comparing, not for reporting."""
    return float(sweep(truth, predictions)["score"].max())


def of_images(table: pd.DataFrame, ids: Any) -> pd.DataFrame:
    """The rows of these patientIds."""
    return table[table["patientId"].isin(ids)]


def cross_fitted_scores(
    predictions: pd.DataFrame, truth: pd.DataFrame, fold_of: pd.Series
) -> tuple[pd.Series, dict[Any, float]]:
    """Image scores with the threshold of each fold chosen on the other folds, and those thresholds by fold.

    fold_of: index patientId -> fold; with a single fold there is no other, and no score. The mean of the scores
    is what the choice of a threshold is honestly worth.
    """
    if fold_of.nunique() < 2:
        return pd.Series(dtype=float), {fold_of.iloc[0]: float("nan")}
    parts: list[pd.Series] = []
    thresholds: dict[Any, float] = {}
    for fold, ids in fold_of.groupby(fold_of).groups.items():
        others = fold_of.index.difference(ids)
        thresholds[fold] = best_threshold(sweep(of_images(truth, others), of_images(predictions, others)))
        kept = keep_confident(of_images(predictions, ids), thresholds[fold])
        parts.append(image_scores(of_images(truth, ids), kept).mean(axis=1))
    return pd.concat(parts), thresholds


def with_scaled_boxes(predictions: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The predictions with their boxes shrunk or grown about their centres."""
    scaled = scale_boxes(predictions[BOX_COLUMNS].to_numpy(dtype=float), factor)
    return predictions.assign(**dict(zip(BOX_COLUMNS, scaled.T, strict=True)))


def scale_scores(predictions: pd.DataFrame, truth: pd.DataFrame, fold_of: pd.Series) -> dict[str, Any]:
    """What scaled boxes would score: `best` by scale, each at its best threshold; and `cross_fitted_mAP`, with scale
    and threshold of each fold chosen together on the other folds (None with a single fold)."""
    tables = {scale: with_scaled_boxes(predictions, scale) for scale in BOX_SCALES}
    parts = []
    for _, ids in fold_of.groupby(fold_of).groups.items() if fold_of.nunique() > 1 else ():
        others = fold_of.index.difference(ids)
        sweeps = {scale: sweep(of_images(truth, others), of_images(table, others)) for scale, table in tables.items()}
        scale = max(sweeps, key=lambda scale: sweeps[scale]["score"].max())
        kept = keep_confident(of_images(tables[scale], ids), best_threshold(sweeps[scale]))
        parts.append(image_scores(of_images(truth, ids), kept).mean(axis=1))
    return {
        "best": {f"{scale:g}": best_score(table, truth) for scale, table in tables.items()},
        "cross_fitted_mAP": float(pd.concat(parts).mean()) if parts and len(pd.concat(parts)) else None,
    }


def median_boxes(truth: pd.DataFrame, ids: Sequence[str], groups: Sequence[Any] | None = None) -> pd.DataFrame:
    """A prediction for each of `ids`: the median box of `truth`'s busier side, with confidence 1.

    groups: fold of each id; then the median is taken over the images of the other folds.
    """
    largest = largest_box(truth)
    table = pd.DataFrame({"patientId": list(ids), "confidence": 1.0, "group": 0 if groups is None else list(groups)})
    parts = []
    for _, rows in table.groupby("group"):
        others = largest if groups is None else largest[~largest["patientId"].isin(rows["patientId"])]
        parts.append(rows.assign(**median_box(others)))
    return pd.concat(parts)[PREDICTION_COLUMNS]


def median_box(boxes: pd.DataFrame) -> dict[str, float]:
    """The median x, y, width and height of the boxes on the side of the image that has more of them.

    The median of all boxes lies on the spine, between the lungs, and overlaps with none: too weak a baseline.
    """
    centre = boxes["x"] + boxes["width"] / 2
    right = centre > (centre.min() + centre.max()) / 2
    return boxes.loc[right == (right.mean() >= 0.5), BOX_COLUMNS].median().to_dict()


def baselines(boxes: pd.DataFrame, kept: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """mAP of what needs no model; `boxes` is one median box per image, `kept` the model's thresholded boxes."""
    return {
        "no boxes": mean_average_precision(truth, boxes.iloc[:0]),
        "median box on every image": mean_average_precision(truth, boxes),
        "median box where the model puts one": mean_average_precision(truth, of_images(boxes, kept["patientId"])),
    }


def describe(
    kept: pd.DataFrame, truth: pd.DataFrame, ids: Sequence[str], group: pd.Series, n: int, seed: int
) -> dict[str, Any]:
    """mAP with its 95 % interval, mAP per IoU threshold, and counts, of thresholded predictions of `ids`."""
    scores = image_scores(truth, kept)
    if scores.empty:
        return {"images": len(ids), "mAP": float("nan"), "interval": None, "per_iou": {}, "with_box": 0.0}
    return {
        "images": len(ids),
        "positives": int(truth["patientId"].nunique()),
        "with_box": kept["patientId"].nunique() / len(ids),
        "mAP": float(scores.to_numpy().mean()),
        "interval": bootstrap_interval(scores.mean(axis=1), group, n, seed),
        "per_iou": {f"{threshold:.2f}": float(value) for threshold, value in scores.mean().items()},
        "IoU": iou_on_positives(kept, truth),
    }


# what others take from scores.json, and of what type
SCORES_JSON = {"threshold": int | float, "images": int, "mAP": int | float, "interval": list, "per_fold": list}


def read_scores(run_dir: Path, rebuild: str) -> dict[str, Any]:
    """scores.json of a run. Raises UserError if it is missing or broken; rebuild: the command that makes it."""
    return read_json(run_dir / "scores.json", rebuild, SCORES_JSON)


def evaluate_run(cfg: Config) -> None:
    """Score a run: write scores.json and threshold.csv."""
    require(cfg, "ensemble")
    predictions, no_tta = (read_predictions(cfg.run_dir / f"{name}.csv") for name in ("oof", "oof_no_tta"))
    folds = read_folds(cfg.folds_csv, "").set_index("patientId").loc[predictions["patientId"].drop_duplicates()]
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    scores, table = score_run(cfg, predictions, no_tta, truth, folds)
    write_table(table, cfg.run_dir / "threshold.csv")
    write_json(scores, cfg.run_dir / "scores.json")
    record(cfg, "evaluate")


def score_run(
    cfg: Any, predictions: pd.DataFrame, no_tta: pd.DataFrame, all_truth: pd.DataFrame, folds: pd.DataFrame
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The content of scores.json and threshold.csv. folds: rows of folds.csv by patientId, only of predicted images."""
    truth = of_images(all_truth, folds.index)
    table = sweep(truth, predictions)
    threshold = best_threshold(table)
    kept = keep_confident(predictions, threshold)
    cross_fitted, thresholds = cross_fitted_scores(predictions, truth, folds["fold"])
    image_score = image_scores(truth, kept).mean(axis=1)
    median = median_boxes(all_truth, folds.index.tolist(), folds["fold"].tolist())
    by_view = image_score.groupby(folds["view"].astype(object).fillna("unknown").reindex(image_score.index)).mean()

    def mean(scores: pd.Series) -> float | None:
        return float(scores.mean()) if len(scores) else None

    def of_fold(fold: Any, ids: pd.Index) -> dict[str, Any]:
        own, own_truth = of_images(predictions, ids), of_images(truth, ids)
        return {
            "fold": int(fold),
            "images": len(ids),
            "positives": int(own_truth["patientId"].nunique()),
            "AUC": opacity_auc(own, own_truth),
            "IoU": iou_on_positives(own, own_truth),
            "mAP": mean(image_score[image_score.index.isin(ids)]),
            "cross_fitted_mAP": mean(cross_fitted[cross_fitted.index.isin(ids)]),
        }

    return {
        "name": cfg.name,
        "threshold": threshold,
        **describe(kept, truth, folds.index.tolist(), folds["group"], cfg.bootstrap, cfg.seed),
        "cross_fitted_mAP": mean(cross_fitted),
        "AUC": opacity_auc(predictions, truth),
        "IoU": iou_on_positives(predictions, truth),
        "best_mAP": best_score(predictions, truth),
        "no_tta_best_mAP": best_score(no_tta, truth),
        "accuracy": accuracy(predictions, truth),
        "box_scales": scale_scores(predictions, truth, folds["fold"]),
        "per_view_position": {str(key): float(value) for key, value in by_view.items()},
        "baselines": baselines(median, kept, truth),
        "per_fold": [of_fold(fold, ids) for fold, ids in folds.groupby("fold").groups.items()],
        "cross_fitted_thresholds": {str(fold): value for fold, value in thresholds.items()},
    }, table
