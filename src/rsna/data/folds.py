"""Folds: stratified, with all images of a patient in the same fold; made once, then kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from numpy.typing import NDArray

from rsna.core import artifacts
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.locks import file_lock
from rsna.core.tables import write_table
from rsna.data import competition
from rsna.data.competition import CLASSES, CLASSES_CSV, LABELS_CSV, MAPPING_JSON, read_folds
from rsna.data.dicom import read_headers

Integers = NDArray[np.int64]
REMEDY = "scores of runs trained on them would mix; keep both with folds=<other folder>, or delete this file"


def update_folds(cfg: Config) -> tuple[pd.DataFrame, str]:
    """Make folds.csv, or check it if it exists. Returns the folds and their state at the start. Raises UserError."""
    folder = Path(cfg.input)
    with file_lock(cfg.folds_csv.parent):
        made = artifacts.current_manifest(cfg, "make_folds")  # before the files are read, in case they change
        labels = competition.read_labels(folder / LABELS_CSV)
        compare_files(labels["patientId"].unique(), folder / competition.TRAIN_IMAGES)
        state = state_of_folds(cfg)
        if state != "current":
            # existing folds are not compared with the headers
            headers = read_headers(cfg) if state == "new" else pd.DataFrame(columns=competition.HEADER_COLUMNS)
            images = describe_images(labels, competition.read_classes(folder), headers)
            if state == "new":
                write_folds(cfg, images, made)
            else:
                check_folds(cfg, images)
            if state != "brought":
                artifacts.record(cfg, "make_folds", made=made)
    return read_folds(cfg.folds_csv, command(cfg, "make_folds")), state


def state_of_folds(cfg: Config) -> str:
    """new (no table), current, edited (changed since), kept (make_folds was killed) or brought (by the user).

    Raises UserError for folds made from other settings or files.
    """
    manifest = artifacts.manifest_path(cfg, "make_folds")
    if artifacts.is_current(cfg, "make_folds"):
        return "current"
    if not cfg.folds_csv.exists():
        return "new"
    if not manifest.is_file():
        return "brought"
    found = artifacts.read_manifest(manifest)
    changes = artifacts.differences(found, artifacts.current_manifest(cfg, "make_folds"))
    if changes:
        raise UserError(f"{cfg.folds_csv} was made from other settings or files ({changes}); {REMEDY}")
    return "edited" if found["outputs"] else "kept"


def write_folds(cfg: Config, images: pd.DataFrame, made: dict[str, Any]) -> None:
    """Write the table; before it, the manifest, as a table without one counts as the user's own."""
    images["group"] = group_by_patient(images, competition.read_people(Path(cfg.input)))
    images["fold"] = assign_folds(images, cfg.n_folds, cfg.seed)
    artifacts.record(cfg, "make_folds", made=made)
    write_table(images[competition.FOLD_COLUMNS], cfg.folds_csv)


def check_folds(cfg: Config, images: pd.DataFrame) -> None:
    """Raise UserError if the existing folds do not match the labels, the classes or n_folds."""
    path = cfg.folds_csv
    folds = read_folds(path, command(cfg, "make_folds")).sort_values("patientId", ignore_index=True)
    if folds["patientId"].tolist() != images["patientId"].tolist():
        raise UserError(f"{path}: its images are not those of the labels; {REMEDY}")
    for column in ("target", "n_boxes", "class"):
        unlike = folds[column].astype(object).fillna("").ne(images[column])
        if unlike.any():
            name = folds.loc[unlike, "patientId"].iloc[0]
            raise UserError(f"{path}, patientId {name}: {column} is not that of the labels and classes; {REMEDY}")
    if not folds["fold"].isin(range(cfg.n_folds)).all():
        raise UserError(f"{path}: has folds beyond n_folds={cfg.n_folds}; {REMEDY}")


def report(cfg: Config, folds: pd.DataFrame, state: str) -> None:
    """Print what was done, and, unless the folds were current, the size and the class rates of each fold."""
    people, groups = competition.read_people(Path(cfg.input)), folds["group"]
    # in a table that the user brought, groups may not be patients
    patients = groups if people is None else folds["patientId"].map(people).astype(object).fillna(groups)
    shared = max(
        folds.groupby(names.to_numpy(), sort=False)["fold"].nunique().gt(1).sum() for names in (groups, patients)
    )
    done = {"edited": "edited by hand, kept", "brought": "not made by make_folds, kept"}.get(state, state)
    print(f"make_folds: {done} -> {cfg.folds_csv}")
    if shared:
        print(f"WARNING: patients with images in more than one fold: {shared}; out-of-fold scores will be too high")
    if state == "current":
        return
    print(f"{len(folds)} images of {patients.nunique()} patients, {shared or 'none'} of them in more than one fold")
    by_fold = folds.assign(AP=folds["view"].eq("AP"), male=folds["sex"].eq("M")).groupby("fold")
    table = by_fold.agg(images=("patientId", "size"), patients=("group", "nunique"), opacity=("target", "mean"))
    table[["boxes", "AP", "male"]] = by_fold.agg({"n_boxes": "sum", "AP": "mean", "male": "mean"})
    table["age"] = by_fold["age"].median()
    percents = dict.fromkeys(["opacity", "AP", "male"], "{:.1%}".format)
    print(table.reset_index().to_string(index=False, formatters=percents))


