"""Folds in processes of their own: one that fails or is killed leaves the others alone; each has a GPU of its own."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.execution.folds import run_folds
from rsna.execution.processes import count_workers

WHAT = ["first", "mistake", "bug", "killed", "last"]


def work(cfg, fold):
    """What a fold does, by its number."""
    what = WHAT[fold]
    if what == "mistake":
        raise UserError("this is wrong; do that")
    if what == "bug":
        raise ZeroDivisionError
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    Path(cfg.root, what).write_text(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_fold_that_fails_leaves_the_others_alone(tmp_path, monkeypatch, capfd, jobs):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    cfg = parse([f"root={tmp_path}", f"jobs={jobs}"])
    failed = run_folds(work, [(cfg, fold) for fold in range(5)])
    assert failed == {
        ("resnet34", 1): "stopped with an error, see above",
        ("resnet34", 2): "stopped with an error, see above",
        ("resnet34", 3): "was killed by SIGKILL, perhaps for lack of memory",
    }
    said = capfd.readouterr().err
    assert "error: this is wrong; do that\n" in said
    assert "ZeroDivisionError" in said, "a bug shows where it is"
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    assert (tmp_path / "first").read_text() == (tmp_path / "last").read_text() == str(threads)


def note_device(cfg, fold):
    """Write which device the fold got, and when it worked."""
    began = time.monotonic()
    time.sleep(0.2)
    Path(cfg.root, str(fold)).write_text(f"{cfg.device} {cfg.jobs} {began} {time.monotonic()}")


@pytest.mark.parametrize(
    ("words", "gpus", "devices", "at_once"),
    [
        (["jobs=-1"], 3, {"cuda:0", "cuda:1", "cuda:2"}, 3),
        (["jobs=2"], 4, {"cuda:0", "cuda:1"}, 2),
        (["jobs=4"], 2, {"cuda:0", "cuda:1"}, 4),
        (["jobs=-1"], 1, {"auto"}, 1),
        (["jobs=-1"], 0, {"auto"}, 1),
        (["jobs=2", "device=cuda:1"], 4, {"cuda:1"}, 2),
        (["jobs=2"], 0, {"auto"}, 2),
    ],
)
def test_folds_are_spread_over_the_gpus(tmp_path, monkeypatch, words, gpus, devices, at_once):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    cfg = parse([f"root={tmp_path}", *words])
    assert run_folds(note_device, [(cfg, fold) for fold in range(4)], lambda: gpus) == {}
    rows = [(tmp_path / str(fold)).read_text().split() for fold in range(4)]
    assert {device for device, *_ in rows} == devices
    assert {jobs for _, jobs, *_ in rows} == {str(at_once)}
    if gpus > 1 and at_once <= gpus and "device" not in str(words):
        for device in devices:
            spans = sorted((float(began), float(ended)) for name, _, began, ended in rows if name == device)
            for (_, ended), (began, _) in pairwise(spans):
                assert ended <= began, "never two folds on one GPU at the same time"


def test_one_job_leaves_the_gpus_uncounted(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert run_folds(note_device, [(parse([f"root={tmp_path}"]), 0)], lambda: pytest.fail("counted")) == {}


def test_processes_are_shared_by_jobs():
    cores = count_workers(-1)
    assert count_workers(-1, 2) == max(1, cores // 2)
    assert count_workers(-1, 10 * cores) == 1
    assert count_workers(3, 2) == 3
