"""Make a synthetic competition in Kaggle's layout: phantoms instead of patients, for trying out and testing."""

import functools
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.executor import map_files
from rsna.core.files import read_json, write_json, write_then_rename
from rsna.core.locks import file_lock
from rsna.core.stamps import difference, is_complete, mark_complete
from rsna.core.tables import write_table
from rsna.data.competition import (
    BOX_COLUMNS,
    CLASS_COLUMNS,
    CLASSES_CSV,
    LABEL_COLUMNS,
    LABELS_CSV,
    MAPPING_JSON,
    SAMPLE_CSV,
    TEST_IMAGES,
    TRAIN_IMAGES,
)
from rsna.synthetic.dicom_writer import write_dicom
from rsna.synthetic.patients import Member, draw_cohort
from rsna.synthetic.phantom import lay_out, render

VERSION = 3  # raise it when the same settings give other files
SAMPLE_PREDICTION = "0.5 0 0 100 100"
FOLDERS = [TRAIN_IMAGES, TEST_IMAGES]

Truth = dict[str, NDArray[np.float64]]  # patientId -> boxes (n, 4) xywh


def main(cfg: Config) -> None:
    """Make pictures and tables, unless they are there; then say what there is."""
    cohorts = [draw_cohort(count, split, cfg.seed) for split, count in enumerate((cfg.demo_train, cfg.demo_test))]
    facts = demo_facts(cfg)
    with file_lock(Path(cfg.root)):
        if not is_complete(stamp_path(cfg), facts, output_paths(cfg, cohorts)):
            claim_folder(cfg, facts)
            train, test = (make_pictures(members, split, cfg) for split, members in enumerate(cohorts))
            write_tables(cfg, cohorts, train, test)
            mark_complete(stamp_path(cfg), facts)
    print(summary(cfg, cohorts))


def stamp_path(cfg: Config) -> Path:
    return Path(cfg.root) / "demo.json"


def demo_facts(cfg: Config) -> dict[str, Any]:
    """What the files depend on; the folder is among it so that a stamp never vouches for another folder's files."""
    settings = {key: getattr(cfg, key) for key in ("seed", "demo_train", "demo_test")}
    return {**settings, "input": os.path.relpath(cfg.input, cfg.root), "version": VERSION}


def table_paths(cfg: Config) -> list[Path]:
    """The tables, in the order in which they are written: the labels, which the other stages read, are last."""
    return [Path(cfg.test_labels), *(Path(cfg.input) / n for n in (MAPPING_JSON, SAMPLE_CSV, CLASSES_CSV, LABELS_CSV))]


def output_paths(cfg: Config, cohorts: list[list[Member]]) -> list[Path]:
    pictures = [picture_path(cfg, split, member) for split, members in enumerate(cohorts) for member in members]
    return table_paths(cfg) + pictures


def picture_path(cfg: Config, split: int, member: Member) -> Path:
    return Path(cfg.input) / FOLDERS[split] / f"{member.patient_id}.dcm"


def claim_folder(cfg: Config, facts: dict[str, Any]) -> None:
    """Stamp the folder as this demo's before anything is written. Raises UserError where other files are in the way."""
    stamp, folder = stamp_path(cfg), Path(cfg.input)
    if stamp.is_file():
        changed = difference(read_json(stamp).get("made_from", {}), facts)
        if changed:
            raise UserError(
                f"{stamp}: the demo in {folder} was made with other settings ({changed}); "
                f"delete {folder} and {stamp}, or make another demo with root=<new folder>"
            )
        return
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [path for path in present if path.name != "README.md" and not path.name.startswith(".")]
    foreign += [path for path in [Path(cfg.test_labels)] if path.exists()]
    if foreign:
        raise UserError(f"{foreign[0]}: not made by make_demo, and not overwritten; choose another root=<new folder>")
    write_json({"made_from": facts}, stamp)


