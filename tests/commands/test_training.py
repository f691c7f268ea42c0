"""Training as a command: one fold or several, killed and resumed, in another precision, failing."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch
from helpers.sequence import ROOT, SMALL, copy_of, equal_weights, refused, stage


def test_a_fold_trained_alone_equals_the_fold_trained_with_others(world, tmp_path):
    root = copy_of(world, tmp_path)
    stage("train", root, "name=alone", "fold=1")
    assert equal_weights(root / "working/alone/fold1/last.pt", root / "working/tiny/fold1/last.pt")


def test_a_killed_training_resumes_to_the_same_weights(world, tmp_path):
    root = copy_of(world, tmp_path)
    fold = root / "working" / "killed" / "fold0"
    command = [sys.executable, str(ROOT / "src" / "train.py"), f"root={root}", *SMALL, "name=killed", "fold=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (fold / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate()[1] == b"", "nor do the processes that it started say anything"
    assert len(torch.load(fold / "last.pt", weights_only=True)["history"]) == 1, "killed too late to tell anything"
    again = stage("train", root, "name=killed", "fold=0")
    assert "resumes after epoch 1 of 2" in again.stdout
    assert equal_weights(fold / "last.pt", root / "working/tiny/fold0/last.pt")
    assert (fold / "history.csv").read_bytes() == (root / "working/tiny/fold0/history.csv").read_bytes()


def test_unfinished_training_is_not_used_for_prediction(world, tmp_path):
    root = copy_of(world, tmp_path)
    history = root / "working/tiny/fold0/history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    (root / "working/tiny/fold0/predict.json").unlink()
    failed = stage("predict", root, "fold=0", check=False)
    assert failed.returncode == 1
    assert "history.csv: not as train wrote it; restore it, or give this run another name=" in failed.stderr
    stage("train", root, "fold=0")
    stage("predict", root, "fold=0")


def test_another_precision_remakes_tables_but_does_not_continue_training(world, tmp_path):
    root = copy_of(world, tmp_path)
    tables = []
    for precision in ("float32", "bfloat16"):
        assert "predicted" in stage("predict", root, "fold=0", f"precision={precision}").stdout
        table = pd.read_csv(root / "working" / "tiny" / "fold0" / "valid.csv")
        tables.append(table[table["view"] == "plain"])
    assert "current" in stage("predict", root, "fold=0", "precision=bfloat16").stdout
    confidences = [table.groupby("patientId")["confidence"].max().fillna(0).to_numpy() for table in tables]
    assert not np.array_equal(*confidences)
    assert np.abs(np.subtract(*confidences)).max() < 0.05
    assert "precision: auto -> float32" in refused("train", root, "precision=float32")


def test_a_loss_that_is_not_finite_fails_the_command(world, tmp_path):
    root = copy_of(world, tmp_path)
    message = refused("train", root, "name=away", "fold=0", "lr=10", "grad_clip=0", "epochs=1")
    assert "is not finite" in message
    assert "lower the learning rates" in message


def test_a_failing_fold_does_not_stop_the_others(world, tmp_path):
    root = copy_of(world, tmp_path)
    shutil.copytree(root / "working/tiny", root / "working/half")
    (root / "working/half/fold0/last.pt").write_bytes(b"broken")
    shutil.rmtree(root / "working/half/fold1")
    failed = stage("train", root, "name=half", "jobs=2", check=False)
    assert failed.returncode == 1
    assert "last.pt: not a checkpoint" in failed.stderr
    assert (
        "fold 0 stopped with an error, see above. The other folds are kept. Once that is fixed, run: ./run.sh train"
        in failed.stderr
    )
    assert "fold=0" in failed.stderr.splitlines()[-1]
    assert equal_weights(root / "working/half/fold1/last.pt", root / "working/tiny/fold1/last.pt")
