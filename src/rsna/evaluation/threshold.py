"""The operating point: which confidence is enough for a box, and how large boxes are made. Everything that chooses one.

On the images that it is chosen on its score is too high: `cross_fit` chooses it for each fold on the other folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rsna.data.boxes import scale_boxes
from rsna.data.competition import BOX_COLUMNS
from rsna.evaluation.metric import cut_points, image_scores, keep_confident, threshold_sweep, top_confidences


@dataclass(frozen=True)
class OperatingPoint:
    """What turns predictions into a submission."""

    threshold: float  # boxes with at least this confidence are kept
    box_scale: float = 1.0  # factor on the sides of the boxes, about their centres
    how_chosen: str = ""

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The boxes that are kept, scaled; rows of images without any are dropped."""
        return keep_confident(with_scaled_boxes(predictions, self.box_scale), self.threshold)


def with_scaled_boxes(predictions: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The predictions with their boxes shrunk or grown about their centres; at 1 every digit stays as it is."""
    if factor == 1:
        return predictions
    scaled = scale_boxes(predictions[BOX_COLUMNS].to_numpy(dtype=float), factor)
    return predictions.assign(**dict(zip(BOX_COLUMNS, scaled.T, strict=True)))


def best_threshold(sweep: pd.DataFrame) -> float:
    """The threshold of the highest score of a sweep; of equals the highest, which submits the fewest boxes."""
    return float(sweep["threshold"].iloc[int(sweep["score"].to_numpy().argmax())])


def best_score(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """The mAP at the threshold that suits these very images best: for comparing, not for reporting."""
    return float(threshold_sweep(truth, predictions)["score"].max())


def plateau(sweep: pd.DataFrame) -> pd.Series:
    """The thresholds around the best one, on both sides up to the first whose score is 5 % lower."""
    high = (sweep["score"] >= 0.95 * sweep["score"].max()).to_numpy()
    stretch = np.cumsum(np.diff(high, prepend=False))
    return sweep.loc[stretch == stretch[sweep["score"].to_numpy().argmax()], "threshold"]


def best_point(predictions: pd.DataFrame, truth: pd.DataFrame, scales: Sequence[float] = (1.0,)) -> OperatingPoint:
    """The threshold and the box scale, of `scales`, with the highest mAP on these images; of equal scales the first."""
    sweeps = {scale: threshold_sweep(truth, with_scaled_boxes(predictions, scale)) for scale in scales}
    scale = max(sweeps, key=lambda scale: sweeps[scale]["score"].max())
    return OperatingPoint(best_threshold(sweeps[scale]), scale)


def cross_fit(
    predictions: pd.DataFrame, truth: pd.DataFrame, fold_of: pd.Series
) -> tuple[pd.Series, dict[Any, OperatingPoint]]:
    """Image scores with the threshold of each fold chosen on the other folds, and those operating points by fold.

    fold_of: index patientId -> fold. With a single fold there is no other: no score and no point. The mean of the
    scores is what to expect of images that took no part in the choice, if they are like these.
    """
    parts, points = [pd.Series(dtype=float)], dict[Any, OperatingPoint]()
    # looked up once: names are slow to compare
    fold_of_box, fold_of_truth = (table["patientId"].map(fold_of) for table in (predictions, truth))
    for fold in sorted(fold_of.unique()) if fold_of.nunique() > 1 else ():
        others, other_truth = (of.notna() & (of != fold) for of in (fold_of_box, fold_of_truth))
        points[fold] = best_point(predictions[others], truth[other_truth])
        kept = points[fold].apply(predictions[fold_of_box == fold])
        parts.append(image_scores(truth[fold_of_truth == fold], kept).mean(axis=1))
    return pd.concat(parts[1:] or parts), points


def mean_or_none(scores: pd.Series) -> float | None:
    """The mean image score; None where there is none, as JSON has no NaN."""
    return float(scores.mean()) if len(scores) else None


def point_for_test(
    predictions: pd.DataFrame, by_fold: pd.DataFrame, threshold: float, box_scale: float = 1.0
) -> OperatingPoint:
    """The operating point for the fused predictions of the test images, given the best one out of fold.

    That does not carry over as a number: all folds see a test image and one sees an out-of-fold image, and where models
    disagree on the place the fused confidence is lower. But each fold's own test predictions (by_fold, with a column
    fold) are on the scale of its out-of-fold predictions. So the share of the test images that get a box from single
    folds at that threshold gets one from the fused table too: more of them, if they hold more opacities.
    """
    shares = by_fold.groupby(["fold", "patientId"])["confidence"].max().ge(threshold).groupby("fold").mean()
    share = float(shares.mean())
    how = f"single folds give {share:.1%} of the test images a box at {threshold:.4f}, the best threshold out of fold"
    return OperatingPoint(threshold_of_share(predictions, share), box_scale, how)


def threshold_of_share(predictions: pd.DataFrame, share: float) -> float:
    """The confidence threshold that gives a share of the images a box that is as near to `share` as ties allow."""
    top = top_confidences(predictions).sort_values(ascending=False).to_numpy()
    kept, thresholds = cut_points(top)
    return float(thresholds[np.abs(kept - share * len(top)).argmin()])
