"""Run commands on a small synthetic competition, and copy a workspace in which they ran."""

import os
import shutil
from pathlib import Path

import torch
from helpers.commands import run_command

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    *("make_folds", "cache_images", "train", "predict", "ensemble", "evaluate", "make_submission", "report", "summary")
]
SMALL = [
    "size=64",
    "n_folds=2",
    "epochs=2",
    "batch_size=8",
    "encoder=resnet18",
    "weights=none",
    "bootstrap=50",
    "name=tiny",
]


def stage(name, root, *words, check=True):
    done = run_command(name, f"root={root}", *SMALL, *words)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(name, root, *words):
    failed = stage(name, root, *words, check=False)
    assert failed.returncode == 1, failed.stdout
    return failed.stderr


def copy_of(world, tmp_path):
    """A copy that may be changed. Checkpoints, its largest files, are linked: commands replace files."""
    root = tmp_path / "copy"
    shutil.copytree(world[0], root, copy_function=link_checkpoint)
    return root


def link_checkpoint(source, target):
    (os.link if source.endswith(".pt") else shutil.copy2)(source, target)


def equal_weights(first, second):
    first, second = (torch.load(path, weights_only=True)["model"] for path in (first, second))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
