"""All commands on a small synthetic competition: outputs, messages, errors, and no work done twice."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from helpers.sequence import ROOT, SMALL, STAGES, copy_of, refused, stage

from rsna.core.files import content_hash


def test_no_name_of_a_patient_is_in_any_output(world, secrets):
    root, message = world
    outputs = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / "input")]
    content = {str(path): path.read_bytes() for path in outputs}
    content |= {name: (done.stdout + done.stderr).encode() for name, done in message.items()}
    assert len(content) > 60
    for name, text in content.items():
        for secret in secrets.values():
            assert secret.encode() not in text, name


def test_output_files_have_the_promised_form(world):
    root, _ = world
    folds = pd.read_csv(root / "folds" / "folds.csv")
    assert folds.columns.tolist() == ["patientId", "fold", "target", "n_boxes", "class", "view", "sex", "age", "group"]
    assert folds.groupby("group")["fold"].nunique().max() == 1
    index = pd.read_csv(root / "working" / "png_64" / "index.csv")
    assert (index["status"] == "ok").all()
    assert len(index) == 32
    run = root / "working" / "tiny"
    columns = ["patientId", "confidence", "x", "y", "width", "height"]
    for fold in (0, 1):
        valid = pd.read_csv(run / f"fold{fold}" / "valid.csv")
        assert valid.columns.tolist() == ["patientId", "view", *columns[1:]]
        assert valid["view"].unique().tolist() == ["plain", "hflip"]
        assert set(valid["patientId"]) == set(folds.loc[folds["fold"] == fold, "patientId"])
        history = pd.read_csv(run / f"fold{fold}" / "history.csv")
        parts = [f"{side}_{part}" for side in ("train", "valid") for part in ("class", "image", "box", "location")]
        assert history.columns.tolist() == [
            *("epoch", "phase", "lr", "train_loss", "valid_loss", *parts),
            *("accuracy", "L1", "L1_post", "AUC", "IoU", "mAP"),
        ]
        checkpoint = torch.load(run / f"fold{fold}" / "best.pt", weights_only=True)
        assert checkpoint["manifest"]["settings"]["size"] == 64
        assert "size: 64" in (run / f"fold{fold}" / "config.yaml").read_text()
    assert pd.read_csv(run / "oof.csv").columns.tolist() == columns
    assert pd.read_csv(run / "oof_images.csv").columns.tolist() == [
        "patientId",
        "p_normal",
        "p_not_normal",
        "p_opacity",
    ]
    assert sorted(pd.read_csv(run / "oof.csv")["patientId"].unique()) == sorted(folds["patientId"])
    sample = pd.read_csv(root / "input" / "stage_2_sample_submission.csv")
    submission = pd.read_csv(root / "submissions" / "tiny.csv")
    assert submission["patientId"].tolist() == sample["patientId"].tolist()
    assert submission.columns.tolist() == ["patientId", "PredictionString"]
    boxes = " ".join(submission["PredictionString"].dropna()).split()
    assert len(boxes) % 5 == 0
    assert json.loads((root / "submissions" / "tiny.json").read_text())["images"] == 8


def test_what_the_user_reads(world):
    root, outputs = world
    assert re.search(r"32 images written, 0 current, 0 refused", outputs["cache_images"].stdout)
    for word in ("train_loss", "valid_loss", "AUC", "IoU", "mAP"):
        assert word in outputs["train"].stdout
    assert "none of them in more than one fold" in outputs["make_folds"].stdout
    assert "next: ./run.sh make_folds" in outputs["make_demo"].stdout
    assert "size=64" in outputs["make_demo"].stdout.splitlines()[-1]
    assert "kaggle competitions submit -c rsna-pneumonia-detection-challenge" in outputs["make_submission"].stdout
    table = outputs["summary"].stdout
    lines = table.splitlines()
    assert max(map(len, lines[:-3])) <= 80
    assert re.match(r"  median box where the model puts one +8", lines[-4]), "the table, then three lines"
    for line in ("fold 0", "fold 1", "out of fold", "submission, test images", "no boxes", "median box on every image"):
        assert line in table
    assert str(root / "submissions" / "tiny.csv") in table
    assert str(root / "working" / "tiny" / "report.html") in outputs["report"].stdout
    assert len(pd.read_csv(root / "working" / "tiny" / "fold0" / "seconds.csv")) == 2


def test_numbers_agree_from_stage_to_stage(world, tmp_path):
    root, message = copy_of(world, tmp_path), world[1]
    scores = json.loads((root / "working" / "tiny" / "scores.json").read_text())
    again = stage("evaluate", root, f"predictions={root}/working/tiny/oof.csv", f"threshold={scores['threshold']:.10f}")
    assert f"mAP {scores['mAP']:.4f}" in again.stdout
    for text in (message["evaluate"].stdout, again.stdout):
        assert f"AP50 {scores['AP50']:.4f}" in text
        assert f"mean: {scores['FROC']['mean']:.3f}" in text
    test = stage("evaluate", root, f"predictions={root}/submissions/tiny.csv", f"labels={root}/test_labels.csv")
    score = re.search(r"mAP (\d\.\d{4}), 95", test.stdout)[1]
    assert re.search(rf"submission, test images\s+8\s+{score}", message["summary"].stdout)


def test_a_second_run_of_each_command_does_nothing(world, tmp_path):
    root = copy_of(world, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (root / "working" / "tiny").rglob("*.pt")}
    assert "32 images current" in stage("cache_images", root).stdout
    assert "train: fold 0, 1 current" in stage("train", root).stdout
    for name in ("predict", "ensemble", "evaluate", "make_submission"):
        output = stage(name, root).stdout
        assert "current" in output
        assert output.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_missing_fold_is_an_error_that_names_the_command(world, tmp_path):
    root = copy_of(world, tmp_path)
    shutil.rmtree(root / "working/tiny/fold1")
    failed = stage("ensemble", root, check=False)
    assert failed.returncode == 1
    assert "no finished predictions of fold 1" in failed.stderr
    assert "./run.sh train" in failed.stderr
    assert "name=tiny" in failed.stderr
    alone = stage("ensemble", root, "fold=0")
    assert "12 out-of-fold" in alone.stdout
    output = stage("evaluate", root, "fold=0").stdout
    assert "takes at least two folds" in output
    assert "median box on every image 0.0000" not in output
    stage("make_submission", root, "fold=0")
    assert "nan" not in stage("summary", root, "fold=0").stdout


def test_tables_of_an_interrupted_predict_are_not_used(world, tmp_path):
    """The process died while it wrote tables of other views: no manifest may be valid for them."""
    root = copy_of(world, tmp_path)
    fold = root / "working/tiny/fold0"
    before = (fold / "valid.csv").read_bytes()
    stage("predict", root, "fold=0", "tta=plain")
    assert (fold / "valid.csv").read_bytes() != before
    (fold / "predict.json").unlink()
    stage("predict", root, "fold=0")
    assert (fold / "valid.csv").read_bytes() == before


def test_predictions_of_other_folds_are_refused(world, tmp_path):
    root = copy_of(world, tmp_path)
    folds = pd.read_csv(root / "folds/folds.csv")
    folds.assign(fold=1 - folds["fold"]).to_csv(root / "folds/folds.csv", index=False)
    failed = stage("evaluate", root, check=False)
    assert failed.returncode == 1
    assert (
        "folds.csv: not as make_folds wrote it; restore it, or to accept it run: ./run.sh make_folds" in failed.stderr
    )


def test_other_settings_are_refused_by_name(world, tmp_path):
    root = copy_of(world, tmp_path)
    failed = stage("train", root, "lr=0.01", check=False)
    assert failed.returncode == 1
    assert "lr: 0.001 -> 0.01" in failed.stderr
    failed = stage("make_folds", root, "seed=7", check=False)
    assert failed.returncode == 1
    assert "seed: 42 -> 7" in failed.stderr
    failed = stage("predict", root, "encoder=resnet34", check=False)
    assert failed.returncode == 1
    assert "encoder: resnet18 -> resnet34" in failed.stderr
    labels = root / "input" / "stage_2_train_labels.csv"
    labels.write_text(labels.read_text() + "\n")
    for name in ("make_folds", "train"):
        failed = stage(name, root, check=False)
        assert failed.returncode == 1
        assert re.search(r"stage_2_train_labels.csv:? \(?\w{16} -> \w{16}", failed.stderr)


@contextmanager
def edited(path, change):
    """Change a file's bytes during the block; as a new file, since the checkpoints of a copy are links."""
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(change(before))
    yield
    path.write_bytes(before)