def make_pictures(members: list[Member], split: int, cfg: Config) -> Truth:
    """Write the pictures of a split that are missing; returns the boxes of all."""
    paths = [picture_path(cfg, split, member) for member in members]
    work = functools.partial(make_picture, count=len(members), split=split, seed=cfg.seed)
    return dict(map_files(work, paths, cfg.workers, FOLDERS[split]))


@functools.cache
def roster(count: int, split: int, seed: int) -> dict[str, Member]:
    """The members of a split by patientId, drawn once in each process."""
    return {member.patient_id: member for member in draw_cohort(count, split, seed)}


def make_picture(path: Path, count: int, split: int, seed: int) -> tuple[str, NDArray[np.float64]]:
    """Write one picture unless it is there; returns its patientId and its boxes (n, 4) xywh."""
    member = roster(count, split, seed)[path.stem]
    # seeded by the picture's own id: the same in whatever process, order and resumed run it is made
    layout_rng, picture_rng = np.random.default_rng(uuid.UUID(member.patient_id).int).spawn(2)
    scene = lay_out(member.case, layout_rng)
    if not path.is_file():
        picture = render(scene, picture_rng)
        write_dicom(path, picture, member.patient_id, member.case.sex, member.age, member.case.view)
    return member.patient_id, scene.boxes


def labels_table(members: list[Member], truth: Truth) -> pd.DataFrame:
    """One row per box, or one row with empty box fields, in Kaggle's columns."""
    rows = [
        [member.patient_id, *box, int(member.case.n_boxes > 0)]
        for member in members
        for box in (truth[member.patient_id].tolist() or [[np.nan] * len(BOX_COLUMNS)])
    ]
    return pd.DataFrame(rows, columns=LABEL_COLUMNS)


def mapping_text(members: list[Member]) -> str:
    """The JSON that tells whose picture each is: the first 8 digits of img_id are the person."""
    rows = [{"subset_img_id": m.patient_id, "img_id": f"{m.person:08d}_{m.follow_up:03d}.png"} for m in members]
    return json.dumps(rows, indent=0) + "\n"


def write_tables(cfg: Config, cohorts: list[list[Member]], train: Truth, test: Truth) -> None:
    """Write all tables, the training labels last: a demo without them is not taken for whole."""
    test_csv, mapping_json, sample_csv, classes_csv, labels_csv = table_paths(cfg)
    labels = labels_table(cohorts[0], train)
    kinds = {member.patient_id: member.kind for member in cohorts[0]}
    sample = pd.DataFrame({"patientId": sorted(m.patient_id for m in cohorts[1])})
    write_table(labels_table(cohorts[1], test), test_csv)
    with write_then_rename(mapping_json) as temporary:
        temporary.write_text(mapping_text(cohorts[0]))
    write_table(sample.assign(PredictionString=SAMPLE_PREDICTION), sample_csv)
    # as in Kaggle's file: one row for each row of the labels
    write_table(labels[["patientId"]].assign(**{CLASS_COLUMNS[1]: labels.patientId.map(kinds)}), classes_csv)
    write_table(labels, labels_csv)


def summary(cfg: Config, cohorts: list[list[Member]]) -> str:
    """What was made, where, and what to run next."""
    counts = pd.crosstab([m.kind for m in cohorts[0]], [m.case.view for m in cohorts[0]])
    boxes = [sum(member.case.n_boxes for member in members) for members in cohorts]
    persons = len({member.person for member in cohorts[0]})
    lines = [f"{len(cohorts[0])} training images of {persons} persons with {boxes[0]} boxes:"]
    lines += [f"  {kind:<30} AP {row.get('AP', 0):>4}   PA {row.get('PA', 0):>4}" for kind, row in counts.iterrows()]
    lines += [f"{len(cohorts[1])} test images with {boxes[1]} boxes; their truth: {cfg.test_labels}"]
    return "\n".join([*lines, f"input: {cfg.input}", f"next: {command(cfg, 'make_folds')}"])


if __name__ == "__main__":
    run(main)
