"""The gate: changes the confidences of an image's boxes according to the image's class probabilities.

A confidence becomes confidence^alpha * p^(1 - alpha) with p = p_opacity + beta * p_not_normal, as in the challenge's
second-place solution, with alpha = 0.5 and beta = 0.1. The order of the boxes within an image does not change.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from rsna.evaluation.metric import box_steps, sweep_steps
from rsna.evaluation.threshold import Gate, cross_fit


@dataclass(frozen=True)
class Fused:
    """Fused predictions of one set of images."""

    boxes: pd.DataFrame  # patientId, confidence, x, y, width, height
    images: pd.DataFrame  # class probabilities, index patientId


def parse_gate(text: str) -> Gate:
    """The gate that `none` or `alpha,beta` means; validation.check has checked the text."""
    return Gate() if text == "none" else Gate(*map(float, text.split(",")))


def describe_gate(chosen: dict[str, Any]) -> str:
    """A line about a chosen gate; chosen: alpha, beta and gain, see choose_gate."""
    alpha, beta, gain = chosen["alpha"], chosen["beta"], chosen["gain"]
    if alpha < 1:
        cross_fitted = "" if gain is None else f", cross-fitted gain {gain:+.4f} mAP"
        return f"gate alpha {alpha:g}, beta {beta:g}, chosen out of fold{cross_fitted}"
    if gain is not None and gain <= 0:
        return f"no gate: no cross-fitted gain ({gain:+.4f} mAP)"
    return "no gate: the out-of-fold mAP is highest without one"


# no gate first
GATES = [Gate(), *(Gate(alpha / 10, beta) for alpha, beta in product(range(9, 1, -1), (0.0, 0.1, 0.2, 0.3)))]


def choose_gate(found: Fused, truth: pd.DataFrame, fold_of: pd.Series) -> tuple[Gate, float | None, dict[Any, Gate]]:
    """The gate with the highest out-of-fold mAP at its best threshold (the first if tied), and its gain over no gate.

    The gain is cross-fitted: gate and threshold of each fold are chosen on the other folds. It is None with a single
    fold. If it is not positive, no gate is chosen. truth: true boxes of these images; fold_of: patientId -> fold. Also
    returns, if a gate is chosen, fold -> the gate chosen on the other folds.
    """
    # a gate does not change the order of boxes within an image, so they are matched once for all gates
    steps = box_steps(truth, found.boxes)
    confidences = [gate.apply(steps, found.images)["confidence"] for gate in GATES]
    fold_of_step, fold_of_positive = steps["patientId"].map(fold_of), fold_of[truth["patientId"].unique()]

    def best(without: Any = None) -> Gate:
        rows = (fold_of_step != without).to_numpy()
        n_positive = int((fold_of_positive != without).sum())
        tables = (steps.assign(confidence=confidence)[rows] for confidence in confidences)
        highest = [sweep_steps(table, n_positive)["score"].max() for table in tables]
        return GATES[max(range(len(GATES)), key=highest.__getitem__)]

    chosen = best()
    without_gate, _ = cross_fit(found.boxes, truth, fold_of)
    if without_gate.empty:
        return chosen, None, {}
    by_fold = {fold: best(fold) for fold in fold_of.unique().tolist()}
    gated = {fold: gate.apply(found.boxes, found.images)["confidence"] for fold, gate in by_fold.items()}
    with_gate, _ = cross_fit(found.boxes, truth, fold_of, gated)
    gain = float(with_gate.mean() - without_gate.mean())
    return (chosen, gain, by_fold) if gain > 0 and chosen != Gate() else (Gate(), gain, {})
