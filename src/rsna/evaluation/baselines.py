"""What needs no model: no boxes at all, or the median box of the training images."""

import pandas as pd

from rsna.data.competition import BOX_COLUMNS, largest_box
from rsna.evaluation.metric import mean_average_precision, of_images

BASELINES = ("no boxes", "median box on every image", "median box where the model puts one")


def median_boxes(truth: pd.DataFrame, fold_of: pd.Series) -> pd.DataFrame:
    """A prediction for each image of `fold_of` (index patientId): the median box of other folds, with confidence 1."""
    largest, parts = largest_box(truth), []
    for ids in fold_of.groupby(fold_of).groups.values():
        box = median_box(largest[~largest["patientId"].isin(ids)])
        parts.append(pd.DataFrame({"patientId": ids, "confidence": 1.0, **box}))
    return pd.concat(parts)


def median_box(boxes: pd.DataFrame) -> dict[str, float]:
    """The median x, y, width and height of the boxes on the side of the image that has more of them."""
    # the median of all boxes lies on the spine, between the lungs, and overlaps with none: too weak a baseline
    centre = boxes["x"] + boxes["width"] / 2
    right = centre > (centre.min() + centre.max()) / 2
    return boxes.loc[right == (right.mean() >= 0.5), BOX_COLUMNS].median().to_dict()


def baselines(all_truth: pd.DataFrame, fold_of: pd.Series, kept: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """mAP of what needs no model, given median_boxes(all_truth, fold_of) and the model's thresholded boxes `kept`."""
    boxes = median_boxes(all_truth, fold_of)
    tables = (boxes.iloc[:0], boxes, of_images(boxes, kept["patientId"]))
    return {name: mean_average_precision(truth, table) for name, table in zip(BASELINES, tables, strict=True)}
