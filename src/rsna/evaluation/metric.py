"""The competition's metric: mean over images of TP / (TP + FP + FN), averaged over eight IoU thresholds.

Source: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/overview/evaluation, with the edge cases
worked by hand in tests/evaluation/test_metric.py: an image without truth and without predictions is left out, one
without truth and with predictions scores 0, a match needs an IoU strictly greater than the threshold.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS

# k / 100 and not np.arange(.4, .76, .05), which yields .6499999 and lets an IoU of exactly .65 pass
IOU_THRESHOLDS = np.array([40, 45, 50, 55, 60, 65, 70, 75]) / 100


def mean_average_precision(truth: pd.DataFrame, predictions: pd.DataFrame) -> float:
    """The competition's score of predictions that are already thresholded; NaN if no image counts.

    truth: patientId, x, y, width, height, a row for each box; predictions: also confidence, and rows with empty boxes
    are ignored. Original pixels.
    """
    scores = image_scores(truth, predictions)
    return float(scores.to_numpy().mean()) if len(scores) else float("nan")


def image_scores(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The score of every image that counts: index patientId, one column per IoU threshold, values in [0, 1]."""
    steps, scores = score_steps(truth, predictions)
    table = pd.DataFrame(scores, index=steps["patientId"], columns=IOU_THRESHOLDS)
    predicted = table[~table.index.duplicated(keep="last")]
    counted = predicted.index.union(pd.Index(truth["patientId"].unique()), sort=False)
    return predicted.reindex(counted, fill_value=0.0).rename_axis("patientId").sort_index()


