"""Jobs in processes of their own: one that fails or is killed leaves the others alone."""

import os
import signal
import time
from pathlib import Path

import pytest

from rsna.core.errors import UserError
from rsna.core.executor import count_workers, run_jobs


def job(folder, what):
    if what == "mistake":
        raise UserError("this is wrong; do that")
    if what == "bug":
        raise ZeroDivisionError
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    Path(folder, what).write_text(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("at_once", [1, 3])
def test_failures_stay_alone(tmp_path, monkeypatch, capfd, at_once):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    names = ["first", "mistake", "bug", "killed", "last"]
    failed = run_jobs(job, {name: (tmp_path, name) for name in names}, at_once)
    assert failed == {
        "mistake": "stopped with an error, see above",
        "bug": "stopped with an error, see above",
        "killed": "was killed by SIGKILL, perhaps for lack of memory",
    }
    said = capfd.readouterr().err
    assert "error: this is wrong; do that\n" in said
    assert "ZeroDivisionError" in said, "a bug shows where it is"
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    assert (tmp_path / "first").read_text() == (tmp_path / "last").read_text() == str(threads)


def test_processes_are_shared_by_jobs():
    cores = count_workers(-1)
    assert count_workers(-1, 2) == max(1, cores // 2)
    assert count_workers(-1, 10 * cores) == 1
    assert count_workers(3, 2) == 3
