"""Kaggle's format: one row per image, with its boxes in one string, `confidence x y width height` for each."""

from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.errors import UserError
from rsna.core.tables import LARGEST, line_number, read_table
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, refuse_rows, with_empty_rows

SUBMISSION_COLUMNS = ["patientId", "PredictionString"]
SMALLEST_CONFIDENCE = 0.0001  # the smallest with four decimals; Kaggle requires a confidence above 0


def format_submission(predictions: pd.DataFrame, ids: list[str], shapes: pd.DataFrame) -> pd.DataFrame:
    """Thresholded predictions -> SUBMISSION_COLUMNS, in the order of `ids`; boxes are clipped by keep_inside.

    shapes: index patientId, columns rows, cols of the original images. Raises UserError for an image not in `ids`.
    """
    unknown = set(predictions["patientId"]) - set(ids)
    if unknown:
        raise UserError(f"{len(unknown)} predicted images are not in the sample submission, such as {min(unknown)}")
    inside = keep_inside(predictions, shapes)
    words = inside["confidence"].clip(SMALLEST_CONFIDENCE, 1).map("{:.4f}".format).astype(object)
    for column in BOX_COLUMNS:
        words = words + " " + inside[column].map("{:.1f}".format).astype(object)
    strings = words.groupby(inside["patientId"], sort=False).agg(" ".join)
    return pd.DataFrame({"patientId": ids, "PredictionString": [strings.get(name, "") for name in ids]})


def keep_inside(predictions: pd.DataFrame, shapes: pd.DataFrame) -> pd.DataFrame:
    """The predictions with boxes rounded to 0.1 px, clipped to the image, and at least 1 px wide and high."""
    size = shapes.reindex(predictions["patientId"])[["cols", "rows"]].to_numpy(dtype=float)
    xywh = predictions[BOX_COLUMNS].to_numpy(dtype=float)
    low = np.round(np.clip(xywh[:, :2], 0, np.maximum(size - 1, 0)), 1)
    high = np.round(np.clip(xywh[:, :2] + xywh[:, 2:], low + 1, size), 1)
    return predictions.assign(**dict(zip(BOX_COLUMNS, np.hstack([low, high - low]).T, strict=True)))


def parse_submission(path: Path) -> pd.DataFrame:
    """Read a submission as PREDICTION_COLUMNS; an image without a box has a row of NaN. UserError for a bad line."""
    table = read_table(path, SUBMISSION_COLUMNS)
    ids = table["patientId"]
    refuse_rows(path, ids, {"the patientId was there before": ids.duplicated()}, "each image has one row")
    strings = table["PredictionString"].astype(object).where(table["PredictionString"].notna(), "").astype(str)
    rows = []
    for row, (name, text) in enumerate(zip(ids, strings, strict=True)):
        try:
            # float() accepts 1_000, Kaggle does not
            numbers = np.array([float(word.replace("_", "?")) for word in text.split()]).reshape(-1, 5)
            confident = (numbers[:, 0] > 0) & (numbers[:, 0] <= 1)
            good = confident & (numbers[:, 3:] > 0).all(axis=1) & (np.abs(numbers) <= LARGEST).all(axis=1)
            problem = "" if good.all() else "confidence not in (0, 1], or a box without area"
        except ValueError:
            problem = "not 'confidence x y width height', repeated"
        if problem:
            raise UserError(f"{path}, line {line_number(path, row)} ({name}): {problem}")
        rows += [(name, *box) for box in numbers]
    return with_empty_rows(pd.DataFrame(rows, columns=PREDICTION_COLUMNS), ids.tolist())


def check_submission(path: Path, ids: list[str], shapes: pd.DataFrame) -> pd.DataFrame:
    """Read a submission, see parse_submission. Raises UserError if Kaggle would reject it, or a box is implausible."""
    table = parse_submission(path)
    found = table["patientId"].drop_duplicates().tolist()
    if found != ids:
        unlike = f"({len(set(ids) - set(found))} missing, {len(set(found) - set(ids))} extra)"
        raise UserError(f"{path}: not the images of the sample submission in its order {unlike}")
    boxes = table.dropna(subset=["confidence"])
    size = shapes.reindex(boxes["patientId"])[["cols", "rows"]].to_numpy(dtype=float)
    xywh = boxes[BOX_COLUMNS].to_numpy(dtype=float)
    outside = (xywh[:, :2] < 0).any(axis=1) | (xywh[:, :2] + xywh[:, 2:] > size + 0.05).any(axis=1)
    wrong = outside | (xywh[:, 2:] < 1).any(axis=1) | np.isnan(size).any(axis=1)
    if wrong.any():
        name = boxes["patientId"].to_numpy()[wrong][0]
        raise UserError(f"{path}: a box of {name} leaves its image, or is under 1 px, or the image's size is not known")
    return table