def threshold_sweep(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The score for every confidence threshold that makes a difference, all in one pass.

    Rows by falling threshold, columns threshold (keep confidence >= threshold, see cut_points), score, n_boxes (how
    many are kept). A lower threshold only appends to an image's boxes and leaves the greedy matching of those before
    as it is: so each box adds a known step to its image's score, and a running sum does the rest.
    """
    return sweep_steps(box_steps(truth, predictions), truth["patientId"].nunique())


def sweep_steps(steps: pd.DataFrame, n_positive: int) -> pd.DataFrame:
    """threshold_sweep of the steps of box_steps; n_positive: images with a true box."""
    confidence, gain, newly_counted = (steps[name].to_numpy() for name in ("confidence", "gain", "newly_counted"))
    order = np.argsort(-confidence, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(gain[order])])
    counted = n_positive + np.concatenate([[0], np.cumsum(newly_counted[order])])
    kept, thresholds = cut_points(confidence[order])
    score = np.divide(total[kept], counted[kept], out=np.zeros(len(kept)), where=counted[kept] > 0)
    return pd.DataFrame({"threshold": thresholds, "score": score, "n_boxes": kept})


def box_steps(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """What each box changes once all boxes of its image with more confidence are kept.

    Columns patientId, confidence, gain (of its image's score) and newly_counted (the first box of a negative image).
    """
    steps, scores = score_steps(truth, predictions)
    after = scores.mean(axis=1)
    first = ~steps["patientId"].duplicated().to_numpy()
    gain = after - np.where(first, 0.0, np.roll(after, 1))
    newly_counted = first & (steps["n_truth"].to_numpy() == 0)
    return steps[["patientId", "confidence"]].assign(gain=gain, newly_counted=newly_counted)


def cut_points(falling: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Falling confidences -> how many of them can be kept, from 0, equal ones together; and the threshold for each."""
    kept = np.append(0, np.flatnonzero(np.diff(falling, append=-np.inf)) + 1)
    upper, lower = falling[kept[1:] - 1], np.append(falling[kept[1:-1]], -np.inf)
    middle = (upper + lower) / 2  # between the last that is kept and the first that is not
    thresholds = np.where((lower < middle) & (middle <= upper), middle, upper)
    above_all = np.nextafter(falling[0], np.inf) if len(falling) else 1.0
    return kept, np.append(above_all, thresholds)


def keep_confident(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The rows with confidence >= threshold; rows with empty boxes are dropped."""
    return predictions[predictions["confidence"] >= threshold].reset_index(drop=True)


def of_images(table: pd.DataFrame, ids: Any) -> pd.DataFrame:
    """The rows of these patientIds."""
    return table[table["patientId"].isin(ids)]


def top_confidences(predictions: pd.DataFrame) -> pd.Series:
    """The highest confidence of each image, 0 for one without a box; index patientId."""
    return predictions.fillna({"confidence": 0.0}).groupby("patientId")["confidence"].max()


def score_steps(truth: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, Floats]:
    """Match every prediction greedily, and score its image as if it were the last one that is kept.

    Returns patientId, confidence and n_truth of each, in the order of `arrange`, and scores (rows, 8) by IoU threshold.
    """
    table = arrange(truth, predictions)
    hits, _ = match_by_rank(table)
    true_positives = pd.DataFrame(hits).groupby(table.image).cumsum().to_numpy()
    n_truth = table.n_truth[table.image]
    union = (table.rank + 1 + n_truth)[:, None] - true_positives
    steps = pd.DataFrame({"patientId": table.ids[table.image], "confidence": table.confidence, "n_truth": n_truth})
    return steps, true_positives / union


class Arranged(NamedTuple):
    """Truth and predictions of many images, ready to be matched side by side."""

    ids: NDArray[np.object_]  # (images,) patientId
    n_truth: NDArray[np.intp]  # (images,) true boxes
    padded_truth: Floats  # (images, most boxes, 4) xyxy, NaN where an image has fewer
    boxes_xyxy: Floats  # (boxes, 4) predictions, sorted by image and falling confidence
    confidence: Floats  # (boxes,)
    image: NDArray[np.intp]  # (boxes,) row in ids
    rank: NDArray[np.intp]  # (boxes,) 0 for the most confident box of its image


def arrange(truth: pd.DataFrame, predictions: pd.DataFrame) -> Arranged:
    """Sort predictions by image and falling confidence (ties: as given). Raises ValueError for missing numbers."""
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
    return Arranged(
        ids=ids,
        n_truth=n_truth,
        padded_truth=padded_truth,
        boxes_xyxy=xywh_to_xyxy(boxes[BOX_COLUMNS].to_numpy(dtype=float)),
        confidence=boxes["confidence"].to_numpy(dtype=float),
        image=image,
        rank=np.arange(len(image)) - np.searchsorted(image, image),
    )


def match_by_rank(table: Arranged, above: Floats = IOU_THRESHOLDS) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Greedy matching: (boxes, n) 1 where a box takes the best truth box that is left, with IoU > above (n,).

    Also returns which truth boxes are left over: (images, n, most boxes).
    """
    free = np.repeat(~np.isnan(table.padded_truth[:, None, :, 0]), len(above), axis=1)
    return take_best(table, free, np.ones((len(table.image), len(above)), dtype=bool), above), free


def take_best(table: Arranged, free: NDArray[np.bool_], may: NDArray[np.bool_], above: Floats) -> NDArray[np.int64]:
    """As match_by_rank, for boxes that `may` (boxes, n) and true boxes that are `free`, which are then no longer.

    All boxes of rank 0 (the most confident of their images) are matched at once, then those of rank 1, ...
    """
    hits = np.zeros((len(table.boxes_xyxy), len(above)), dtype=np.int64)
    by_rank = np.argsort(table.rank, kind="stable")
    for rows in np.split(by_rank, np.flatnonzero(np.diff(table.rank[by_rank])) + 1):
        image = table.image[rows]
        overlap = box_iou(table.boxes_xyxy[rows][:, None], table.padded_truth[image])
        overlap = np.where(free[image], np.nan_to_num(overlap)[:, None, :], -1.0)
        best = overlap.argmax(axis=2)
        hit = (np.take_along_axis(overlap, best[..., None], axis=2)[..., 0] > above) & may[rows]
        hits[rows] = hit
        row, column = np.nonzero(hit)
        free[image[row], column, best[row, column]] = False
    return hits
