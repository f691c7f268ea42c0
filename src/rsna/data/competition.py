"""Read and check the competition's files and tables of the same kind: their names and columns."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.errors import UserError
from rsna.core.tables import as_numbers, line_number, read_table

LABELS_CSV = "stage_2_train_labels.csv"
CLASSES_CSV = "stage_2_detailed_class_info.csv"
SAMPLE_CSV = "stage_2_sample_submission.csv"
MAPPING_JSON = "pneumonia-challenge-dataset-mappings_2018.json"
HEADERS_CSV = "dicom_headers.csv"
TRAIN_IMAGES = "stage_2_train_images"
TEST_IMAGES = "stage_2_test_images"

BOX_COLUMNS = ["x", "y", "width", "height"]
LABEL_COLUMNS = ["patientId", *BOX_COLUMNS, "Target"]
HEADER_COLUMNS = ["patientId", "PatientAge", "PatientSex", "ViewPosition"]
FOLD_COLUMNS = ["patientId", "fold", "target", "n_boxes", "class", "view", "sex", "age", "group"]
PREDICTION_COLUMNS = ["patientId", "confidence", *BOX_COLUMNS]
CLASSES = ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]
AGE_BANDS = [0, 20, 40, 60, 80, 120]  # years; a higher age in a header (155 occurs) counts as unknown

HOW_TO_GET = (
    "unzip Kaggle's files there (kaggle competitions download -c rsna-pneumonia-detection-challenge), "
    "or set input=<folder>; ./run.sh demo needs none of it"
)


def read_labels(path: Path) -> pd.DataFrame:
    """Read LABEL_COLUMNS: one row per box (xywh, original pixels) or negative image (NaN). UserError for a bad row."""
    labels = read_table(path, LABEL_COLUMNS, source=HOW_TO_GET)[LABEL_COLUMNS]
    fields = labels[LABEL_COLUMNS[1:]]
    numbers = as_numbers(fields)
    parsed = labels.assign(**numbers)
    filled = parsed[BOX_COLUMNS].notna()
    outside = (parsed[["x", "y"]] < 0).any(axis=1) | (parsed[["width", "height"]] <= 0).any(axis=1)
    by_image = parsed.groupby("patientId", sort=False)
    problems = {
        "a field is not a number, or too large": (numbers.isna() & fields.notna()).any(axis=1),
        "Target is neither 0 nor 1": ~parsed["Target"].isin([0, 1]),
        "a positive needs x, y, width and height": (parsed["Target"] == 1) & ~filled.all(axis=1),
        "a negative has a box": (parsed["Target"] == 0) & filled.any(axis=1),
        "the box is empty or starts outside the image": outside,
        "the image is both positive and negative": by_image["Target"].transform("nunique") > 1,
        "the row is there twice": parsed.duplicated(),
    }
    refuse_rows(path, labels["patientId"], problems, "fix or remove them")
    if labels.empty:
        raise UserError(f"{path}: no rows; fetch the file again")
    return parsed.astype({"Target": int})


def truth_boxes(labels: pd.DataFrame) -> pd.DataFrame:
    """The true boxes in `labels`: patientId, x, y, width, height in original pixels."""
    return labels.loc[labels["Target"] == 1, ["patientId", *BOX_COLUMNS]].reset_index(drop=True)


def read_truth(folder: Path) -> pd.DataFrame:
    """The true boxes of the training images, see truth_boxes; folder: input=. Raises UserError as read_labels does."""
    return truth_boxes(read_labels(folder / LABELS_CSV))


def largest_box(truth: pd.DataFrame) -> pd.DataFrame:
    """The largest box by area of each image that has boxes (the first if tied): one row per patientId."""
    area = truth["width"] * truth["height"]
    order = area.sort_values(ascending=False, kind="stable").index
    return truth.loc[order].drop_duplicates("patientId").sort_index().reset_index(drop=True)


def read_classes(folder: Path) -> pd.Series | None:
    """patientId -> one of CLASSES; None if there is no such file. Raises UserError for an unknown or a second class."""
    path, columns = folder / CLASSES_CSV, ["patientId", "class"]
    if not path.is_file():
        return None
    table = read_table(path, columns).drop_duplicates(columns)
    unknown = table[~table["class"].isin(CLASSES)]
    if len(unknown):
        name, found = unknown.iloc[0][columns]
        raise UserError(f"{path}: patientId {name}: unknown class '{found}'; known: {CLASSES}")
    doubled = table.loc[table["patientId"].duplicated(), "patientId"]
    if len(doubled):
        raise UserError(f"{path}: patientId {doubled.iloc[0]} has two classes; remove one")
    return table.set_index("patientId")["class"]


def read_people(folder: Path) -> pd.Series | None:
    """patientId -> patient (the first 8 digits of the NIH image name); None if there is no mapping file.

    Raises UserError if the file is broken or assigns two patients to an image.
    """
    path = folder / MAPPING_JSON
    if not path.is_file():
        return None
    try:
        pairs = [(row["subset_img_id"], row["img_id"][:8]) for row in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"expected a list of objects with subset_img_id and img_id ({error!r})"
        raise UserError(f"{path}: {problem}; fetch it again or remove it") from None
    people = pd.DataFrame(pairs, columns=["id", "patient"], dtype=str).drop_duplicates().set_index("id")["patient"]
    if people.index.has_duplicates:
        name = people.index[people.index.duplicated()][0]
        raise UserError(f"{path}: image {name} has two patients; fetch it again or remove it")
    return people


def people_of_images(folder: Path, ids: pd.Series) -> pd.Series:
    """patientId -> person, of these patientIds; one that is not in the mapping counts as a person of its own."""
    alone, people = ids.set_axis(ids), read_people(folder)
    return alone if people is None else people.reindex(ids).fillna(alone)


def read_folds(path: Path, rebuild: str) -> pd.DataFrame:
    """Read FOLD_COLUMNS; fold, target, n_boxes are int, age is float or NaN. Raises UserError for a bad row."""
    table = read_table(path, FOLD_COLUMNS, rebuild)[FOLD_COLUMNS]
    numbers = as_numbers(table[["fold", "target", "n_boxes", "age"]])
    whole = numbers.drop(columns="age")
    problems = {
        "the patientId was there before": table["patientId"].duplicated(),
        "fold is not 0, 1, 2 ...": ~(whole["fold"] >= 0) | (whole["fold"] % 1 != 0),
        "target is neither 0 nor 1": ~whole["target"].isin([0, 1]),
        "n_boxes does not fit target": ~(whole["n_boxes"] >= 0) | ((whole["n_boxes"] > 0) != whole["target"]),
        "age is not a number": numbers["age"].isna() & table["age"].notna(),
        "group is empty": table["group"].isna(),
    }
    refuse_rows(path, table["patientId"], problems, f"fix it, or delete it and run: {rebuild}")
    return table.assign(age=numbers["age"], **whole.astype(int))


def refuse_rows(path: Path, ids: pd.Series, problems: dict[str, pd.Series], remedy: str) -> None:
    """Raise UserError if a row has an empty patientId, or for the first of the problems that any row has.

    problems: description -> which rows have it. The message names the file, the first line and how many rows.
    """
    for problem, rows in {"patientId is empty": ids.isna(), **problems}.items():
        if rows.any():
            first = int(np.flatnonzero(rows)[0])
            name = f"{path}, line {line_number(path, first)} (patientId {ids.iloc[first]})"
            raise UserError(f"{name}: {problem}; {int(rows.sum())} such row(s); {remedy}")


def read_predictions(path: Path, rebuild: str = "", more: Sequence[str] = ()) -> pd.DataFrame:
    """Read PREDICTION_COLUMNS and the columns `more`; an image without a box has a row of NaN.

    Raises UserError for a bad row. rebuild: the command that makes the file.
    """
    table = read_table(path, [*PREDICTION_COLUMNS, *more], rebuild)
    fields = table[PREDICTION_COLUMNS[1:]]
    numbers = as_numbers(fields)
    filled = numbers.notna()
    problems = {
        "a field is not a number, or too large": (~filled & fields.notna()).any(axis=1),
        "a box needs confidence, x, y, width and height": filled.any(axis=1) & ~filled.all(axis=1),
        "the confidence is not from 0 to 1": ~numbers["confidence"].fillna(0).between(0, 1),
        "the box has no area": (numbers[["width", "height"]] <= 0).any(axis=1),
    }
    refuse_rows(path, table["patientId"], problems, f"run: {rebuild}" if rebuild else "fix or remove them")
    return table.assign(**numbers)[[*PREDICTION_COLUMNS, *more]]


def list_images(folder: Path) -> list[Path]:
    """The sorted paths of a folder's DICOM files, without the ._<name>.dcm files that macOS leaves beside copies."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / name for name in names if name.endswith(".dcm") and not name.startswith("._")]


