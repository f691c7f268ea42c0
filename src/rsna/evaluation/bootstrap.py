"""95 % intervals by resampling people: images of one person resemble each other, so images are no independent draws."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def interval(scores: pd.Series, people: pd.Series, n_resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean image score.

    scores: index patientId, the images that count, at least one; people: index patientId -> person.
    """
    by_person = scores.groupby(people.reindex(scores.index).to_numpy()).agg(["sum", "count"])
    return percentiles(mean(resample(by_person.to_numpy(dtype=float).T, n_resamples, seed)))


def paired_interval(
    first: pd.Series, second: pd.Series, people: pd.Series, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean of the first minus mean of the second, and its 95 % interval, resampling people for both at once.

    first, second: image scores by patientId, of the images that count for each: one without an opacity counts only
    where it got a box. people: patientId -> person, of all images that both have seen. NaN without an image.
    """
    if first.empty or second.empty:
        return np.nan, np.nan, np.nan
    people = people.sort_index()  # the same draws whichever run comes first
    codes, names = pd.factorize(people)
    person = pd.Series(codes, index=people.index)
    sums = []
    for scores in (first, second):
        own = person[scores.index]
        sums += [np.bincount(own, scores.to_numpy(dtype=float), len(names)), np.bincount(own, minlength=len(names))]
    by_person = np.array(sums, dtype=float)
    drawn = resample(by_person, n_resamples, seed)
    totals = by_person.sum(axis=1, keepdims=True)
    difference = mean(totals[:2]) - mean(totals[2:])
    return float(difference[0]), *percentiles(mean(drawn[:2]) - mean(drawn[2:]))


def resample(by_person: Floats, n_resamples: int, seed: int) -> Floats:
    """(k, people) numbers of each person -> (k, n_resamples) their totals over people drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_people = by_person.shape[1]
    draws = (rng.integers(0, n_people, n_people) for _ in range(n_resamples))
    return np.stack([by_person.take(people, axis=1).sum(axis=1) for people in draws], axis=1)


def mean(totals: Floats) -> Floats:
    """(2, n) sum and count of scores -> (n,) their mean; NaN for a resample in which no image counts."""
    total, count = totals
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def percentiles(distribution: Floats) -> tuple[float, float]:
    """The middle 95 %, of the resamples in which some image counts."""
    low, high = np.nanquantile(distribution, [0.025, 0.975])
    return float(low), float(high)
