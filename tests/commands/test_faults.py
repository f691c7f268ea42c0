"""Kills, full disks, read-only input and second processes: nothing is lost, no partial file is used."""

import contextlib
import hashlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import run_command

from rsna.core.locks import file_lock

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["make_demo", "make_folds", "cache_images", "train", "predict", "ensemble", "evaluate", "make_submission"]
WORDS = [
    *("size=64", "n_folds=2", "epochs=3", "batch_size=8", "encoder=mobilenet_v2", "weights=none", "bootstrap=50"),
    *("demo_train=24", "demo_test=8", "name=run"),
]


def command(stage, root, *words):
    return [sys.executable, str(ROOT / "src" / f"{stage}.py"), f"root={root}", *WORDS, *words]


def run(stage, root, *words):
    return run_command(stage, f"root={root}", *WORDS, *words)


def contents(root):
    """The hash of every file below `root`, except for locks, which hold a process id, and files that hold times."""
    skipped = (".lock", "seconds.csv", ".seen.csv")
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in skipped]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def replace(target, source):
    """Make `target` a copy of the tree `source`, times included: the index of the cache holds the sources' times."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


class Reference:
    """An undisturbed run of all stages: its folder before each stage and at the end, and the seconds of each stage."""

    def __init__(self, folder):
        # a name that is not valid UTF-8 and looks like an OmegaConf interpolation
        self.root, self.states, self.seconds = folder / "workspace ${x} caf\udce9", folder / "states", {}
        self.root.mkdir()
        for stage in STAGES:
            shutil.copytree(self.root, self.states / stage)
            start = time.monotonic()
            # a new Python process, like those that are killed
            done = subprocess.run(command(stage, self.root), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            self.seconds[stage] = time.monotonic() - start
        shutil.copytree(self.root, self.states / "end")
        self.end = contents(self.root)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("faults"))


def wait_for_group(group, seconds=30):
    """Return once no process of the group is left; fail if one outlives the killed one by this long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"processes of the killed stage still run after {seconds} s")


