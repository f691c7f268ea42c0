"""95 % intervals by resampling people: images of one person resemble each other, so images are no independent draws."""

import numpy as np
import pandas as pd

from rsna.data.boxes import Floats

MIDDLE = (0.025, 0.975)  # the quantiles that 95 % lie between


def interval(scores: pd.Series, people: pd.Series, n_resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of `scores`, by patientId (at least one); people: patientId -> person of each image."""
    by_person = scores.groupby(people.reindex(scores.index).to_numpy()).agg(["sum", "count"])
    low, high = np.nanquantile(resampled_means(by_person.to_numpy(dtype=float).T, n_resamples, seed), MIDDLE)
    return float(low), float(high)


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
    by_person = np.array(sums, dtype=float).reshape(2, 2, -1)
    first_means, second_means = resampled_means(by_person, n_resamples, seed).T
    low, high = np.nanquantile(first_means - second_means, MIDDLE)
    (total, count), (other_total, other_count) = by_person.sum(axis=-1)
    return float(total / count - other_total / other_count), float(low), float(high)


def resampled_means(by_person: Floats, n_resamples: int, seed: int) -> Floats:
    """(..., 2, people) sum, count of each person's scores -> (n_resamples, ...) means; NaN where no image counts."""
    rng = np.random.default_rng(seed)
    n_people = by_person.shape[-1]
    draws = (rng.integers(0, n_people, n_people) for _ in range(n_resamples))
    times = (np.bincount(people, minlength=n_people) for people in draws)  # how often each person was drawn
    totals = np.stack([(by_person * drawn).sum(axis=-1) for drawn in times])
    total, count = totals[..., 0], totals[..., 1]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
