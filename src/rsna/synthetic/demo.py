"""Make a synthetic competition in Kaggle's layout, with phantoms instead of patients, for demos and tests."""

import functools
import json
import os
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core import artifacts
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import bytes_hash, content_hash, write_text
from rsna.core.locks import file_lock
from rsna.core.stages import STAGES, files_of
from rsna.data import competition
from rsna.execution.processes import map_files
from rsna.synthetic.dicom_writer import write_dicom
from rsna.synthetic.patients import PatientImage, draw_split
from rsna.synthetic.phantom import lay_out, render

FOLDERS = (competition.TRAIN_IMAGES, competition.TEST_IMAGES)

Split = list[PatientImage]
Truth = dict[str, NDArray[np.float64]]  # patientId -> boxes (n, 4) xywh in pixels


def make_demo(cfg: Config) -> str:
    """Make images and tables, unless they are current. Returns the text to print. Raises UserError as claim_folder."""
    splits = [draw_split(n, k, cfg.seed, cfg.shift) for k, n in enumerate((cfg.demo_train, cfg.demo_test))]
    folders = [Path(cfg.input) / name for name in FOLDERS]
    paths = [[folders[k] / f"{image.patient_id}.dcm" for image in images] for k, images in enumerate(splits)]
    with file_lock(Path(cfg.root)):
        if artifacts.is_current(cfg, "make_demo") and all(path.is_file() for path in (*paths[0], *paths[1])):
            return f"make_demo: {len(splits[0])} training and {len(splits[1])} test images current -> {cfg.input}"
        claim_folder(cfg, {*paths[0], *paths[1]})
        truth: Truth = {}
        for k, images in enumerate(splits):
            work = functools.partial(make_image, count=len(images), split=k, seed=cfg.seed, shift=cfg.shift)
            truth.update(map_files(work, paths[k], cfg, FOLDERS[k]))
        write_tables(cfg, make_tables(splits, truth))
    return summary(cfg, splits)


def claim_folder(cfg: Config, images: set[Path]) -> None:
    """Write the manifest before any file, to claim the folder.

    Raises UserError if the folder has files that make_demo did not write, or a demo with other settings.
    """
    manifest, outputs = artifacts.manifest_path(cfg, "make_demo"), files_of(STAGES["make_demo"].outputs, cfg)
    remedy = f"choose another root=<new folder>, or move {cfg.input} and {manifest} away"
    written: dict[str, str] = {}
    if manifest.is_file():
        found = artifacts.read_manifest(manifest)
        written = found["outputs"]
        changes = artifacts.differences(found, artifacts.current_manifest(cfg, "make_demo"))
        if found.get("input") != relative_input(cfg):
            changes = f"input: {found.get('input')} -> {relative_input(cfg)}"
        if changes:
            raise UserError(f"{manifest}: the demo was made with other settings ({changes}); {remedy}")
    for key, path in outputs.items():
        # a table was written by make_demo if its hash is in the manifest, which is written before the table
        if path.exists() and written.get(key) != content_hash(path):
            raise UserError(f"{path}: not as make_demo wrote it, and not overwritten; {remedy}")
    for path in sorted(Path(cfg.input).rglob("[!.]*")):
        if not (path in images or path in outputs.values() or path.is_dir() or path.name == "README.md"):
            raise UserError(f"{path}: not made by make_demo; choose another root=<new folder>")
    artifacts.record(cfg, "make_demo", input=relative_input(cfg))


def relative_input(cfg: Config) -> str:
    """The path of the input folder relative to the root, for the manifest, so that both can be moved together."""
    return os.path.relpath(cfg.input, cfg.root)


@functools.cache
def images_by_id(count: int, split: int, seed: int, shift: bool) -> dict[str, PatientImage]:
    """patientId -> image of a split; computed once in each process."""
    return {image.patient_id: image for image in draw_split(count, split, seed, shift)}


def make_image(path: Path, count: int, split: int, seed: int, shift: bool) -> tuple[str, NDArray[np.float64]]:
    """Write one image if it is missing; returns its patientId and its boxes (n, 4) xywh in pixels."""
    image = images_by_id(count, split, seed, shift)[path.stem]
    # seeded by the image's id, so that the image does not depend on the process, the order, or an interruption
    layout_rng, image_rng = np.random.default_rng(uuid.UUID(image.patient_id).int).spawn(2)
    scene = lay_out(image.case, layout_rng)
    if not path.is_file():
        write_dicom(path, render(scene, image_rng), image.patient_id, image.case.sex, image.age, image.case.view)
    return image.patient_id, scene.boxes


def labels_table(images: Split, truth: Truth) -> pd.DataFrame:
    """LABEL_COLUMNS: one row per box, or one row with empty box fields for a negative image."""
    boxes = [(image, box) for image in images for box in truth[image.patient_id].tolist() or [[np.nan] * 4]]
    rows = [[image.patient_id, *box, int(image.case.n_boxes > 0)] for image, box in boxes]
    return pd.DataFrame(rows, columns=competition.LABEL_COLUMNS)


def make_tables(splits: list[Split], truth: Truth) -> dict[str, str]:
    """Name -> content of all files except images; the training labels, which other commands read, are last."""
    train_images, test_images = splits
    # the first 8 digits of img_id identify the patient
    names = {image.patient_id: f"{image.patient:08d}_{image.follow_up:03d}.png" for image in train_images}
    people = [{"subset_img_id": patient_id, "img_id": name} for patient_id, name in names.items()]
    sample = pd.DataFrame({"patientId": sorted(image.patient_id for image in test_images)})
    labels = labels_table(train_images, truth)
    kinds = labels["patientId"].map({image.patient_id: image.kind for image in train_images})
    # like Kaggle's file, one row for each row of the labels
    classes = pd.DataFrame({"patientId": labels["patientId"], "class": kinds})
    return {
        "test_labels": labels_table(test_images, truth).to_csv(index=False),
        f"input/{competition.MAPPING_JSON}": json.dumps(people, indent=0) + "\n",
        f"input/{competition.SAMPLE_CSV}": sample.assign(PredictionString="0.5 0 0 100 100").to_csv(index=False),
        f"input/{competition.CLASSES_CSV}": classes.to_csv(index=False),
        f"input/{competition.LABELS_CSV}": labels.to_csv(index=False),
    }


def write_tables(cfg: Config, tables: dict[str, str]) -> None:
    """Write all tables, after a manifest with their hashes: so tables left by a killed run are known as make_demo's."""
    hashes = {name: bytes_hash(content.encode()) for name, content in tables.items()}
    artifacts.record(cfg, "make_demo", input=relative_input(cfg), outputs=hashes)
    for name, path in files_of(STAGES["make_demo"].outputs, cfg).items():
        write_text(tables[name], path)


def summary(cfg: Config, splits: list[Split]) -> str:
    """Text: what was made, where, and what to run next."""
    counts = pd.crosstab([image.kind for image in splits[0]], [image.case.view for image in splits[0]])
    boxes = [sum(image.case.n_boxes for image in images) for images in splits]
    patients = len({image.patient for image in splits[0]})
    lines = [f"make_demo: {len(splits[0])} training images of {patients} patients with {boxes[0]} boxes -> {cfg.input}"]
    lines += [f"  {kind:<30} AP {row.get('AP', 0):>4}   PA {row.get('PA', 0):>4}" for kind, row in counts.iterrows()]
    lines += [f"{len(splits[1])} test images with {boxes[1]} boxes; their labels: {cfg.test_labels}"]
    return "\n".join([*lines, f"next: {command(cfg, 'make_folds')}"])
