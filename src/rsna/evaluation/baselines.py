"""Predictions that need no model, to compare with on the same images."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, largest_box
from rsna.evaluation.metric import mean_average_precision, of_images


def median_boxes(truth: pd.DataFrame, ids: Sequence[str], groups: Sequence[Any] | None = None) -> pd.DataFrame:
    """A prediction for each of `ids`: the median box of the side with more boxes in `truth`, with confidence 1.

    groups: fold of each id; then the median is taken over the images of the other folds.
    """
    largest = largest_box(truth)
    table = pd.DataFrame({"patientId": list(ids), "confidence": 1.0, "group": 0 if groups is None else list(groups)})
    parts = []
    for _, rows in table.groupby("group"):
        others = largest if groups is None else largest[~largest["patientId"].isin(rows["patientId"])]
        parts.append(rows.assign(**median_box(others)))
    return pd.concat(parts)[PREDICTION_COLUMNS]


def median_box(boxes: pd.DataFrame) -> dict[str, float]:
    """The median x, y, width and height of the boxes on the side of the image that has more of them.

    The median of all boxes lies on the spine, between the lungs, and overlaps with none: too weak a baseline.
    """
    centre = boxes["x"] + boxes["width"] / 2
    right = centre > (centre.min() + centre.max()) / 2
    return boxes.loc[right == (right.mean() >= 0.5), BOX_COLUMNS].median().to_dict()


def baselines(boxes: pd.DataFrame, kept: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """mAP of what needs no model: `boxes` is one median box per image, `kept` the model's thresholded boxes."""
    return {
        "no boxes": mean_average_precision(truth, boxes.iloc[:0]),
        "median box on every image": mean_average_precision(truth, boxes),
        "median box where the model puts one": mean_average_precision(truth, of_images(boxes, kept["patientId"])),
    }
