"""95 % bootstrap intervals of mean image scores, resampling people: images of one person resemble each other."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.evaluation.metric import bootstrap_interval


def interval(scores: pd.Series, people: pd.Series, n_resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of image scores (index patientId); people: patientId -> person."""
    return bootstrap_interval(scores, people, n_resamples, seed)


def paired_interval(
    first: pd.Series, second: pd.Series, people: pd.Series, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """mAP of the first minus that of the second, with its 95 % interval, by resampling people for both at once.

    first, second: image scores by patientId, of the images that count for each: one without an opacity counts only
    where it got a box. people: patientId -> person, of all images that both have seen. NaN without an image.
    """
    people = people.sort_index()  # the same draws whoever asks
    person, _ = pd.factorize(people)
    n_people = person.max(initial=-1) + 1
    rows = pd.Series(person, index=people.index)
    totals = []
    for scores in (first, second):
        own = rows.reindex(scores.index).to_numpy(dtype=int)
        totals.append(np.bincount(own, scores.to_numpy(dtype=float), n_people))
        totals.append(np.bincount(own, minlength=n_people).astype(float))
    table = np.stack(totals, axis=1)  # (people, 4): sum and count of each run
    rng = np.random.default_rng(seed)
    sums = [table[rng.integers(0, n_people, n_people)].sum(axis=0) for _ in range(n_resamples)] if n_people else []
    means = ratio_difference(np.array([table.sum(axis=0), *sums]))
    if np.isnan(means[0]):
        return np.nan, np.nan, np.nan
    low, high = np.nanquantile(means[1:], [0.025, 0.975])
    return float(means[0]), float(low), float(high)


def ratio_difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) sum, count, sum, count -> (n,) difference of the two means; NaN where one has no image."""
    means = [
        np.divide(sums[:, k], sums[:, k + 1], out=np.full(len(sums), np.nan), where=sums[:, k + 1] > 0) for k in (0, 2)
    ]
    return np.asarray(means[0] - means[1])