def kill_after(stage, root, seconds):
    """Start a stage and kill its main process then; True if it was still at work."""
    process = subprocess.Popen(
        command(stage, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    process.kill()
    status = process.wait()
    wait_for_group(process.pid)
    return status == -signal.SIGKILL


def test_a_killed_stage_run_again_gives_the_same_result(reference, request):
    """--kills=50 for more kills; longer stages are killed more often."""
    rng = random.Random(1)
    wanted = max(request.config.getoption("--kills"), len(STAGES))
    extra = rng.choices(STAGES, [reference.seconds[stage] for stage in STAGES], k=wanted - len(STAGES))
    replace(reference.root, reference.states / "make_demo")
    hits = 0
    for stage in STAGES:
        for _ in range(1 + extra.count(stage)):
            # the first third of the time goes into imports, when no file can be left incomplete
            hit = kill_after(stage, reference.root, reference.seconds[stage] * rng.uniform(0.33, 1.0))
            hits += hit
            # the reference may have run while the machine was busy
            reference.seconds[stage] *= 1 if hit else 0.8
        done = run(stage, reference.root)
        assert done.returncode == 0, done.stdout + done.stderr
        if stage == "make_demo":
            before = reference.states / "make_folds"
            assert contents(reference.root) == contents(before)
            replace(reference.root, before)
    print(f"{hits} of {wanted} kills hit a stage at work")
    assert hits >= wanted / 4
    assert contents(reference.root) == reference.end


# Runs in its own user and mount namespaces. $1: the workspace, $2: its state before the stage, $3: the KiB that
# are left free, the rest: the stage's command. Finally the workspace is copied to $4, as the mount ends with the shell.
ON_A_FULL_DISK = """
set -u
root=$1 state=$2 free=$3 end=$4; shift 4
mount -t tmpfs -o size=2g none "$root" && cp -a "$state/." "$root" || exit 99
dd if=/dev/zero of="$root/filler" bs=1M status=none 2>/dev/null
[ "$free" = 0 ] || truncate -s -"${free}K" "$root/filler"
"$@"; echo "FULL $?"
rm "$root/filler"
"$@"; echo "ROOM $?"
cp -a "$root/." "$end"
"""


def in_namespace(script, *words):
    """Run a bash script as root in new user and mount namespaces; skip if the machine does not allow that."""
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not let a test mount a small disk (unshare -rm)")
    shell = ["unshare", "-rm", "bash", "-c", script, "bash", *map(str, words)]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


# the disk is full at the first file that a command writes, or at a later one
FULL_DISKS = [*((stage, 0) for stage in STAGES), ("cache_images", 100), ("train", 20_000), ("predict", 8)]
TELLING = {("cache_images", 100), ("train", 20_000), ("make_submission", 0)}


@pytest.mark.parametrize(
    ("stage", "free_kib"),
    [pytest.param(*disk, marks=[] if disk in TELLING else pytest.mark.slow) for disk in FULL_DISKS],
)
def test_a_full_disk_stops_a_command_which_resumes_once_there_is_room(reference, tmp_path, stage, free_kib):
    reference.root.mkdir(exist_ok=True)
    words = (reference.root, reference.states / stage, free_kib, tmp_path, *command(stage, reference.root))
    done = in_namespace(ON_A_FULL_DISK, *words)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    assert "FULL 1" in output, output
    assert "ROOM 0" in output, output
    assert re.search(r"error: .*No space left on device", output), output
    assert "make room" in output
    after = STAGES[STAGES.index(stage) + 1] if stage != STAGES[-1] else "end"
    assert contents(tmp_path) == contents(reference.states / after)


@pytest.mark.slow  # the notebooks of tests/kaggle also have a read-only input
def test_input_is_only_read(reference):
    """The file system is mounted read-only, as on Kaggle; file permissions would not stop root."""
    replace(reference.root, reference.states / "make_folds")
    stages = "; ".join(shlex.join(command(stage, reference.root)) + " || exit" for stage in STAGES[1:])
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/x" 2>/dev/null || exit 99; '
    done = in_namespace(script + stages, reference.root / "input")
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(reference.root) == reference.end


@pytest.mark.parametrize("stage", ["train", "predict", "ensemble", "evaluate", "make_submission"])
def test_a_second_process_on_the_same_run_stops_and_says_so(reference, stage):
    """This process holds the lock, in place of a first command."""
    replace(reference.root, reference.states / "end")
    run_dir = reference.root / "working" / "run"
    if stage == "train":
        (run_dir / "fold1" / "train.json").unlink()  # if everything is current, nothing is locked
    before = contents(reference.root)
    folder = run_dir / "fold1" if stage in ("train", "predict") else run_dir
    with file_lock(folder):
        second = run(stage, reference.root)
    assert second.returncode == 1
    assert f"{folder}: another process {os.getpid()} is at work there".replace("\udce9", r"\udce9") in second.stderr
    assert "Traceback" not in second.stderr
    assert contents(reference.root) == before
    assert run(stage, reference.root).returncode == 0


def test_two_trainings_at_the_same_time_give_the_result_of_one(reference):
    replace(reference.root, reference.states / "train")
    both = [
        subprocess.Popen(command("train", reference.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    # one finds fold 0 locked, waits some seconds and continues with fold 1, where the other may arrive in the meantime
    refused = ["is at work there" in err for _, err in outputs]
    assert [process.returncode for process in both] == [int(value) for value in refused], outputs
    assert contents(reference.root) == contents(reference.states / "predict")


PAIRS = [(first, second) for k, first in enumerate(STAGES) for second in STAGES[k:]]
SOME_PAIRS = [("ensemble", "evaluate"), ("evaluate", "make_submission")]


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*pair, marks=[] if pair in SOME_PAIRS else pytest.mark.slow) for pair in PAIRS]
)
def test_two_commands_at_the_same_time_wait_or_refuse_and_lose_nothing(reference, first, second):
    """Both have work to do; the second needs outputs of the first, which are missing or partly there."""
    replace(reference.root, reference.states / first)
    both = [
        subprocess.Popen(command(stage, reference.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for stage in (first, second)
    ]
    outputs = [process.communicate() for process in both]
    for process, (out, err) in zip(both, outputs, strict=True):
        assert "Traceback" not in err, err
        assert process.returncode == 0 or "error: " in err, out + err
    for stage in STAGES[STAGES.index(first) :]:
        done = run(stage, reference.root)
        assert done.returncode == 0, done.stdout + done.stderr
    assert contents(reference.root) == reference.end


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_pausing_a_command_repeatedly_does_not_change_its_result(reference, stage):
    replace(reference.root, reference.states / stage)
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command(stage, reference.root), **words)
    while process.poll() is None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            time.sleep(0.2)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    after = STAGES[STAGES.index(stage) + 1] if stage != STAGES[-1] else "end"
    assert contents(reference.root) == contents(reference.states / after)
