"""The competition's metric: mean over images of TP / (TP + FP + FN), averaged over eight IoU thresholds.

Source: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/overview/evaluation; tests/evaluation/test_metric.py
works out the edge cases by hand. An image counts if it has a true or a predicted box; one with predicted boxes only
scores 0. A match needs an IoU strictly greater than the threshold.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS

# k / 100 and not np.arange(0.4, 0.76, 0.05), which yields 0.6499999, so that an IoU of exactly 0.65 would match
IOU_THRESHOLDS = np.array([40, 45, 50, 55, 60, 65, 70, 75]) / 100


def mean_average_precision(truth: pd.DataFrame, predictions: pd.DataFrame) -> float:
    """The competition's score of thresholded predictions; NaN if no image counts.

    truth: patientId, x, y, width, height in original pixels, one row per box; predictions: the same columns and
    confidence, where rows with empty boxes are ignored.
    """
    scores = image_scores(truth, predictions)
    return float(scores.to_numpy().mean()) if len(scores) else float("nan")


def image_scores(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The score in [0, 1] of each image that counts: index patientId, one column per IoU threshold."""
    steps, scores = score_steps(truth, predictions)
    table = pd.DataFrame(scores, index=steps["patientId"], columns=IOU_THRESHOLDS)
    predicted = table[~table.index.duplicated(keep="last")]
    counted = predicted.index.union(pd.Index(truth["patientId"].unique()), sort=False)
    return predicted.reindex(counted, fill_value=0.0).rename_axis("patientId").sort_index()


