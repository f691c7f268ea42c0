"""95 % intervals by resampling people: images of one person resemble each other, so images are no independent draws."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BATCH = 50  # resamples at once: 26,684 people x 50 x 5 arrays of 8 bytes are 53 MB


def interval(scores: pd.Series, people: pd.Series, n_resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean image score.

    scores: index patientId, the images that count; people: index patientId -> person.
    """
    by_person = scores.groupby(people.reindex(scores.index).to_numpy()).agg(["sum", "count"])
    sums = [by_person["sum"].to_numpy(dtype=float), by_person["count"].to_numpy(dtype=float)]
    return percentiles(resample(sums, ratio, n_resamples, seed))


def paired_interval(
    first: pd.Series, second: pd.Series, people: pd.Series, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean of the first minus mean of the second, and its 95 % interval, resampling people for both at once.

    first, second: image scores by patientId, of the images that count for each: one without an opacity counts only
    where it got a box. people: patientId -> person, of all images that both have seen. NaN without an image.
    """
    people = people.sort_index()  # the same draws whichever run comes first
    person, _ = pd.factorize(people)
    rows = pd.Series(person, index=people.index)
    n_people = int(person.max(initial=-1)) + 1
    sums: list[Floats] = []
    for scores in (first, second):
        own = rows.reindex(scores.index).to_numpy(dtype=int)
        sums.append(np.bincount(own, scores.to_numpy(dtype=float), n_people).astype(np.float64))
        sums.append(np.bincount(own, minlength=n_people).astype(np.float64))
    difference = float(ratio_difference(np.array([values.sum() for values in sums])))
    if np.isnan(difference):
        return np.nan, np.nan, np.nan
    return difference, *percentiles(resample(sums, ratio_difference, n_resamples, seed))


def resample(sums: list[Floats], statistic: Callable[[Floats], Floats], n_resamples: int, seed: int) -> Floats:
    """(n_resamples,) the statistic of people drawn with replacement.

    sums: k arrays of one number per person; statistic: (..., k) their totals -> (...).
    """

    def of_people(*drawn: Floats, axis: int = -1) -> Floats:
        return statistic(np.stack([values.sum(axis=axis) for values in drawn], axis=-1))

    if len(sums[0]) < 2:  # SciPy refuses what has nothing to resample
        return np.atleast_1d(of_people(*sums))
    from scipy.stats import bootstrap  # half a second to import

    result = bootstrap(
        sums,
        of_people,
        n_resamples=n_resamples,
        batch=BATCH,
        vectorized=True,
        paired=True,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return np.asarray(result.bootstrap_distribution)


def ratio(totals: Floats) -> Floats:
    """(..., 2) sum and count of scores -> (...) their mean; NaN where there is none."""
    total, count = totals[..., 0], totals[..., 1]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def ratio_difference(totals: Floats) -> Floats:
    """(..., 4) sum, count, sum, count -> (...) difference of the two means; NaN where one has no image."""
    return ratio(totals[..., :2]) - ratio(totals[..., 2:])


def percentiles(distribution: Floats) -> tuple[float, float]:
    """The middle 95 %, of the resamples in which some image counts."""
    low, high = np.nanquantile(distribution, [0.025, 0.975])
    return float(low), float(high)