def list_sources(folder: Path, names: Sequence[str] = (TRAIN_IMAGES, TEST_IMAGES)) -> list[Path]:
    """The DICOM files of these image folders, folder by folder. Raises UserError if a folder has none."""
    found: list[Path] = []
    for path in (folder / name for name in names):
        if not (images := list_images(path)):
            problem = "no .dcm file in it" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: {problem}; {HOW_TO_GET}")
        found += images
    return found


def read_sample(folder: Path) -> list[str]:
    """The patientIds of the sample submission, in its order. Raises UserError if it is missing, broken or empty."""
    path = folder / SAMPLE_CSV
    ids = read_table(path, ["patientId"], source=HOW_TO_GET)["patientId"]
    refuse_rows(path, ids, {"the patientId was there before": ids.duplicated()}, "fetch the file again")
    if ids.empty:
        raise UserError(f"{path}: has no row; {HOW_TO_GET}")
    return ids.tolist()


def with_empty_rows(table: pd.DataFrame, ids: list[str]) -> pd.DataFrame:
    """The predictions in the order of `ids`, with one row of NaN for each id that has none; PREDICTION_COLUMNS."""
    order = pd.DataFrame({"patientId": ids})
    merged = order.merge(table.astype({"patientId": order["patientId"].dtype}), on="patientId", how="left")
    return merged.astype(dict.fromkeys(PREDICTION_COLUMNS[1:], float))[PREDICTION_COLUMNS]
