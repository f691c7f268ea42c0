"""The gate: changes the confidences of an image's boxes according to the image's class probabilities.

A confidence becomes confidence^alpha * p^(1 - alpha) with p = p_opacity + beta * p_not_normal, as in the challenge's
second-place solution, with alpha = 0.5 and beta = 0.1. The order of the boxes within an image does not change.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from rsna.evaluation.metric import box_steps, image_scores, keep_confident, of_images, sweep_steps
from rsna.evaluation.threshold import best_threshold, cross_fit


@dataclass(frozen=True)
class Fused:
    """Fused predictions of one set of images."""

    boxes: pd.DataFrame  # patientId, confidence, x, y, width, height
    images: pd.DataFrame  # class probabilities, index patientId


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


def parse_gate(text: str) -> Gate:
    """The gate that `none` or `alpha,beta` means; validation.check has checked the text."""
    return Gate() if text == "none" else Gate(*map(float, text.split(",")))


def describe_gate(chosen: dict[str, Any]) -> str:
    """A line about a chosen gate; chosen: alpha, beta and gain, see choose_gate."""
    gain = "" if chosen["gain"] is None else f", cross-fitted gain {chosen['gain']:+.4f} mAP"
    if chosen["alpha"] == 1:
        return f"no gate: none raises the out-of-fold mAP{gain}"
    return f"gate alpha {chosen['alpha']:g}, beta {chosen['beta']:g}, chosen out of fold{gain}"


# no gate first
GATES = [Gate(), *(Gate(alpha / 10, beta) for alpha, beta in product(range(9, 1, -1), (0.0, 0.1, 0.2, 0.3)))]


def choose_gate(found: Fused, truth: pd.DataFrame, fold_of: pd.Series) -> tuple[Gate, float | None]:
    """The gate with the highest out-of-fold mAP at its best threshold (the first if tied), and its gain over no gate.

    The gain is cross-fitted: gate and threshold of each fold are chosen on the other folds. It is None with a single
    fold. If it is not positive, no gate is chosen. truth: true boxes of these images; fold_of: patientId -> fold.
    """
    # a gate does not change the order of boxes within an image, so they are matched once for all gates
    steps = box_steps(truth, found.boxes)
    confidences = [gate.apply(steps, found.images)["confidence"] for gate in GATES]
    fold_of_step, fold_of_positive = steps["patientId"].map(fold_of), fold_of[truth["patientId"].unique()]

    def best(without: Any = None) -> tuple[Gate, float]:
        rows = (fold_of_step != without).to_numpy()
        n_positive = int((fold_of_positive != without).sum())
        tables = (steps.assign(confidence=confidence)[rows] for confidence in confidences)
        sweeps = [sweep_steps(table, n_positive) for table in tables]
        top = max(range(len(GATES)), key=lambda k: sweeps[k]["score"].max())
        return GATES[top], best_threshold(sweeps[top])

    without_gate, _ = cross_fit(found.boxes, truth, fold_of)
    if without_gate.empty:
        return best()[0], None
    parts = []
    for fold, ids in fold_of.groupby(fold_of).groups.items():
        gate, threshold = best(fold)
        kept = keep_confident(gate.apply(of_images(found.boxes, ids), found.images), threshold)
        parts.append(image_scores(of_images(truth, ids), kept).mean(axis=1))
    gain = float(pd.concat(parts).mean() - without_gate.mean())
    return best()[0] if gain > 0 else Gate(), gain
