"""Write a finished run without training: the files that report and compare read, of any size, in a second."""

import os
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.data.cache import INDEX_COLUMNS
from rsna.data.competition import CLASSES, CLASSES_CSV, LABELS_CSV
from rsna.evaluation.scores import evaluate_run

SIDE = 1024  # side of the original images, px
HISTORY = ("epoch", "phase", "lr", "train_loss", "valid_loss", "accuracy", "L1", "L1_post", "AUC", "IoU", "mAP")


def make_images(n, seed=0, people=0.6):
    """folds.csv's rows and the labels of n images; a fifth has one box or two."""
    rng = np.random.default_rng(seed)
    ids = [f"{value:08x}-{k:06d}" for k, value in enumerate(rng.integers(0, 2**32, n))]
    n_boxes = np.where(np.arange(n) % 5 == 0, rng.integers(1, 3, n), 0)
    kinds = np.where(n_boxes > 0, CLASSES[2], np.where(rng.random(n) < 0.5, CLASSES[0], CLASSES[1]))
    person = rng.integers(0, max(1, int(people * n)), n)
    folds = pd.DataFrame(
        {
            "patientId": ids,
            "fold": person % 2,
            "target": (n_boxes > 0).astype(int),
            "n_boxes": n_boxes,
            "class": kinds,
            "view": rng.choice(["AP", "PA"], n),
            "sex": rng.choice(["F", "M"], n),
            "age": rng.integers(5, 90, n),
            "group": [f"person{value}" for value in person],
        }
    )
    rows = []
    for name, count in zip(ids, n_boxes, strict=True):
        for side in rng.permutation(2)[:count]:
            x, y = 120 + 450 * side + rng.integers(0, 60), 250 + rng.integers(0, 200)
            rows.append((name, x, y, rng.integers(150, 300), rng.integers(200, 400), 1))
        if not count:
            rows.append((name, *[np.nan] * 4, 0))
    return folds, pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height", "Target"])


def make_predictions(labels, seed=0, skill=0.75):
    """One box per image; on positive images it is near a true box and more confident."""
    rng = np.random.default_rng(seed)
    first = labels.drop_duplicates("patientId").reset_index(drop=True)
    positive = first["Target"].to_numpy() == 1
    n = len(first)
    boxes = first[["x", "y", "width", "height"]].to_numpy(dtype=float)
    anywhere = np.column_stack([rng.uniform(100, 600, n), rng.uniform(200, 500, n), *np.full((2, n), 250.0)])
    boxes = np.where(positive[:, None], boxes, anywhere) + rng.normal(0, 30, (n, 4))
    confidence = 1 / (1 + np.exp(-(rng.normal(0, 1, n) + 4 * skill * (positive - 0.5))))
    table = pd.DataFrame(np.round(boxes, 2), columns=["x", "y", "width", "height"])
    return pd.concat([first[["patientId"]], pd.Series(confidence, name="confidence").round(6), table], axis=1)


def words(root, name="first", *more):
    return [f"root={root}", f"name={name}", "n_folds=2", "size=64", "bootstrap=60", *more]


def make_competition(root, n=60, seed=0, side=64, edit=lambda folds: folds):
    """Labels, classes, folds and a cache of images; returns folds and labels."""
    folds, labels = make_images(n, seed)
    folds = edit(folds)
    for folder in ("input", "folds", f"working/png_{side}/train"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    labels.to_csv(root / "input" / LABELS_CSV, index=False)
    folds[["patientId", "class"]].to_csv(root / "input" / CLASSES_CSV, index=False)
    folds.to_csv(root / "folds/folds.csv", index=False)
    # one file under many names, of noise, which compresses worst
    image = np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8)
    first = root / f"working/png_{side}/image.png"
    cv2.imwrite(str(first), image)
    for name in folds["patientId"]:
        os.link(first, root / f"working/png_{side}/train/{name}.png")
    index = pd.DataFrame({"patientId": folds["patientId"]}).assign(
        split="train", status="ok", rows=SIDE, cols=SIDE, scale_x=side / SIDE, scale_y=side / SIDE, pad_x=0, pad_y=0
    )
    index.reindex(columns=INDEX_COLUMNS).to_csv(root / f"working/png_{side}/index.csv", index=False)
    record(parse(words(root)), "make_folds")
    return folds, labels


def make_run(root, predictions, name="first", parts=(), **settings):
    """The folder of a run with these predictions, its manifests, scores and submission; its config.

    parts: names of the parts of the loss in history.csv; settings: those that differ from `words`.
    """
    cfg = replace(parse(words(root)), name=name, **{"epochs": 3, **settings})
    folds = pd.read_csv(cfg.folds_csv, dtype={"patientId": str}).set_index("patientId")["fold"]
    for fold in sorted(set(folds[predictions["patientId"]])):
        make_fold(cfg, fold, parts)
    for table in ("oof", "oof_no_tta"):
        predictions.to_csv(cfg.run_dir / f"{table}.csv", index=False)
    record(cfg, "ensemble", gate={"alpha": 1.0, "beta": 0.0, "gain": None, "by_fold": {}})
    evaluate_run(cfg)
    make_submission(cfg)
    return cfg


def make_fold(cfg, fold, parts):
    folder = cfg.fold_dir(fold)
    folder.mkdir(parents=True)
    columns = [f"{split}_{part}" for part in parts for split in ("train", "valid")]
    rows = [
        [k + 1, "all", 1e-3, 3 / (k + 1), 3.5 / (k + 1), *[1 / (k + 1)] * len(columns), *[0.1 * (k + fold + 1)] * 6]
        for k in range(cfg.epochs)
    ]
    pd.DataFrame(rows, columns=[*HISTORY[:5], *columns, *HISTORY[5:]]).to_csv(folder / "history.csv", index=False)
    pd.DataFrame({"epoch": range(1, cfg.epochs + 1), "seconds": 2.5}).to_csv(folder / "seconds.csv", index=False)
    (folder / "best.pt").write_bytes(b"0" * 2**20)
    for command in ("train", "predict"):
        record(cfg, command, fold)


def make_submission(cfg):
    cfg.submission_csv.parent.mkdir(exist_ok=True)
    cfg.submission_csv.write_text("patientId,PredictionString\n")
    results = {"threshold_from": "as many as single folds give a box", "images": 20, "images_with_box": 5}
    record(cfg, "make_submission", threshold=0.4321, **results)
