"""Operating points: the confidence threshold and the box scale, and functions that choose them.

The score on the images that a point was chosen on is too high, so `cross_fit` chooses it for each fold on the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.tables import as_numbers, read_table
from rsna.data.boxes import scale_boxes
from rsna.data.competition import BOX_COLUMNS
from rsna.evaluation.metric import cut_points, image_scores, keep_confident, threshold_sweep, top_confidences


@dataclass(frozen=True)
class OperatingPoint:
    """What turns predictions into a submission."""

    threshold: float  # boxes with at least this confidence are kept
    box_scale: float = 1.0  # factor on the sides of the boxes; their centres stay in place
    how_chosen: str = ""  # for people to read

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The boxes that are kept, scaled; images without one have no row."""
        return keep_confident(with_scaled_boxes(predictions, self.box_scale), self.threshold)


@dataclass(frozen=True)
class Gate:
    """alpha in (0, 1]: weight of the box's confidence; 1 means no gate. beta: weight of p_not_normal."""

    alpha: float = 1.0
    beta: float = 0.0

    def apply(self, boxes: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
        """`boxes` with gated confidences; images: p_opacity and, with 3 classes, p_not_normal; index patientId."""
        if self.alpha == 1:
            return boxes
        p_of_image = images["p_opacity"] + self.beta * images.get("p_not_normal", 0.0)
        p = p_of_image.reindex(boxes["patientId"]).to_numpy()
        return boxes.assign(confidence=boxes["confidence"] ** self.alpha * p ** (1 - self.alpha))


def apply_gates(
    predictions: pd.DataFrame, images_csv: Path, gates: Mapping[str, Sequence[float]]
) -> dict[int, pd.Series]:
    """Fold -> the confidences of all predictions, given in the column `ungated`, with that fold's gate.

    images_csv: their class probabilities; gates: fold -> alpha and beta, from ensemble.json, empty without a gate.
    """
    if not gates:
        return {}
    images = read_table(images_csv, ["patientId", "p_opacity"]).set_index("patientId")
    ungated = predictions.assign(confidence=as_numbers(predictions[["ungated"]])["ungated"])
    return {int(fold): Gate(*gate).apply(ungated, images)["confidence"] for fold, gate in gates.items()}


def with_scaled_boxes(predictions: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The predictions with the sides of their boxes multiplied by `factor`, about the same centres; unchanged at 1."""
    if factor == 1:
        return predictions
    scaled = scale_boxes(predictions[BOX_COLUMNS].to_numpy(dtype=float), factor)
    return predictions.assign(**dict(zip(BOX_COLUMNS, scaled.T, strict=True)))


def best_threshold(sweep: pd.DataFrame) -> float:
    """The threshold with the highest score of a sweep; of several, the highest threshold, which keeps fewest boxes."""
    return float(sweep["threshold"].iloc[int(sweep["score"].to_numpy().argmax())])


def best_score(predictions: pd.DataFrame, truth: pd.DataFrame) -> float:
    """The mAP at the threshold that is best for these images: for comparing predictions, too high to report."""
    return float(threshold_sweep(truth, predictions)["score"].max())


def plateau(sweep: pd.DataFrame) -> pd.Series:
    """The contiguous thresholds around the best one whose score is at least 95 % of the best score."""
    high = (sweep["score"] >= 0.95 * sweep["score"].max()).to_numpy()
    stretch = np.cumsum(np.diff(high, prepend=False))  # the number of the stretch of equal values
    return sweep.loc[stretch == stretch[sweep["score"].to_numpy().argmax()], "threshold"]


def best_point(predictions: pd.DataFrame, truth: pd.DataFrame, scales: Sequence[float] = (1.0,)) -> OperatingPoint:
    """The threshold, and the box scale of `scales`, with the highest mAP on these images; the first scale if tied."""
    sweeps = {scale: threshold_sweep(truth, with_scaled_boxes(predictions, scale)) for scale in scales}
    scale = max(sweeps, key=lambda scale: sweeps[scale]["score"].max())
    return OperatingPoint(best_threshold(sweeps[scale]), scale)


def cross_fit(
    predictions: pd.DataFrame, truth: pd.DataFrame, fold_of: pd.Series, gated: Mapping[Any, pd.Series] | None = None
) -> tuple[pd.Series, dict[Any, OperatingPoint]]:
    """Choose the threshold of each fold on the other folds. Returns image scores, and the operating point of each fold.

    fold_of: patientId -> fold; gated: fold -> the confidences of all predictions with the gate chosen on other folds.
    With a single fold both results are empty. The mean of the scores is what to expect on new images of this kind.
    """
    parts, points = [pd.Series(dtype=float)], dict[Any, OperatingPoint]()
    # looked up once, because comparing patientIds is slow
    fold_of_box, fold_of_truth = (table["patientId"].map(fold_of) for table in (predictions, truth))
    for fold in sorted(fold_of.unique()) if fold_of.nunique() > 1 else ():
        other_boxes, other_truth = (folds.notna() & (folds != fold) for folds in (fold_of_box, fold_of_truth))
        table = predictions.assign(confidence=gated[fold]) if gated else predictions
        points[fold] = best_point(table[other_boxes], truth[other_truth])
        kept = points[fold].apply(table[fold_of_box == fold])
        parts.append(image_scores(truth[fold_of_truth == fold], kept).mean(axis=1))
    return pd.concat(parts[1:] or parts), points


def mean_or_none(scores: pd.Series) -> float | None:
    """The mean image score; None if there are no scores, as JSON has no NaN."""
    return float(scores.mean()) if len(scores) else None


def point_for_test(
    predictions: pd.DataFrame, by_fold: pd.DataFrame, threshold: float, box_scale: float = 1.0
) -> OperatingPoint:
    """The operating point for the fused test predictions, given the best out-of-fold threshold and box scale.

    The out-of-fold threshold cannot be used directly. A test image is predicted by all folds, an out-of-fold image by
    one, and fusion lowers the confidence where folds disagree on the position. But the test predictions of each single
    fold (by_fold, with a column fold) are on the same scale as the out-of-fold predictions. So the threshold is chosen
    such that the fused table gives a box to the same share of the test images as the single folds do, on average, at
    the out-of-fold threshold.
    """
    shares = by_fold.groupby(["fold", "patientId"])["confidence"].max().ge(threshold).groupby("fold").mean()
    share = float(shares.mean())
    how = f"single folds give {share:.1%} of the test images a box at {threshold:.4f}, the best threshold out of fold"
    return OperatingPoint(threshold_of_share(predictions, share), box_scale, how)


def threshold_of_share(predictions: pd.DataFrame, share: float) -> float:
    """The confidence threshold at which the share of images with a box is as close to `share` as ties allow."""
    top = top_confidences(predictions).sort_values(ascending=False).to_numpy()
    kept, thresholds = cut_points(top)
    return float(thresholds[np.abs(kept - share * len(top)).argmin()])
