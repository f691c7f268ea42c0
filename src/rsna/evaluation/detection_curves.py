"""The scores that detection papers report, AP50 and FROC. They use all boxes, not only those above a threshold."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.boxes import Floats
from rsna.evaluation.metric import arrange, cut_points, match_by_rank

AP_BOXES = 100  # AP50 uses only the most confident boxes of an image, at most this many: COCO's maxDets
RECALLS = np.linspace(0, 1, 101)
# COCO counts an IoU of exactly 0.5 as a match; the competition, and FROC here, do not. The code compares with `>`.
COCO_IOU, FROC_IOU = np.nextafter(0.5, 0), 0.5
FROC_RATES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1, "2": 2, "4": 4, "8": 8}  # false positives per image


def detection_scores(truth: pd.DataFrame, predictions: pd.DataFrame, n_images: int) -> dict[str, Any]:
    """AP50 and FROC: {"AP50": value, "FROC": {rate: sensitivity, ..., "mean": value}}; NaN if there is no true box.

    truth, predictions: as in metric.image_scores, with all predicted boxes; n_images: of all predicted images.
    """
    # reversed, because COCO takes the last of several true boxes with equal IoU
    table = arrange(truth.iloc[::-1], predictions)
    hits, _ = match_by_rank(table, np.array([COCO_IOU, FROC_IOU]))
    # ties in confidence are ordered by patientId and rank, as in COCO's own code
    order = np.lexsort((table.rank, pd.Series(table.ids).rank().to_numpy()[table.image], -table.confidence))
    counted = order[table.rank[order] < AP_BOXES]
    froc = sensitivities(hits[order, 1], table.confidence[order], len(truth), n_images)
    return {"AP50": average_precision(hits[counted, 0], len(truth)), "FROC": froc}


def average_precision(hits: NDArray[np.int64], n_truth: int) -> float:
    """COCO's AP: at each of RECALLS the highest precision at that or a higher recall (0 if not reached), averaged.

    hits: 1 for a match, else 0, by decreasing confidence; n_truth: number of true boxes. NaN without a true box.
    """
    if n_truth == 0:
        return float("nan")
    found = np.cumsum(hits)
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.append(precision, 0.0)[np.searchsorted(found / n_truth, RECALLS)].mean())


def sensitivities(hits: NDArray[np.int64], confidences: Floats, n_truth: int, n_images: int) -> dict[str, float]:
    """FROC: the sensitivity at each of FROC_RATES, by its name, and `mean`, their mean.

    Sensitivity is the fraction of true boxes found with at most that many false positives per image. hits, confidences:
    matches (1 or 0) and confidences of the boxes, by decreasing confidence; boxes of equal confidence are kept
    together. A rate that is not reached, as with one box per image, gets the highest sensitivity reached.
    """
    kept, _ = cut_points(confidences)
    found = np.append(0, np.cumsum(hits))[kept]
    rows = np.searchsorted(kept - found, [rate * n_images for rate in FROC_RATES.values()], side="right") - 1
    shares = found[rows] / n_truth if n_truth else np.full(len(rows), np.nan)
    return {**dict(zip(FROC_RATES, shares.tolist(), strict=True)), "mean": float(shares.mean())}