def compare_files(ids: NDArray[np.str_], folder: Path) -> None:
    """Print how many labelled images have no DICOM file, and how many files no label; nothing if there are no files."""
    files = {path.stem for path in competition.list_images(folder)}
    missing, more = sorted(set(ids) - files), len(files - set(ids))
    if files and missing:
        problem = f"{len(missing)} of {len(ids)} labelled images have no DICOM in {folder}, first {missing[0]}"
        print(f"WARNING: {problem}: train will stop there; is the download complete?")
    if more:
        print(f"{more} images in {folder} have no label: they are not trained on")


def describe_images(labels: pd.DataFrame, classes: pd.Series | None, headers: pd.DataFrame) -> pd.DataFrame:
    """One row per image, sorted by patientId; unknown values are empty. UserError if a class contradicts its label."""
    images = labels.groupby("patientId").agg(target=("Target", "max"), n_boxes=("Target", "sum")).reset_index()
    if classes is None:
        print(f"no {CLASSES_CSV}: folds are not stratified by class")
    images["class"] = images["patientId"].map(classes).fillna("") if classes is not None else ""
    contradicting = images["class"].isin(CLASSES) & (images["class"].eq(CLASSES[-1]) != images["target"].eq(1))
    if contradicting.any():
        name, target, kind = images[contradicting].iloc[0][["patientId", "target", "class"]]
        count = f"{int(contradicting.sum())} such image(s); fetch both files again, or remove the first"
        problem = f"patientId {name} is '{kind}', and its Target in {LABELS_CSV} is {target}"
        raise UserError(f"{CLASSES_CSV}: {problem}; {count}")
    headers = headers.drop_duplicates("patientId").set_index("patientId")
    for column, field in (("view", "ViewPosition"), ("sex", "PatientSex")):
        images[column] = images["patientId"].map(headers[field]).astype(object).fillna("")
    age = images["patientId"].map(headers["PatientAge"]).astype(str).str.extract(r"^0*(\d{1,3})(?:\.0)?Y?$")[0]
    images["age"] = pd.to_numeric(age).astype("Int64")
    return images


def group_by_patient(images: pd.DataFrame, people: pd.Series | None) -> pd.Series:
    """The patient of each image, or its patientId if the patient is not known."""
    if people is None:
        page = "(www.rsna.org, AI image challenges, 2018) as 'dataset mappings' to NIH ChestX-ray14"
        print(f"patients may leak between folds: no {MAPPING_JSON} in input; it is on the RSNA challenge's page {page}")
        return images["patientId"]
    patient = images["patientId"].map(people)
    unknown = images.loc[patient.isna(), "patientId"]
    if len(unknown):
        absent = f"{len(unknown)} of {len(images)} images are not in {MAPPING_JSON}, such as {unknown.iloc[0]}"
        print(f"patients may leak between folds: {absent}")
    return patient.astype(object).fillna(images["patientId"])


def assign_folds(images: pd.DataFrame, n_folds: int, seed: int) -> Integers:
    """The fold of each row of `images`, which has a column group. Raises UserError if n_folds is too large."""
    positives, groups = int(images["target"].sum()), images["group"].nunique()
    if min(positives, len(images) - positives, groups) < n_folds:
        found = f"{positives} positive and {len(images) - positives} negative images of {groups} patients"
        raise UserError(f"n_folds={n_folds}: too many for {found}; set a smaller n_folds")
    band = np.digitize(images["age"].astype(float).fillna(np.inf), competition.AGE_BANDS)
    shared = images[["target", "class", "n_boxes", "view", "sex"]].assign(age=band)
    # 0 or 1 (images, values); converted to text first, as pandas 2 and 3 expand different types, but folds must agree
    indicators = pd.get_dummies(shared.astype(object).map(str)).to_numpy(dtype=np.int64)
    if groups < len(images):
        return stratify_groups(indicators, images["group"].to_numpy(), n_folds, seed)
    # one image per group: iterative stratification (Sechidis et al. 2011), by the package iterative-stratification
    folds = np.empty(len(images), dtype=np.int64)
    splitter = MultilabelStratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, valid) in enumerate(splitter.split(indicators, indicators)):
        folds[valid] = fold
    return folds


def stratify_groups(indicators: Integers, groups: NDArray[np.str_], n_folds: int, seed: int) -> Integers:
    """Assign whole groups to folds, the largest first, each to the fold that comes closest to an even share.

    The distance is the sum of (count - share)^2 / share over the image count and all label counts. Iterative
    stratification ignores how often a patient has a label: its folds were 3.6 % off in size, these by one image.
    """
    owner = pd.factorize(groups, sort=True)[0]
    columns = np.column_stack([np.ones(len(indicators)), indicators])
    counts = pd.DataFrame(columns).groupby(owner).sum().to_numpy()
    share = counts.sum(axis=0) / n_folds
    filled = np.zeros((n_folds, counts.shape[1]))
    fold_of = np.empty(len(counts), dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    for group in shuffled[np.argsort(-counts[shuffled, 0], kind="stable")]:
        growth = ((2 * (filled - share) + counts[group]) * counts[group] / np.maximum(share, 1)).sum(axis=1)
        fold_of[group] = growth.argmin()
        filled[fold_of[group]] += counts[group]
    return fold_of[owner]
