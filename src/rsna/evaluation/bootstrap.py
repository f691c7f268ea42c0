"""95 % bootstrap intervals. People are resampled, not images: images of the same person are not independent."""

import numpy as np
import pandas as pd

from rsna.data.boxes import Floats

MIDDLE = (0.025, 0.975)  # the quantiles that bound the middle 95 %


def interval(scores: pd.Series, people: pd.Series, n_resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of `scores` (index patientId, not empty); people: patientId -> person."""
    by_person = scores.groupby(people.reindex(scores.index).to_numpy()).agg(["sum", "count"])
    low, high = np.nanquantile(resampled_means(by_person.to_numpy(dtype=float).T, n_resamples, seed), MIDDLE)
    return float(low), float(high)


def paired_interval(
    first: pd.Series, second: pd.Series, people: pd.Series, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean of `first` minus mean of `second`, and the low and high end of its 95 % interval.

    first, second: the image scores of two runs, index patientId; the images may differ, as an image without an opacity
    counts only in a run that gives it a box. people: patientId -> person, of all images that both runs predicted. Each
    resample draws the same people for both. All NaN if one of the runs has no scores.
    """
    if first.empty or second.empty:
        return np.nan, np.nan, np.nan
    people = people.sort_index()  # so that the draws do not depend on the order of the rows
    codes, names = pd.factorize(people)
    person = pd.Series(codes, index=people.index)
    sums = []
    for scores in (first, second):
        rows = person[scores.index]
        sums += [np.bincount(rows, scores.to_numpy(dtype=float), len(names)), np.bincount(rows, minlength=len(names))]
    by_person = np.array(sums, dtype=float).reshape(2, 2, -1)
    first_means, second_means = resampled_means(by_person, n_resamples, seed).T
    low, high = np.nanquantile(first_means - second_means, MIDDLE)
    (total, count), (other_total, other_count) = by_person.sum(axis=-1)
    return float(total / count - other_total / other_count), float(low), float(high)


def resampled_means(by_person: Floats, n_resamples: int, seed: int) -> Floats:
    """The mean score in each resample of people: (..., 2, people) -> (n_resamples, ...); NaN where none has a score.

    by_person: the sum and the number of each person's scores.
    """
    rng = np.random.default_rng(seed)
    n_people = by_person.shape[-1]
    draws = (rng.integers(0, n_people, n_people) for _ in range(n_resamples))
    times = (np.bincount(people, minlength=n_people) for people in draws)  # how often each person was drawn
    totals = np.stack([(by_person * drawn).sum(axis=-1) for drawn in times])
    total, count = totals[..., 0], totals[..., 1]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
