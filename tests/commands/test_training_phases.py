"""Training in phases and by the post's recipe; commands that show a trained run."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers.commands import run_command
from helpers.sequence import ROOT, SMALL, copy_of, stage

PHASES = "phases=head:1:1e-3:one_cycle_legacy,last2:2:1e-5/1e-4/1e-3:cosine"
FASTAI = ["preset=fastai", "size=64", "name=post", "rotate=10"]


def words_without_epochs():
    return [word for word in SMALL if not word.startswith(("epochs", "name"))]


def train_phases(root, *words):
    done = run_command("train", f"root={root}", *words_without_epochs(), *words)
    assert done.returncode == 0, done.stderr
    return done


def test_phases_resume_after_a_kill_with_the_same_result(world, tmp_path):
    """Killed inside the second phase and at its start: the same weights as without a kill."""
    root = copy_of(world, tmp_path)
    # bfloat16 even if the processor emulates it; the other tests of resuming use the machine's default
    words = [PHASES, "model=fastai", "num_classes=2", "fold=0", "precision=bfloat16"]
    train_phases(root, "name=whole", *words)
    whole = torch.load(root / "working/whole/fold0/last.pt", weights_only=True)
    history = pd.read_csv(root / "working/whole/fold0/history.csv")
    assert history["phase"].tolist() == ["head", "last2", "last2"]
    assert history["lr"].tolist() == pytest.approx([1e-3 / 32, 1e-3, 0.5e-3])
    folder = root / "working/parts/fold0"
    for epochs in (1, 2):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "src/train.py"), f"root={root}", *words_without_epochs(), "name=parts", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in process.stdout:
            if f"epoch {epochs}/3" in line:
                break
        # at once, because the rest takes less than a second
        process.kill()
        process.communicate()  # the output ends when the fold's process, which holds the lock, has ended too
    again = train_phases(root, "name=parts", *words)
    assert re.search(r"resumes after epoch [12] of 3", again.stdout), again.stdout
    parts = torch.load(folder / "last.pt", weights_only=True)
    assert all(torch.equal(parts["model"][key], value) for key, value in whole["model"].items())


def test_the_posts_recipe_end_to_end(world, tmp_path):
    root = copy_of(world, tmp_path)
    words = [
        *FASTAI,
        "phases=head:1:1e-3:one_cycle_legacy,last2:1:2e-6/2e-5/2e-4:one_cycle_legacy,all:1:1e-6/1e-5/1e-4:one_cycle_legacy",
    ]
    small = [word for word in words_without_epochs() if not word.startswith("size")]
    for name in ("train", "predict", "ensemble", "evaluate", "show_history"):
        done = run_command(name, f"root={root}", *small, *words)
        assert done.returncode == 0, done.stderr
    assert "'no opacity' for every image: 0.7500" in done.stdout
    assert "(fast.ai post: 39.1)" in done.stdout
    assert (root / "working/post/history.png").stat().st_size > 10_000


def test_pictures_and_tables_of_a_trained_run(world, tmp_path):
    root = copy_of(world, tmp_path)
    run = root / "working/tiny"
    before = {path: path.read_bytes() for path in run.rglob("fold*/*") if path.is_file()}
    for name, picture in (("results", "results.png"), ("batch", "batch.png"), ("history", "history.png")):
        output = stage(f"show_{name}", root).stdout
        assert str(run / picture) in output
        assert (run / picture).stat().st_size > 10_000
    assert "training has finished, so the test starts from the initial weights" in stage("find_lr", root).stdout
    tested = stage("find_lr", root, "epochs=3").stdout
    assert "from " + str(run / "fold0/last.pt") in tested
    assert re.search(r"falls most steeply at \d\.\de-0\d", tested)
    table = pd.read_csv(run / "find_lr.csv")
    assert table["lr"].is_monotonic_increasing
    assert {path: path.read_bytes() for path in before} == before, "looking changes nothing"
    fresh = stage("find_lr", root, "name=fresh", PHASES, "epochs=2", check=False)
    assert "epochs= has no effect here" in fresh.stderr
    layers = stage("show_model", root).stdout
    assert "[2, 1, 64, 64]" in layers
    assert "the last one flattened: 2,048 numbers" in layers
    assert re.search(r"phase 1: all, 2 epochs, onecycle, ([\d,]+) of \1 parameters train", layers)
