"""The operating point for the images that will be submitted, chosen on out-of-fold images that are like them.

They are few, so curves are smoothed. With `found` the mean score of the positive images and `false_alarms` the fraction
of the negative ones that get a box, both at some threshold, and `prior` the fraction of positive images, the score is
prior * found / (prior + (1 - prior) * false_alarms): so curves of one set give those of a set with another prior.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.evaluation.bootstrap import MIDDLE
from rsna.evaluation.metric import box_steps, top_confidences
from rsna.evaluation.prior import count_bins
from rsna.evaluation.threshold import best_point, with_scaled_boxes

Floats = NDArray[np.float64]
SCALES = tuple(k / 100 for k in range(70, 111, 5))  # factors on the sides of boxes that are tried
SURFACE_COLUMNS = ["box_scale", "threshold", "score", "found", "false_alarms"]
N_THRESHOLDS = 200
BANDWIDTH = 0.2  # of the Gaussian kernel, in standard deviations of the images' log-odds; see bench/operating_point.py


class Calibration(NamedTuple):
    """The out-of-fold images that an operating point is chosen on."""

    predictions: pd.DataFrame
    truth: pd.DataFrame
    people: pd.Series  # patientId -> person


class Curves(NamedTuple):
    """Sums over the images of each person, smoothed over the thresholds."""

    found: Floats  # (people, thresholds) scores of the positive images
    false_alarms: Floats  # (people, thresholds) negative images with a box
    positives: Floats  # (people,) images
    negatives: Floats


def log_odds(confidence: Any) -> Floats:
    clipped = np.clip(np.asarray(confidence, dtype=float), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def make_grid(predictions: pd.DataFrame) -> tuple[Floats, Floats]:
    """Thresholds, evenly spaced in log-odds, and the kernel (thresholds, thresholds) that smooths over them."""
    boxes = predictions.dropna(subset=["confidence"])
    found, top = log_odds(boxes["confidence"]), log_odds(top_confidences(boxes))
    grid = np.linspace(found.min(initial=0.0), found.max(initial=0.0), N_THRESHOLDS)
    width = BANDWIDTH * max(float(top.std()) if len(top) else 0.0, 1e-9)
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2)
    return 1 / (1 + np.exp(-grid)), kernel / kernel.sum(axis=1, keepdims=True)


def person_curves(images: Calibration, thresholds: Floats, kernel: Floats) -> Curves:
    """What the boxes score for each person at each of the rising thresholds."""
    codes, names = pd.factorize(images.people)
    person = pd.Series(codes, index=images.people.index)
    steps = box_steps(images.truth, images.predictions)
    last = np.maximum(np.searchsorted(thresholds, steps["confidence"], side="right") - 1, 0)
    sums = np.zeros((2, len(names), len(thresholds)))
    for table, column in zip(sums, ("gain", "newly_counted"), strict=True):
        np.add.at(table, (person[steps["patientId"]].to_numpy(), last), steps[column].to_numpy())
    found, false_alarms = sums[..., ::-1].cumsum(axis=-1)[..., ::-1] @ kernel.T
    positive = images.people.index.isin(images.truth["patientId"])
    count = [np.bincount(codes, weights=kind, minlength=len(names)).astype(float) for kind in (positive, ~positive)]
    return Curves(found, false_alarms, *count)


def scores_at(found: Any, false_alarms: Any, prior: float) -> Any:
    """mAP of images of which the fraction `prior` is positive."""
    return prior * found / (prior + (1 - prior) * false_alarms)


def make_surface(images: Calibration, scales: Sequence[float]) -> pd.DataFrame:
    """Rows by rising scale and falling threshold; columns SURFACE_COLUMNS."""
    thresholds, _ = make_grid(images.predictions)
    parts = []
    for scale, curves in curves_by_scale(images, scales).items():
        n_positives, n_negatives = curves.positives.sum(), max(curves.negatives.sum(), 1)
        found, false_alarms = curves.found.sum(axis=0) / n_positives, curves.false_alarms.sum(axis=0) / n_negatives
        score = scores_at(found, false_alarms, n_positives / (n_positives + curves.negatives.sum()))
        rows = np.column_stack([np.full(N_THRESHOLDS, scale), thresholds, score, found, false_alarms])
        parts.append(pd.DataFrame(rows[::-1], columns=SURFACE_COLUMNS))  # of equals the highest threshold is taken
    return pd.concat(parts, ignore_index=True)


def curves_by_scale(images: Calibration, scales: Sequence[float]) -> dict[float, Curves]:
    """The curves of the boxes at each scale, at the thresholds of make_grid."""
    thresholds, kernel = make_grid(images.predictions)
    scaled = {scale: images._replace(predictions=with_scaled_boxes(images.predictions, scale)) for scale in scales}
    return {scale: person_curves(table, thresholds, kernel) for scale, table in scaled.items()}


def choose_point(
    images: Calibration, every: Calibration, box_scale: str, n_resamples: int, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The surface of score over box scale and threshold of `images`, and the choice on it for scores.json.

    every: all out-of-fold images, of which `images` are a part. Where they are the same and box_scale is a number, the
    threshold is the best one as it is: many images need no smoothing.
    """
    scales = SCALES if box_scale == "auto" else (float(box_scale),)
    surface = make_surface(images, sorted({*SCALES, *scales}))
    if box_scale == "auto":
        of_all = choose_on_surface(make_surface(every, scales), scales)
    else:
        of_all = best_point(every.predictions, every.truth, scales).threshold, scales[0]
    plain = box_scale != "auto" and len(images.people) == len(every.people)
    threshold, scale = of_all if plain else choose_on_surface(surface, scales)
    top = top_confidences(images.predictions)
    bins = count_bins(top, top.index.isin(images.truth["patientId"]))
    return surface, {
        "threshold": threshold,
        "box_scale": scale,
        "intervals": None if plain else choice_intervals(images, scales, n_resamples, seed),
        "of_all_images": {"threshold": of_all[0], "box_scale": of_all[1]},
        "images": len(top),
        "positives": sum(bins["positives"]),
        "bins": bins,
        "resampling": [n_resamples, seed],
    }


def choose_on_surface(
    surface: pd.DataFrame, scales: Sequence[float], prior: float | None = None
) -> tuple[float, float]:
    """Threshold and box scale, of `scales`, of the highest score; prior: that of the images to be submitted."""
    rows = surface[np.isclose(surface["box_scale"].to_numpy()[:, None], scales).any(axis=1)]
    score = rows["score"] if prior is None else scores_at(rows["found"], rows["false_alarms"], prior)
    best = rows.loc[score.idxmax()]
    return float(best["threshold"]), float(best["box_scale"])


def choice_intervals(
    images: Calibration, scales: Sequence[float], n_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the chosen threshold and box scale: the choice is made again on people drawn anew."""
    thresholds, _ = make_grid(images.predictions)
    n = images.people.nunique()
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    scores = []
    for curves in curves_by_scale(images, scales).values():
        counted = (draws @ curves.positives)[:, None] + draws @ curves.false_alarms
        scores.append(draws @ curves.found / np.maximum(counted, 1e-9))
    scale, place = np.divmod(np.concatenate(scores, axis=1).argmax(axis=1), len(thresholds))
    chosen = {"threshold": thresholds[place], "box_scale": np.asarray(scales)[scale]}
    spans = {name: np.quantile(values, MIDDLE) for name, values in chosen.items()}
    return {name: (float(low), float(high)) for name, (low, high) in spans.items()}
