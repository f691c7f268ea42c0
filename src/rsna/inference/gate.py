"""The gate: what an image's class probabilities do to the confidences of its boxes.

A box's confidence becomes confidence^alpha * p^(1 - alpha) with p = p_opacity + beta * p_not_normal, as in the
challenge's second place, which had alpha = .5 and beta = .1. Within an image the order of the boxes stays.
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
    images: pd.DataFrame  # class probabilities by patientId


@dataclass(frozen=True)
class Gate:
    """alpha in (0, 1]: weight of the box's own confidence; 1 leaves it as it is. beta: weight of "not normal"."""

    alpha: float = 1.0
    beta: float = 0.0

    def apply(self, boxes: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
        """The predictions `boxes` with gated confidences; images: p_opacity and perhaps p_not_normal by patientId."""
        if self.alpha == 1:
            return boxes
        p_of_image = images["p_opacity"] + self.beta * images.get("p_not_normal", 0.0)
        p = p_of_image.reindex(boxes["patientId"]).to_numpy()
        return boxes.assign(confidence=boxes["confidence"] ** self.alpha * p ** (1 - self.alpha))


def parse_gate(text: str) -> Gate:
    """`none`, or `alpha,beta` as validation.check has seen them."""
    return Gate() if text == "none" else Gate(*map(float, text.split(",")))


def describe_gate(chosen: dict[str, Any]) -> str:
    """A line about a chosen gate: alpha, beta and gain, see choose_gate."""
    gain = "" if chosen["gain"] is None else f", cross-fitted gain {chosen['gain']:+.4f} mAP"
    if chosen["alpha"] == 1:
        return f"no gate: none raises the out-of-fold mAP{gain}"
    return f"gate alpha {chosen['alpha']:g}, beta {chosen['beta']:g}, chosen out of fold{gain}"


# no gate first
GATES = [Gate(), *(Gate(alpha / 10, beta) for alpha, beta in product(range(9, 1, -1), (0.0, 0.1, 0.2, 0.3)))]


def choose_gate(found: Fused, truth: pd.DataFrame, fold_of: pd.Series) -> tuple[Gate, float | None]:
    """The gate with the highest out-of-fold mAP at its best threshold, of equals the first; and its gain over no gate.

    The gain is cross-fitted: gate and threshold of each fold are chosen on the other folds; None with a single fold.
    Where that is no gain, the choice is none. truth: true boxes of these images; fold_of: patientId -> fold.
    """
    # a gate leaves the order within an image, and so the matching, as it is: that is done once for all gates
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
