"""The fraction of positive images: its effect on the score, and its estimate for the test images."""

from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.boxes import Floats
from rsna.evaluation.bootstrap import MIDDLE
from rsna.evaluation.metric import top_confidences

N_BINS = 10
EM_STEPS = 300


def mean_score(found: Any, false_alarms: Any, prior: Any) -> Any:
    """The mAP of images of which the fraction `prior` is positive.

    found: mean score of the positive images; false_alarms: fraction of the negative images that have a box. Both may be
    curves measured on images with another prior.
    """
    return prior * found / (prior + (1 - prior) * false_alarms)


def count_bins(top: pd.Series, positive: NDArray[np.bool_]) -> dict[str, list[float]]:
    """Positive and negative images in bins of their highest confidence, at quantiles of the ones and of the others."""
    values, levels = top.to_numpy(dtype=float), np.arange(1, N_BINS, 2) / N_BINS
    kinds = {"positives": values[positive], "negatives": values[~positive]}
    edges = np.unique([np.quantile(kind, levels) for kind in kinds.values() if len(kind)])
    places = {name: np.searchsorted(edges, kind, side="right") for name, kind in kinds.items()}
    counts = {name: np.bincount(place, minlength=len(edges) + 1).tolist() for name, place in places.items()}
    return {"edges": edges.tolist(), **counts}


def em_prior(probability: Floats, share: Floats, weights: Floats) -> Floats:
    """(...,) the fraction of positives among images, by expectation maximisation.

    probability: (..., n) calibrated on a set with the fraction `share` (...,); weights: (..., n), their sums are 1.
    Saerens, Latinne and Decaestecker, Neural Computation 14 (2002).
    """
    odds = probability / (1 - probability) * ((1 - share) / share)[..., None]
    prior = share
    for _ in range(EM_STEPS):
        joint = prior[..., None] * odds
        prior = (weights * joint / (joint + 1 - prior[..., None])).sum(axis=-1)
    return prior


def estimate_prior(bins: dict[str, Any], by_fold: pd.DataFrame, n_resamples: int, seed: int) -> list[float]:
    """The fraction of positives among the test images, and its 95 % interval, resampling them and the bins' images.

    bins: of count_bins, out of fold; by_fold: test_by_fold.csv, whose confidences compare with those out of fold.
    """
    tops = pd.concat([top_confidences(table) for _, table in by_fold.groupby("fold")], axis=1).to_numpy(dtype=float)
    place = np.searchsorted(bins["edges"], tops, side="right")
    images = np.stack([(place == k).mean(axis=1) for k in range(len(bins["edges"]) + 1)], axis=1)
    images, alike = np.unique(images, axis=0, return_counts=True)  # a few thousand, however many images there are
    rng, n = np.random.default_rng(seed), int(alike.sum())
    draws = (rng.multinomial(n, alike / n) for _ in range(n_resamples))  # not all of them in memory
    weights = np.stack([drawn @ images for drawn in chain([alike], draws)]) / n
    counts = [np.asarray(bins[name], dtype=float) for name in ("positives", "negatives")]
    drawn = [np.vstack([c, rng.multinomial(int(c.sum()), c / max(c.sum(), 1), n_resamples)]) + 0.5 for c in counts]
    positives, negatives = drawn  # half an image more in each bin: no probability is 0 or 1
    share = positives.sum(axis=1) / (positives + negatives).sum(axis=1)
    prior = em_prior(positives / (positives + negatives), share, weights)
    return [float(prior[0]), *np.quantile(prior[1:], MIDDLE).tolist()]
