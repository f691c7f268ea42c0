"""Subgroups of images and their scores: by view position, sex, age, box size and side."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from rsna.data.boxes import Floats, xywh_to_xyxy
from rsna.data.competition import AGE_BANDS, BOX_COLUMNS, largest_box
from rsna.data.letterbox import GEOMETRY_COLUMNS, original_to_cached
from rsna.evaluation.bootstrap import interval
from rsna.evaluation.metric import of_images
from rsna.evaluation.scores import auc_of_images

UNKNOWN = "other or unknown"


def groups_of_images(folds: pd.DataFrame, truth: pd.DataFrame, geometry: pd.DataFrame, size: int) -> pd.DataFrame:
    """View position, sex, age, box size and side of each image, as categories; index patientId, as in `folds`.

    DICOM headers may hold anything: a value that is not documented becomes UNKNOWN. Box size and side are missing for
    images without a box. truth: true boxes; geometry, size: see to_relative.
    """
    known = of_images(truth, geometry.index)
    largest = largest_box(known)
    xyxy = to_relative(largest, geometry, size)
    area = pd.Series((xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1), index=largest["patientId"])
    bands = [f"{low} to {high - 1}" for low, high in pairwise(AGE_BANDS)]
    years = pd.to_numeric(folds["age"], errors="coerce").astype(float)
    ages = pd.cut(years, AGE_BANDS, right=False, labels=bands)
    return pd.DataFrame(
        {
            "view": one_of(folds["view"], ["AP", "PA"]),
            "sex": one_of(folds["sex"], ["F", "M"]),
            "age": ages.cat.add_categories(UNKNOWN).fillna(UNKNOWN),
            "box size": thirds(area).reindex(folds.index),
            "side": sides(known, geometry, size).reindex(folds.index),
        },
        index=folds.index,
    )


def one_of(values: pd.Series, known: Sequence[str]) -> pd.Series:
    """The values as a category: those in `known`, in this order, and UNKNOWN for all others."""
    text = values.astype(object).where(values.isin(known), UNKNOWN)
    return text.astype(pd.CategoricalDtype([*known, UNKNOWN]))


def thirds(area: pd.Series) -> pd.Series:
    """Split boxes into small, middle and large thirds, as a category with the bounds in its names.

    area: the fraction of the image that each box covers.
    """
    if area.empty:
        return pd.Series(dtype=object)
    low, high = area.quantile([1 / 3, 2 / 3])
    names = pd.Index([f"small, to {low:.1%}", f"middle, to {high:.1%}", f"large, above {high:.1%}"])
    third = np.digitize(area, [low, high], right=True)
    return pd.Series(pd.Categorical.from_codes(third.tolist(), names), index=area.index)


def sides(boxes: pd.DataFrame, geometry: pd.DataFrame, size: int) -> pd.Series:
    """Whether the centres of an image's boxes lie in the left half, the right half or both; index patientId.

    boxes: only of images that are in `geometry`; geometry, size: see to_relative.
    """
    xyxy = to_relative(boxes, geometry, size)
    share = pd.Series((xyxy[:, 0] + xyxy[:, 2]) / 2 >= 0.5).groupby(boxes["patientId"].to_numpy()).mean()
    side = np.select([share == 0, share == 1], [0, 1], 2)
    names = pd.Index(["image left only", "image right only", "both sides"])
    return pd.Series(pd.Categorical.from_codes(side.tolist(), names), index=share.index)


def scores_by_group(groups: pd.DataFrame, images: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row per column and value of `groups` (index patientId): counts, AUC, and mAP with its 95 % interval.

    images: index patientId, columns score (NaN for an image that does not count), top (highest confidence), positive,
    with_box and person. Columns of the result: group, value, images, positives, with_box, AUC, mAP, low, high. mAP is
    NaN if no image of the group counts, low and high are NaN if they all belong to one person.
    """
    rows = []
    for column in map(str, groups):
        for value, ids in groups.groupby(column, observed=True).groups.items():
            part, scores = images.loc[ids], images.loc[ids, "score"].dropna()
            people = part.loc[scores.index, "person"]
            row = {"group": column, "value": str(value), "images": len(part), "positives": int(part["positive"].sum())}
            row |= {"with_box": part["with_box"].mean(), "AUC": auc_of_images(part["top"], part["positive"].to_numpy())}
            low, high = interval(scores, people, n_resamples, seed) if people.nunique() > 1 else (np.nan, np.nan)
            rows.append(row | {"mAP": scores.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def to_relative(boxes: pd.DataFrame, geometry: pd.DataFrame, size: int) -> Floats:
    """Boxes xywh in original pixels -> (n, 4) xyxy in [0, 1] of the cached square image.

    geometry: index patientId, GEOMETRY_COLUMNS; size: side of the cached images, pixels. Boxes of images that are not
    in `geometry` are left out.
    """
    known = of_images(boxes, geometry.index)
    mapping = geometry.loc[known["patientId"], GEOMETRY_COLUMNS].to_numpy(dtype=float)
    return np.clip(original_to_cached(xywh_to_xyxy(known[BOX_COLUMNS].to_numpy(dtype=float)), mapping) / size, 0, 1)