def test_a_replaced_or_edited_file_is_named(world, tmp_path):
    """Each of these would otherwise silently give wrong numbers."""
    root = copy_of(world, tmp_path)
    run, cache = root / "working/tiny", root / "working/png_64"
    other = {name: (run / "fold1" / name).read_bytes() for name in ("best.pt", "last.pt", "valid.csv")}
    with edited(run / "fold0/best.pt", lambda _: other["best.pt"]):
        assert "fold0/best.pt: not as train wrote it" in refused("predict", root)
    with edited(run / "fold0/last.pt", lambda _: other["last.pt"]):
        assert "fold: 1 -> 0" in refused("train", root)
    with edited(run / "fold0/valid.csv", lambda _: other["valid.csv"]):
        assert "fold0/valid.csv: not as predict wrote it" in refused("ensemble", root)
    stage("predict", root, "fold=0", "tta=plain")
    for name in ("evaluate", "make_submission", "report"):
        assert "made from another tiny/fold0/valid.csv" in refused(name, root, "tta=plain")
    stage("predict", root, "fold=0")
    for name in ("oof.csv", "test.csv"):
        with edited(run / name, lambda content: content.replace(b",0.", b",0.0")):
            assert f"{name}: not as ensemble wrote it" in refused("evaluate", root)
    with edited(run / "scores.json", lambda _: b'{"threshold": NaN}'):
        assert "scores.json: not as evaluate wrote it" in refused("make_submission", root)
    index = pd.read_csv(cache / "index.csv")
    with edited(cache / "index.csv", lambda _: index.assign(scale_x=index["scale_x"] * 3).to_csv(index=False).encode()):
        assert "index.csv, patientId" in refused("train", root, "name=new")
    picture = sorted((cache / "train").glob("*.png"))[0]
    small = cv2.imencode(".png", np.zeros((1, 64), np.uint8))[1].tobytes()
    with edited(picture, lambda _: small):
        assert f"{picture}: 64 x 1 pixels, not 64 x 64" in refused("train", root, "name=new")
    folds = pd.read_csv(root / "folds/folds.csv")
    for column, value, message in (
        ("target", 1 - folds["target"], "n_boxes does not fit target"),
        ("class", "Normal", "class is not that of the labels"),
        ("fold", folds["fold"].where(folds.index > 0), "fold is not 0, 1, 2"),
        ("patientId", folds["patientId"].iloc[0], "the patientId was there before"),
        ("age", "old", "age is not a number"),
    ):
        with edited(
            root / "folds/folds.csv", lambda _, c=column, v=value: folds.assign(**{c: v}).to_csv(index=False).encode()
        ):
            assert message in refused("make_folds", root)


