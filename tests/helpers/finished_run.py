"""Make a run that every command has finished, in a second: predictions are made up, the steps after them are real."""

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from helpers.run_files import SIDE, make_competition, make_fold, make_predictions, words
from PIL import Image

from rsna.core.artifacts import current_manifest, record
from rsna.core.command_line import parse
from rsna.core.files import content_hash
from rsna.core.sources import SEEN_CSV, see
from rsna.data.competition import HEADERS_CSV, MAPPING_JSON, SAMPLE_CSV
from rsna.execution import folds
from rsna.inference import new_images, outliers, predictor
from rsna.models.checkpoint import save_checkpoint

SRC = Path(__file__).resolve().parents[2] / "src"
FILES = {"weights": "weights.pth", "calibrate": "calibrate.txt"}


def settings(root, *more):
    files = [f"{key}={Path(root) / name}" for key, name in FILES.items()]
    return words(root, "first", "epochs=3", "workers=0", "members=", f"images={root}/new", *files, *more)


def make_workspace(root):
    """A workspace with all optional inputs."""
    folds, labels = make_competition(root)
    source, index = root / "input", root / "working/png_64/index.csv"
    folds["patientId"].to_csv(root / "calibrate.txt", index=False, header=False)
    (root / "weights.pth").write_bytes(b"weights")
    headers = folds.rename(columns={"age": "PatientAge", "sex": "PatientSex", "view": "ViewPosition"})
    headers[["patientId", "PatientAge", "PatientSex", "ViewPosition"]].to_csv(source / HEADERS_CSV, index=False)
    people = [{"subset_img_id": i, "img_id": p} for i, p in zip(folds["patientId"], folds["group"], strict=True)]
    (source / MAPPING_JSON).write_text(json.dumps(people))
    test = [f"test{k}" for k in range(20)]
    pd.DataFrame({"patientId": test, "PredictionString": ""}).to_csv(source / SAMPLE_CSV, index=False)
    rows = pd.read_csv(index, dtype=str)
    rows = pd.concat([rows, rows.iloc[: len(test)].assign(patientId=test, split="test")])
    cached = [make_source(source, *row) for row in zip(rows["split"], rows["patientId"], strict=True)]
    rows.assign(source_hash=[content_hash(path) for path in cached]).to_csv(index, index=False)
    pd.Series([see(path, recent=True) for path in cached], name=content_hash(index)).to_csv(
        index.with_name(SEEN_CSV), index=False
    )
    (root / "new").mkdir()
    Image.fromarray(np.arange(64 * 48).reshape(64, 48).astype(np.uint8)).save(root / "new/image.png")
    cfg = parse(settings(root))
    record(cfg, "make_folds")
    for fold in cfg.fold_list:
        make_trained_fold(cfg, fold)
        make_tables(cfg, fold, labels[labels["patientId"].isin(folds.loc[folds["fold"] == fold, "patientId"])], test)
    for name in ("ensemble", "evaluate", "make_submission", "report"):
        run_main(name, cfg)
    return cfg


def make_source(folder, split, name):
    """A file in place of a DICOM, whose cached image is made up."""
    path = folder / f"stage_2_{split}_images" / f"{name}.dcm"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{split} {name}")
    return path


def make_trained_fold(cfg, fold):
    make_fold(cfg, fold, ())
    folder = cfg.fold_dir(fold)
    content = {
        "manifest": current_manifest(cfg, "train", fold),
        "fold": fold,
        "history": [{}] * cfg.epochs,
        "model": {},
    }
    save_checkpoint(content, folder / "best.pt")
    save_checkpoint({**content, "best": content_hash(folder / "best.pt")}, folder / "last.pt")
    record(cfg, "train", fold)


def make_tables(cfg, fold, labels, test):
    missing = dict.fromkeys(("x", "y", "width", "height"), np.nan)
    unlabelled = pd.DataFrame({"patientId": test, "Target": 0, **missing})
    for name, images in (("valid", labels), ("test", unlabelled)):
        boxes = make_predictions(images, seed=fold)
        boxes = boxes.assign(width=boxes["width"].clip(50, SIDE), height=boxes["height"].clip(50, SIDE), view="plain")
        boxes.to_csv(cfg.fold_dir(fold) / f"{name}.csv", index=False)
        shares = {"p_normal": 0.25, "p_not_normal": 0.25, "p_opacity": 0.5}
        boxes[["patientId", "view"]].assign(**shares).to_csv(cfg.fold_dir(fold) / f"{name}_images.csv", index=False)
    record(cfg, "predict", fold)


def copy_workspace(source, target):
    """A copy made of hard links, since commands replace files and never write into them."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".lock"))


def run_main(name, cfg):
    """A command's main with this config, in this process."""
    runpy.run_path(str(SRC / f"{name}.py"))["main"](cfg)


def without_networks(monkeypatch):
    """Replace training and prediction: folds run in this process, and the network repeats existing tables."""

    def repeat(cfg, model, ids, split, title):
        folder, name = cfg.fold_dir(int(title.split()[1])), title.split()[2]
        return [pd.read_csv(folder / f"{table}.csv", dtype={"patientId": str}) for table in (name, f"{name}_images")]

    class Network:
        def load_state_dict(self, state):
            pass

    def run_folds(function, todo):
        for cfg, fold in todo:
            function(cfg, fold)
        return {}

    def predict_dataset(cfg, model, dataset, ids, title):
        box = {"confidence": 0.5, "x": 1, "y": 1, "width": 9, "height": 9}
        return (pd.DataFrame({"patientId": ids, "view": "plain", **more}) for more in (box, {"p_opacity": 0.5}))

    def embed(cfg, dataset):
        predictor.load_model(cfg, cfg.fold_list[0])
        return np.random.default_rng(0).normal(size=(len(dataset), 3))

    monkeypatch.setattr(folds, "run_folds", run_folds)
    monkeypatch.setattr(new_images, "predict_dataset", predict_dataset)
    for module in (new_images, outliers):
        monkeypatch.setattr(module, "embed", embed)
    monkeypatch.setattr(predictor, "build_model", lambda cfg, weights: Network())
    monkeypatch.setattr(predictor, "predict_images", repeat)
