"""The fraction of positive images among the test images, estimated from their own confidences."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.evaluation.bootstrap import MIDDLE
from rsna.evaluation.metric import top_confidences

Floats = NDArray[np.float64]
N_BINS = 10
EM_STEPS = 300  # from .2 to .5 the estimate moves by less than 1e-4 after that where the AUC is .8 or more


def count_bins(top: pd.Series, positive: NDArray[np.bool_]) -> dict[str, list[float]]:
    """How many positive and negative images have their highest confidence in each of at most N_BINS bins.

    Half of the edges are quantiles of the positives, half of the negatives: both kinds are told apart finely.
    """
    values, levels = top.to_numpy(dtype=float), np.arange(1, N_BINS, 2) / N_BINS
    edges = np.unique([np.quantile(kind, levels) for kind in (values[positive], values[~positive]) if len(kind)])
    place, n = np.searchsorted(edges, values, side="right"), len(edges) + 1
    counts = {
        "positives": np.bincount(place[positive], minlength=n),
        "negatives": np.bincount(place[~positive], minlength=n),
    }
    return {"edges": edges.tolist(), **{name: count.tolist() for name, count in counts.items()}}


def em_prior(probability: Floats, share: Floats | float, weights: Floats) -> Floats:
    """The fraction of positives among images whose calibrated probabilities come from a set with another fraction.

    probability: (..., n) of an opacity where a fraction `share` is positive; weights: (..., n), their sums are 1.
    Expectation maximisation: Saerens, Latinne and Decaestecker, Neural Computation 14 (2002).
    """
    odds = probability / (1 - probability) * ((1 - np.asarray(share)) / share)[..., None]
    prior = np.asarray(share, dtype=float)
    for _ in range(EM_STEPS):
        joint = prior[..., None] * odds
        prior = (weights * joint / (joint + 1 - prior[..., None])).sum(axis=-1)
    return prior


def estimate_prior(
    bins: dict[str, Any], by_fold: pd.DataFrame, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """The fraction of positives among the test images and its 95 % interval, resampling them and the counts.

    bins: of count_bins, out of fold; by_fold: each fold's predictions of the test images, with a column fold, whose
    confidences compare with those out of fold.
    """
    tops = pd.concat([top_confidences(table) for _, table in by_fold.groupby("fold")], axis=1).to_numpy(dtype=float)
    place = np.searchsorted(bins["edges"], tops, side="right")
    images = np.stack([(place == k).mean(axis=1) for k in range(len(bins["edges"]) + 1)], axis=1)
    rng, n = np.random.default_rng(seed), len(images)
    draws = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), n_resamples)])
    counts = [np.asarray(bins[name], dtype=float) for name in ("positives", "negatives")]
    drawn = [np.vstack([c, rng.multinomial(int(c.sum()), c / max(c.sum(), 1), n_resamples)]) + 0.5 for c in counts]
    positives, negatives = drawn  # half an image more in each bin: no probability is 0 or 1
    share = positives.sum(axis=1) / (positives + negatives).sum(axis=1)
    prior = em_prior(positives / (positives + negatives), share, draws @ images / n)
    low, high = np.quantile(prior[1:], MIDDLE)
    return float(prior[0]), float(low), float(high)