def test_missing_folds_or_index_are_named_and_results_stay_current(world, tmp_path):
    root = copy_of(world, tmp_path)
    index, folds = root / "working/png_64/index.csv", root / "folds/folds.csv"
    stamps = {path: path.read_bytes() for path in root.rglob("predict.json")}
    assert len(stamps) == 2
    for path, maker, names in (
        (folds, "make_folds", ("train", "predict", "ensemble", "evaluate", "report")),
        (index, "cache_images", ("train", "predict", "make_submission", "report")),
    ):
        path.rename(tmp_path / path.name)
        for name in names:
            message = refused(name, root, *(["name=new"] if name == "train" else []))
            assert f"{path}: no such file; run" in message, name
            assert maker in message, name
        (tmp_path / path.name).rename(path)
    assert {path: path.read_bytes() for path in stamps} == stamps
    assert "fold 0, 1 current" in stage("predict", root).stdout


def test_a_short_sample_submission_is_reported(world, tmp_path):
    root = copy_of(world, tmp_path)
    sample = root / "input/stage_2_sample_submission.csv"
    sample.write_text("".join(sample.read_text().splitlines(keepends=True)[:5]))
    for name in ("predict", "ensemble", "evaluate"):
        stage(name, root)
    assert "WARNING: 4 test images" in stage("make_submission", root).stdout
    assert "WARNING: without any box" in stage("make_submission", root, "threshold=1").stdout


