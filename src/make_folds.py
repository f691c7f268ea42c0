"""Assign every training image to a fold: stratified, and with all images of a person in one fold.

python src/make_folds.py [n_folds=5] [seed=42] [input=...] [folds=...]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.startup import run
from rsna.core.artifacts import record
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.executor import map_files
from rsna.core.files import content_hash, read_json
from rsna.core.locks import file_lock
from rsna.core.stamps import difference
from rsna.core.tables import read_table, write_table
from rsna.data.competition import (
    CLASSES,
    CLASSES_CSV,
    FOLD_COLUMNS,
    HEADER_COLUMNS,
    HEADERS_CSV,
    LABELS_CSV,
    MAPPING_JSON,
    TRAIN_IMAGES,
    read_classes,
    read_folds,
    read_labels,
    read_people,
)
from rsna.data.dicom import read_header
from rsna.data.folds import assign_folds


def main(cfg: Config) -> None:
    maker = command(cfg, "make_folds")
    with file_lock(cfg.folds_csv.parent):
        labels = read_labels(Path(cfg.input) / LABELS_CSV)
        compare_files(labels["patientId"].unique(), Path(cfg.input) / TRAIN_IMAGES)
        images = describe_images(labels, read_classes(Path(cfg.input)), read_headers(cfg, set(labels["patientId"])))
        facts = {"n_folds": cfg.n_folds, "seed": cfg.seed, **input_facts(Path(cfg.input))}
        stamp = cfg.folds_csv.with_suffix(".json")
        if cfg.folds_csv.exists():
            check_existing(cfg.folds_csv, stamp, facts, images, maker)
        else:
            images["group"] = group_by_person(images, read_people(Path(cfg.input)))
            images["fold"] = assign_folds(images, cfg.n_folds, cfg.seed)
            write_table(images[FOLD_COLUMNS], cfg.folds_csv)
            record(cfg, "make_folds")
    print_folds(read_folds(cfg.folds_csv, maker), cfg.folds_csv)


def compare_files(ids: NDArray[np.str_], folder: Path) -> None:
    """Print which labelled images have no file, and how many files no label; nothing where there is no file at all."""
    files = {path.stem for path in folder.glob("*.dcm") if not path.name.startswith("._")}
    missing, more = sorted(set(ids) - files), len(files - set(ids))
    if files and missing:
        print(
            f"WARNING: {len(missing)} of {len(ids)} labelled images have no DICOM in {folder}, first {missing[0]}: "
            "train will stop there; is the download whole?"
        )
    if more:
        print(f"{more} images in {folder} have no label: they are not trained on")


def input_facts(folder: Path) -> dict[str, str]:
    """Fingerprints of the tables in `folder` that decide the folds."""
    return {name: content_hash(folder / name) for name in (LABELS_CSV, CLASSES_CSV, MAPPING_JSON, HEADERS_CSV)}


def describe_images(labels: pd.DataFrame, classes: pd.Series | None, headers: pd.DataFrame) -> pd.DataFrame:
    """One row per image, sorted by patientId: target, n_boxes, class, view, sex, age; unknown is empty.

    Raises UserError for an image that is Lung Opacity by its class and negative by its label, or the other way round.
    """
    images = labels.groupby("patientId").agg(target=("Target", "max"), n_boxes=("Target", "sum")).reset_index()
    if classes is None:
        print(f"no {CLASSES_CSV}: folds are not stratified by class")
    images["class"] = images["patientId"].map(classes).fillna("") if classes is not None else ""
    contradicting = images["class"].isin(CLASSES) & (images["class"].eq(CLASSES[-1]) != images["target"].eq(1))
    if contradicting.any():
        row = images[contradicting].iloc[0]
        raise UserError(
            f"{CLASSES_CSV}: patientId {row['patientId']} is '{row['class']}', and its Target in {LABELS_CSV} is "
            f"{row['target']}; {int(contradicting.sum())} such image(s); fetch both files again, or remove the first"
        )
    headers = headers.drop_duplicates("patientId").set_index("patientId")
    images["view"] = images["patientId"].map(headers["ViewPosition"]).astype(object).fillna("")
    images["sex"] = images["patientId"].map(headers["PatientSex"]).astype(object).fillna("")
    age = images["patientId"].map(headers["PatientAge"]).astype(str).str.extract(r"^0*(\d{1,3})(?:\.0)?Y?$")[0]
    images["age"] = pd.to_numeric(age).astype("Int64")
    return images


def read_headers(cfg: Config, ids: set[str]) -> pd.DataFrame:
    """View, sex and age of the training images: from a table where there is one, else from the DICOMs, once."""
    given = Path(cfg.input) / HEADERS_CSV
    for path in (given, cfg.headers_csv):
        if path.is_file():
            headers = read_table(path, HEADER_COLUMNS)
            # files that could not be read then are perhaps mended by now
            unread = headers[HEADER_COLUMNS[1:]].isna().all(axis=1)
            if path == given or ids <= set(headers.loc[~unread, "patientId"]):
                return headers
    paths = sorted((Path(cfg.input) / TRAIN_IMAGES).glob("*.dcm"))
    if not paths:
        print(f"no DICOMs in {Path(cfg.input) / TRAIN_IMAGES}: folds are not stratified by view, sex and age")
        return pd.DataFrame(columns=HEADER_COLUMNS)
    rows = map_files(read_header, paths, cfg.workers, "headers")
    headers = pd.DataFrame(rows, columns=HEADER_COLUMNS).sort_values("patientId", ignore_index=True)
    write_table(headers, cfg.headers_csv)
    return headers


def group_by_person(images: pd.DataFrame, people: pd.Series | None) -> pd.Series:
    """The person of each image; the patientId where the person is not known."""
    if people is None:
        print(
            f"people may leak between folds: no {MAPPING_JSON} in input; it is on the RSNA challenge's page "
            "(www.rsna.org, AI image challenges, 2018) as 'dataset mappings' to NIH ChestX-ray14"
        )
        return images["patientId"]
    person = images["patientId"].map(people)
    if person.isna().any():
        print(
            f"people may leak between folds: {int(person.isna().sum())} of {len(person)} images are not in "
            f"{MAPPING_JSON}, such as {images.loc[person.isna(), 'patientId'].iloc[0]}"
        )
    return person.astype(object).fillna(images["patientId"])


def check_existing(path: Path, stamp: Path, facts: dict[str, object], images: pd.DataFrame, maker: str) -> None:
    """Accept folds that were made from these facts, or that the user brought or edited; raise UserError for others."""
    remedy = f"scores of runs trained on them would mix; keep both with folds=<other folder>, or delete {path}"
    if stamp.is_file():
        content = read_json(stamp, maker, {"inputs": dict, "settings": dict})
        made_from = content["settings"] | {
            key.removeprefix("input/"): value for key, value in content["inputs"].items()
        }
        changes = difference(made_from, facts)
        if changes:
            raise UserError(f"{path} was made from something else ({changes}); {remedy}")
        if content["outputs"].get("folds/folds.csv") != content_hash(path):
            print(f"{path} was edited after it was made: kept as it is")
    else:
        print(f"{path} was not made here: kept as it is")
    folds = read_folds(path, maker).sort_values("patientId", ignore_index=True)
    if folds["patientId"].tolist() != images["patientId"].tolist():
        raise UserError(f"{path}: its images are not those of the labels; {remedy}")
    for column in ("target", "n_boxes", "class"):
        unlike = folds[column].astype(object).fillna("").ne(images[column])
        if unlike.any():
            name = folds.loc[unlike, "patientId"].iloc[0]
            raise UserError(f"{path}, patientId {name}: {column} is not that of the labels and classes; {remedy}")
    if not folds["fold"].isin(range(int(str(facts["n_folds"])))).all():
        raise UserError(f"{path}: has folds beyond n_folds={facts['n_folds']}; {remedy}")


def print_folds(folds: pd.DataFrame, path: Path) -> None:
    """One line per fold: sizes and rates."""
    table = folds.groupby("fold").agg(
        images=("patientId", "size"), people=("group", "nunique"), opacity=("target", "mean"), boxes=("n_boxes", "sum")
    )
    table["AP"] = folds["view"].eq("AP").groupby(folds["fold"]).mean()
    table["male"] = folds["sex"].eq("M").groupby(folds["fold"]).mean()
    table["age"] = folds["age"].astype(float).groupby(folds["fold"]).median()
    percent = "{:.1%}".format
    print(table.to_string(formatters={"opacity": percent, "AP": percent, "male": percent}))
    shared = folds.groupby("group")["fold"].nunique().gt(1).sum()
    print(f"{len(folds)} images of {folds['group'].nunique()} people; {shared} people in more than one fold -> {path}")


if __name__ == "__main__":
    run(main)
