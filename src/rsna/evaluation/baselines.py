"""Baselines that need no model: no boxes at all, or the median box of the training images."""

import pandas as pd

from rsna.data.competition import BOX_COLUMNS, largest_box
from rsna.evaluation.metric import mean_average_precision, of_images

BASELINES = ("no boxes", "median box on every image", "median box where the model puts one")


def median_boxes(truth: pd.DataFrame, fold_of: pd.Series) -> pd.DataFrame:
    """One box for each image of `fold_of` (patientId -> fold): the median box of all images outside its fold.

    Boxes xywh in original pixels, confidence 1.
    """
    largest, parts = largest_box(truth), []
    for ids in fold_of.groupby(fold_of).groups.values():
        box = median_box(largest[~largest["patientId"].isin(ids)])
        parts.append(pd.DataFrame({"patientId": ids, "confidence": 1.0, **box}))
    return pd.concat(parts)


def median_box(boxes: pd.DataFrame) -> dict[str, float]:
    """The median x, y, width and height of the boxes in the half of the image (left or right) that has more of them."""
    # the median of all boxes would lie on the spine, between the lungs, and overlap with no box: too weak a baseline
    centre = boxes["x"] + boxes["width"] / 2
    right = centre > (centre.min() + centre.max()) / 2
    return boxes.loc[right == (right.mean() >= 0.5), BOX_COLUMNS].median().to_dict()


def baselines(all_truth: pd.DataFrame, fold_of: pd.Series, kept: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """The mAP of each of BASELINES on `truth`, the true boxes of the images in fold_of.

    all_truth: true boxes of all training images, see median_boxes; kept: the model's boxes above the threshold.
    """
    boxes = median_boxes(all_truth, fold_of)
    tables = (boxes.iloc[:0], boxes, of_images(boxes, kept["patientId"]))
    return {name: mean_average_precision(truth, table) for name, table in zip(BASELINES, tables, strict=True)}
