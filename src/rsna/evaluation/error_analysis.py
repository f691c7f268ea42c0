"""Error analysis of a run: where it loses score, how well its confidences are calibrated, and where boxes lie."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS, CLASSES
from rsna.evaluation.metric import IOU_THRESHOLDS, Arranged, arrange, match_by_rank, take_best

NORMAL, NOT_NORMAL, _ = CLASSES
# an unmatched box that has a higher IoU than this with a true box is a localisation error
NEAR_IOU = 0.1
PARTS = {
    "missed images": "an opacity, and no box at all",
    "missed boxes": "true boxes that no predicted box is near, on images that have some box",
    "localisation errors": f"a predicted and a true box that overlap (IoU above {NEAR_IOU}) but not enough to match",
    "background boxes": "predicted boxes with no true box near that is left, on images with an opacity",
    "false alarms on Normal": "a box on an image of the class Normal",
    "false alarms on Not Normal": "a box on an image without an opacity that is not normal either",
    "false alarms, class unknown": "a box on an image without an opacity whose class is not known",
}


def loss_parts(truth: pd.DataFrame, kept: pd.DataFrame, classes: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
    """Split 1 - mAP into PARTS. Returns the mean loss (parts x IoU thresholds), and how many images have each part.

    truth, kept: as in metric.image_scores; classes: patientId -> class. An image loses (FP + FN) / (TP + FP + FN): each
    false positive and each missed box costs the same, and each belongs to one part. A false positive and a missed box
    with an IoU above NEAR_IOU are paired, most confident first, and both count as localisation errors. So the parts
    add up to 1 - score at each threshold, and their means to 1 - mAP. The losses are NaN if no image counts.
    """
    table = arrange(truth, kept)
    errors, union = count_errors(table, classes)
    nothing = np.full(len(IOU_THRESHOLDS), np.nan)
    lost = {part: (count / union).mean(axis=0) if len(table.ids) else nothing for part, count in errors.items()}
    images = {part: int((count > 0).any(axis=1).sum()) for part, count in errors.items()}
    return pd.DataFrame.from_dict(lost, orient="index", columns=IOU_THRESHOLDS), pd.Series(images)


def count_errors(table: Arranged, classes: pd.Series) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """For each part of PARTS the number of errors (images, 8) at each IoU threshold; and TP + FP + FN (images, 8)."""
    hits, free = match_by_rank(table)
    near = take_best(table, free, hits == 0, np.full(len(IOU_THRESHOLDS), NEAR_IOU))
    n_boxes = np.bincount(table.image, minlength=len(table.ids))[:, None]
    matched, paired = np.zeros((2, len(table.ids), len(IOU_THRESHOLDS)), dtype=np.int64)
    np.add.at(matched, table.image, hits)
    np.add.at(paired, table.image, near)
    wrong, missed = n_boxes - matched, table.n_truth[:, None] - matched
    positive, unpredicted = table.n_truth[:, None] > 0, n_boxes == 0
    false_alarms = np.where(positive, 0, wrong)
    kind = classes.reindex(table.ids).to_numpy()[:, None]
    errors = {
        "missed images": np.where(positive & unpredicted, missed, 0),
        "missed boxes": np.where(positive & ~unpredicted, missed - paired, 0),
        "localisation errors": 2 * paired,
        "background boxes": np.where(positive, wrong - paired, 0),
        "false alarms on Normal": np.where(kind == NORMAL, false_alarms, 0),
        "false alarms on Not Normal": np.where(kind == NOT_NORMAL, false_alarms, 0),
        "false alarms, class unknown": np.where((kind != NORMAL) & (kind != NOT_NORMAL), false_alarms, 0),
    }
    return errors, matched + wrong + missed


def calibration(top: pd.Series, positive: NDArray[np.bool_], n_bins: int = 10) -> pd.DataFrame:
    """The calibration curve: one row per bin of images, by increasing confidence, about as many images in each bin.

    top: the highest confidence of each image; positive: whether it has an opacity. Columns confidence (mean), share
    (fraction with an opacity), low, high (95 % Wilson interval of the share), images. Images of equal confidence stay
    in the same bin, so there may be fewer bins than n_bins.
    """
    bins = pd.qcut(top, min(n_bins, len(top)), labels=False, duplicates="drop").fillna(0)
    groups = pd.DataFrame({"confidence": top.to_numpy(), "hit": positive}).groupby(bins.to_numpy())
    table = groups.agg(confidence=("confidence", "mean"), share=("hit", "mean"), images=("hit", "size"))
    low, high = wilson_interval(table["share"].to_numpy(dtype=float), table["images"].to_numpy(dtype=float))
    return table.assign(low=low, high=high).reset_index(drop=True)


def wilson_interval(share: Floats, n: Floats, z: float = 1.96) -> tuple[Floats, Floats]:
    """Wilson interval of a share of n: it stays within [0, 1], and has a width even if the share is 0 or 1."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error: mean of |confidence - share| over the bins, weighted by their number of images."""
    return float(np.average((bins["confidence"] - bins["share"]).abs(), weights=bins["images"]))


def roc(top: pd.Series, positive: NDArray[np.bool_], threshold: float) -> tuple[pd.DataFrame, tuple[float, float]]:
    """The ROC curve (columns false_alarms, found), and the point of the threshold on it.

    The curve is empty and the point NaN if all images are positive or all are negative.
    """
    if not 0 < positive.sum() < len(positive):
        return pd.DataFrame(columns=["false_alarms", "found"], dtype=float), (np.nan, np.nan)
    false_alarms, found, _ = roc_curve(positive, top)
    called = top.to_numpy() >= threshold
    point = float(called[~positive].mean()), float(called[positive].mean())
    return pd.DataFrame({"false_alarms": false_alarms, "found": found}), point


def overlaps(truth: pd.DataFrame, kept: pd.DataFrame) -> Floats:
    """The highest IoU of each kept box with a true box of its image, for images with an opacity: (boxes,)."""
    pairs = kept.assign(row=np.arange(len(kept))).merge(truth, on="patientId", suffixes=("", "_true"))
    true = pairs[[f"{column}_true" for column in BOX_COLUMNS]].to_numpy(dtype=float)
    pairs["iou"] = box_iou(xywh_to_xyxy(pairs[BOX_COLUMNS].to_numpy(dtype=float)), xywh_to_xyxy(true))
    return pairs.groupby("row")["iou"].max().to_numpy(dtype=float)


def thin(table: pd.DataFrame, x: str, y: str, n: int = 400) -> pd.DataFrame:
    """Thin out a curve without changing its look: the rows of both ends and of the lowest and highest y in n x-slices.

    So at most 2n + 2 rows are left.
    """
    if len(table) <= 2 * n:
        return table
    rows = table.reset_index(drop=True)
    by_slice = rows[y].groupby(pd.cut(rows[x], n, labels=False))
    keep = sorted({0, len(rows) - 1, *by_slice.idxmin().astype(int), *by_slice.idxmax().astype(int)})
    return rows.iloc[keep].reset_index(drop=True)


def coverage(boxes_xyxy: Floats, cells: int = 64) -> Floats:
    """The fraction of boxes that cover each cell's centre: (n, 4) xyxy in [0, 1] -> (cells, cells), top row first."""
    centres = (np.arange(cells) + 0.5) / cells
    left, top, right, bottom = (boxes_xyxy[:, [k]] for k in range(4))
    columns = ((left <= centres) & (centres < right)).astype(float)
    rows = ((top <= centres) & (centres < bottom)).astype(float)
    return rows.T @ columns / max(len(boxes_xyxy), 1)
