"""engine=ray: files and folds as tasks on a Ray cluster whose machines share the folders; see docs/cluster.md.

A task whose machine dies starts again on another one, and a fold resumes from its last epoch. A task that fails by
itself is not repeated. Workers get the code and the settings of the command that was started.
"""

import contextlib
import itertools
import math
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from rsna.core.config import Config
from rsna.core.errors import UserError, explanation
from rsna.execution.machines import Cluster, cluster_of

SECONDS_BETWEEN_LINES = 0.5
SECONDS_OF_SILENCE = 30.0  # how long no worker may start before a line says that there is no room
NO_ROOM = "waiting for room on the cluster; to see what takes it: ray status"
AHEAD = 3  # batches of files per core that are queued or at work
Fold = tuple[Config, int]  # a run and one of its folds
Work = Callable[[Config, int], object]  # what is done for each of them
Failed = dict[tuple[str, int], str]  # name of the run, fold -> why it failed
LOST = "its machine was lost"


def run_batches(
    cfg: Config, function: Callable[[Path], Any], batches: Sequence[Sequence[Path]], processes: int
) -> Iterator[tuple[Sequence[Path], list[Any] | None]]:
    """As processes.run_pool, with `processes` tasks at work at the same time."""
    ray, waiting, running = cluster_of(cfg).ray, deque(batches), deque[tuple[Sequence[Path], Any]]()
    task = ray.remote(num_cpus=1, max_retries=0)(run_batch)
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * processes:
                running.append((waiting[0], task.remote(function, waiting.popleft())))
            batch, answer = running[0]
            if not ray.wait([answer], timeout=SECONDS_OF_SILENCE)[0]:
                print(NO_ROOM, flush=True)
            try:
                results = ray.get(answer)
            except ray.exceptions.NodeDiedError:
                running[0] = batch, task.remote(function, batch)
                continue
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                results = None
            running.popleft()
            yield batch, results
    finally:
        for _, answer in running:
            ray.cancel(answer, force=True)


def run_batch(function: Callable[[Path], Any], batch: Sequence[Path]) -> list[Any]:
    cv2.setNumThreads(1)  # there is a process per core
    return [function(path) for path in batch]


def run_folds(function: Work, todo: Sequence[Fold]) -> Failed:
    """As folds.run_folds. What a fold prints is shown here, after the run's name if there are several runs."""
    cfg, several = todo[0][0], len({run.name for run, _ in todo}) > 1
    cluster = cluster_of(cfg)
    at_once, jobs, share = fold_resources(cluster, cfg, len(todo))
    task = cluster.ray.remote(max_retries=0, max_calls=1, **share)(run_fold)
    waiting, running, failed = deque(todo), dict[Any, Attempt](), Failed()
    attempts, silent_until = itertools.count(), time.monotonic() + SECONDS_OF_SILENCE
    with tempfile.TemporaryDirectory(dir=cfg.working, prefix=".lines-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run, fold = waiting.popleft()
                    # a second attempt has a file of its own: the lines of the first were shown
                    output = Path(folder, str(next(attempts)))
                    answer = task.remote(function, run.at(jobs=jobs), fold, output)
                    running[answer] = Attempt(run, fold, output, f"{run.name}: " if several else "")
                done, _ = cluster.ray.wait([*running], timeout=SECONDS_BETWEEN_LINES)
                silent_until = show_lines([*running.values()], silent_until)
                for answer in done:
                    attempt, end = running.pop(answer), how_it_ended(cluster.ray, answer)
                    attempt.show_lines()
                    if end == LOST:
                        print(f"{attempt.prefix}fold {attempt.fold}: {LOST}; it resumes on another one", flush=True)
                        waiting.appendleft((attempt.run, attempt.fold))
                    elif end:
                        failed[attempt.run.name, attempt.fold] = end
        finally:
            stop(cluster.ray, [*running])
    return failed


@dataclass
class Attempt:
    """A task that works on a fold, and the file that its output goes to."""

    run: Config
    fold: int
    output: Path
    prefix: str  # of each line shown
    shown: int = 0  # bytes of the file

    def show_lines(self) -> None:
        """Print the lines that were completed since the last call."""
        if not self.output.is_file():
            return
        with self.output.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        for line in complete.splitlines():
            print(self.prefix + line.decode(errors="replace"), flush=True)
        self.shown += len(complete)


def show_lines(attempts: Sequence[Attempt], silent_until: float) -> float:
    """Print new lines of all attempts, and once that there is no room if none has started by `silent_until`.

    Returns the next such time, in seconds of time.monotonic().
    """
    for attempt in attempts:
        attempt.show_lines()
    if any(attempt.output.exists() for attempt in attempts):
        return time.monotonic() + SECONDS_OF_SILENCE
    if time.monotonic() <= silent_until:
        return silent_until
    print(NO_ROOM, flush=True)
    return math.inf


def how_it_ended(ray: Any, answer: Any) -> str:
    """Empty if the task of a fold succeeded, LOST, or why it failed."""
    try:
        return "" if ray.get(answer) else "stopped with an error, see above"
    except ray.exceptions.NodeDiedError:
        return LOST
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return "was killed, perhaps for lack of memory"


def fold_resources(cluster: Cluster, cfg: Config, n_folds: int) -> tuple[int, int, dict[str, float]]:
    """Folds at the same time, folds on one machine, and what Ray reserves for each: a GPU or a part of one, else cores.

    Raises UserError for device=cuda if no machine has a GPU, and for device=cuda:<n>: a task sees only its own GPU.
    """
    if cfg.device.startswith("cuda:"):
        raise UserError(f"device={cfg.device}: with engine=ray each fold gets a GPU of its own; set device=auto")
    machines, most = [*cluster.resources.values()], cfg.jobs if cfg.jobs > 0 else n_folds
    with_gpu = [machine for machine in machines if machine.get("GPU")]
    if with_gpu and cfg.device != "cpu":
        on_one = max(1, min(int(machine["GPU"]) * int(1 / cfg.gpus) for machine in with_gpu))
        cores = max(1, int(min(machine["CPU"] for machine in with_gpu)) // on_one)
        return most, on_one, {"num_gpus": cfg.gpus, "num_cpus": cores}
    if cfg.device.startswith("cuda"):
        raise UserError(f"device={cfg.device}: no machine of the cluster has a GPU; set device=auto")
    every, fewest = (int(function(machine["CPU"] for machine in machines)) for function in (sum, min))
    cores = max(1, min(fewest, every // min(most, n_folds)))
    return most, max(1, fewest // cores), {"num_cpus": cores}


def run_fold(function: Work, cfg: Config, fold: int, output: Path) -> bool:
    """The task of a fold: returns whether it succeeded. Its output goes into a file that the command shows."""
    with output.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            function(cfg, fold)
        except Exception as error:
            print(explanation(error) or traceback.format_exc())
            return False
    return True


def stop(ray: Any, answers: list[Any]) -> None:
    """Cancel tasks: first as Ctrl-C does, so that they clean up, and after two seconds by force."""
    for force in (False, True) if answers else ():
        for answer in answers:
            ray.cancel(answer, force=force)
        _, answers = ray.wait(answers, num_returns=len(answers), timeout=2)