def test_two_runs_fuse(world, tmp_path):
    root = copy_of(world, tmp_path)
    shutil.copytree(root / "working/tiny", root / "working/twin")
    stage("ensemble", root, "name=both", "runs=tiny,twin")
    for table in ("oof", "test"):
        both, one = (pd.read_csv(root / f"working/{name}/{table}.csv") for name in ("both", "tiny"))
        pd.testing.assert_frame_equal(both, one)
    stage("evaluate", root, "name=both")
    stage("make_submission", root, "name=both")
    both, one = (pd.read_csv(root / f"submissions/{name}.csv") for name in ("both", "tiny"))
    pd.testing.assert_frame_equal(both, one)


def test_a_broken_test_image_gets_no_box_and_is_reported(world, tmp_path):
    root = copy_of(world, tmp_path)
    broken = sorted((root / "input/stage_2_test_images").glob("*.dcm"))[0]
    broken.write_bytes(broken.read_bytes()[:3000])
    cached = stage("cache_images", root, check=False)
    assert "1 refused" in cached.stdout
    assert broken.stem in cached.stdout + cached.stderr
    output = stage("predict", root)
    assert "1 images could not be decoded and get no box" in output.stdout
    for name in ("ensemble", "evaluate", "make_submission"):
        stage(name, root)
    submission = pd.read_csv(root / "submissions/tiny.csv").set_index("patientId")
    assert pd.isna(submission.loc[broken.stem, "PredictionString"])


def test_views_that_lower_the_score_are_reported(world, tmp_path):
    root = copy_of(world, tmp_path)
    labels = pd.read_csv(root / "input/stage_2_train_labels.csv")
    perfect = labels.rename(columns={"Target": "confidence"})[["patientId", "confidence", "x", "y", "width", "height"]]
    perfect["confidence"] = perfect["confidence"].where(perfect["confidence"] == 1).astype(float)
    perfect.to_csv(root / "working/tiny/oof_no_tta.csv", index=False)
    stamp = json.loads((root / "working/tiny/ensemble.json").read_text())
    stamp["outputs"]["oof_no_tta.csv"] = content_hash(root / "working/tiny/oof_no_tta.csv")
    (root / "working/tiny/ensemble.json").write_text(json.dumps(stamp))
    assert (
        "NOTE: test-time augmentation costs here: the plain view alone scores 1.0000" in stage("evaluate", root).stdout
    )


def test_run_sh_from_elsewhere_through_a_link(world, tmp_path):
    """From any folder, through a symlink, with the active Python, for all commands or one."""
    root = copy_of(world, tmp_path)
    link = tmp_path / "link to run.sh"
    link.symlink_to(ROOT / "run.sh")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*words):
        return subprocess.run(
            [str(link), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    whole = run("fold=0..1", f"root={root}", *SMALL)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert [line[3:] for line in whole.stdout.splitlines() if line.startswith("== ")] == STAGES
    assert run("evaluate", f"root={root}", *SMALL).returncode == 0
    assert "demo_train=" in run("help", "all").stdout
    unknown = run("trian", "fold=2")
    assert unknown.returncode == 2
    assert "there is no command 'trian'" in unknown.stderr
    wrong = run("fold=0", "sizee=3")
    assert wrong.returncode == 2
    assert "did you mean size" in wrong.stderr