def threshold_sweep(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The score at every confidence threshold that makes a difference, all in one pass.

    Rows by decreasing threshold; columns threshold (boxes with confidence >= threshold are kept, see cut_points),
    score, n_boxes (the number kept). A lower threshold only appends boxes to an image and does not change how the
    earlier ones are matched. So each box changes its image's score by a known step, and the steps are summed up.
    """
    return sweep_steps(box_steps(truth, predictions), truth["patientId"].nunique())


def sweep_steps(steps: pd.DataFrame, n_positive: int) -> pd.DataFrame:
    """The table of threshold_sweep from the steps of box_steps; n_positive: number of images with a true box."""
    confidence, gain, newly_counted = (steps[name].to_numpy() for name in ("confidence", "gain", "newly_counted"))
    order = np.argsort(-confidence, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(gain[order])])
    counted = n_positive + np.concatenate([[0], np.cumsum(newly_counted[order])])
    kept, thresholds = cut_points(confidence[order])
    score = np.divide(total[kept], counted[kept], out=np.zeros(len(kept)), where=counted[kept] > 0)
    return pd.DataFrame({"threshold": thresholds, "score": score, "n_boxes": kept})


def box_steps(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """How each box changes its image's score when it is added to the more confident boxes of the image.

    Columns patientId, confidence, gain (the change of the score, averaged over the IoU thresholds) and newly_counted
    (True for the first box of a negative image).
    """
    steps, scores = score_steps(truth, predictions)
    after = scores.mean(axis=1)
    first = ~steps["patientId"].duplicated().to_numpy()
    gain = after - np.where(first, 0.0, np.roll(after, 1))
    newly_counted = first & (steps["n_truth"].to_numpy() == 0)
    return steps[["patientId", "confidence"]].assign(gain=gain, newly_counted=newly_counted)


def cut_points(confidences: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Where decreasing confidences can be cut: how many are kept, from 0 to all, and the threshold for each.

    Equal confidences are never separated.
    """
    kept = np.append(0, np.flatnonzero(np.diff(confidences, append=-np.inf)) + 1)
    upper, lower = confidences[kept[1:] - 1], np.append(confidences[kept[1:-1]], -np.inf)
    middle = (upper + lower) / 2  # between the last confidence that is kept and the first that is not
    thresholds = np.where((lower < middle) & (middle <= upper), middle, upper)
    above_all = np.nextafter(confidences[0], np.inf) if len(confidences) else 1.0
    return kept, np.append(above_all, thresholds)


def keep_confident(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The rows with confidence >= threshold; rows with empty boxes are dropped."""
    return predictions[predictions["confidence"] >= threshold].reset_index(drop=True)


def of_images(table: pd.DataFrame, ids: Any) -> pd.DataFrame:
    """The rows of `table` with these patientIds."""
    return table[table["patientId"].isin(ids)]


def top_confidences(predictions: pd.DataFrame) -> pd.Series:
    """The highest confidence of each image, 0 for an image without a box; index patientId."""
    return predictions.fillna({"confidence": 0.0}).groupby("patientId")["confidence"].max()


def score_steps(truth: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, Floats]:
    """Match all predictions greedily; for each, score its image with this and the more confident predictions only.

    Returns patientId, confidence and n_truth of each prediction, in the order of `arrange`, and the scores
    (predictions, 8), one column per IoU threshold.
    """
    table = arrange(truth, predictions)
    hits, _ = match_by_rank(table)
    true_positives = pd.DataFrame(hits).groupby(table.image).cumsum().to_numpy()
    n_truth = table.n_truth[table.image]
    union = (table.rank + 1 + n_truth)[:, None] - true_positives
    steps = pd.DataFrame({"patientId": table.ids[table.image], "confidence": table.confidence, "n_truth": n_truth})
    return steps, true_positives / union


class Arranged(NamedTuple):
    """True and predicted boxes of many images, arranged so that all images can be matched at once."""

    ids: NDArray[np.object_]  # (images,) patientId
    n_truth: NDArray[np.intp]  # (images,) true boxes
    padded_truth: Floats  # (images, most true boxes of an image, 4) xyxy, NaN where an image has fewer
    boxes_xyxy: Floats  # (boxes, 4) predicted boxes, sorted by image and decreasing confidence
    confidence: Floats  # (boxes,)
    image: NDArray[np.intp]  # (boxes,) index into ids
    rank: NDArray[np.intp]  # (boxes,) 0 for the most confident box of its image


def arrange(truth: pd.DataFrame, predictions: pd.DataFrame) -> Arranged:
    """Sort predictions by image and decreasing confidence, keeping the order of ties. ValueError for empty fields."""
    boxes = predictions.dropna(subset=BOX_COLUMNS, how="all")
    if boxes[["confidence", *BOX_COLUMNS]].isna().any(axis=None) or truth[BOX_COLUMNS].isna().any(axis=None):
        raise ValueError("a box has an empty field; drop the row or fill it")
    codes, ids = pd.factorize(np.concatenate([truth["patientId"].to_numpy(), boxes["patientId"].to_numpy()]))
    truth_image, image = codes[: len(truth)], codes[len(truth) :]
    order = np.lexsort([-boxes["confidence"].to_numpy(dtype=float), image])
    boxes, image = boxes.iloc[order], image[order]
    n_truth = np.bincount(truth_image, minlength=len(ids))
    padded_truth = np.full((len(ids), max(1, n_truth.max(initial=0)), 4), np.nan)
    slot = pd.Series(truth_image).groupby(truth_image).cumcount()
    padded_truth[truth_image, slot] = xywh_to_xyxy(truth[BOX_COLUMNS].to_numpy(dtype=float))
    boxes_xyxy = xywh_to_xyxy(boxes[BOX_COLUMNS].to_numpy(dtype=float))
    confidence = boxes["confidence"].to_numpy(dtype=float)
    return Arranged(ids, n_truth, padded_truth, boxes_xyxy, confidence, image, rank_within(image))


def rank_within(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of each row within its image: 0 for the first row, 1 for the second, ...; image: (n,), ascending."""
    return np.arange(len(image)) - np.searchsorted(image, image)


def match_by_rank(table: Arranged, thresholds: Floats = IOU_THRESHOLDS) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Greedy matching at n IoU thresholds: by decreasing confidence, each box takes the best true box left.

    Returns (boxes, n), 1 where a box takes a true box with an IoU above the threshold, else 0; and
    (images, n, most true boxes), True for each true box that is left over.
    """
    free = np.repeat(~np.isnan(table.padded_truth[:, None, :, 0]), len(thresholds), axis=1)
    return take_best(table, free, np.ones((len(table.image), len(thresholds)), dtype=bool), thresholds), free


def take_best(
    table: Arranged, free: NDArray[np.bool_], allowed: NDArray[np.bool_], thresholds: Floats
) -> NDArray[np.int64]:
    """As match_by_rank, but only boxes where `allowed` (boxes, n) is True, and only true boxes that are `free`.

    `free` (images, n, most true boxes) is changed in place. The boxes of rank 0 (the most confident of each image) are
    matched at once, then those of rank 1, and so on.
    """
    hits = np.zeros((len(table.boxes_xyxy), len(thresholds)), dtype=np.int64)
    by_rank = np.argsort(table.rank, kind="stable")
    for rows in np.split(by_rank, np.flatnonzero(np.diff(table.rank[by_rank])) + 1):
        image = table.image[rows]
        overlap = box_iou(table.boxes_xyxy[rows][:, None], table.padded_truth[image])
        overlap = np.where(free[image], np.nan_to_num(overlap)[:, None, :], -1.0)
        best = overlap.argmax(axis=2)
        hit = (np.take_along_axis(overlap, best[..., None], axis=2)[..., 0] > thresholds) & allowed[rows]
        hits[rows] = hit
        row, column = np.nonzero(hit)
        free[image[row], column, best[row, column]] = False
    return hits
