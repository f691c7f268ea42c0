"""engine=ray: files and folds as tasks on a Ray cluster whose machines share the folders; see docs/cluster.md.

A task whose machine dies starts again on another one, and a fold goes on from its last epoch. A task that fails by
itself does not. Workers get the code and the settings of the command that was started.
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
SECONDS_OF_SILENCE = 30.0  # that a worker may take to start, before a line says that there is no room for it
NO_ROOM = "waiting for room on the cluster; to see what takes it: ray status"
AHEAD = 3  # batches of files that each core has been given or is working on
Fold = tuple[Config, int]  # a run and one of its folds
Work = Callable[[Config, int], object]  # what is done for each
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
    """As folds.run_folds. Lines that a fold prints are shown here, behind the run's name where there are several."""
    cfg, failed, several = todo[0][0], Failed(), len({run.name for run, _ in todo}) > 1
    cluster = cluster_of(cfg)
    at_once, jobs, share = fold_resources(cluster, cfg, len(todo))
    task = cluster.ray.remote(max_retries=0, max_calls=1, **share)(run_fold)
    waiting, running = deque(todo), dict[Any, tuple[Config, int, Lines]]()
    attempts, silent_until = itertools.count(), time.monotonic() + SECONDS_OF_SILENCE
    with tempfile.TemporaryDirectory(dir=cfg.working, prefix=".lines-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run, fold = waiting.popleft()
                    # a file of its own for a second attempt: the lines of the first were shown
                    lines = Lines(Path(folder, str(next(attempts))), f"{run.name}: " if several else "")
                    running[task.remote(function, run.at(jobs=jobs), fold, lines.path)] = run, fold, lines
                done, _ = cluster.ray.wait([*running], timeout=SECONDS_BETWEEN_LINES)
                for _, _, lines in running.values():
                    lines.show()
                if any(lines.path.exists() for _, _, lines in running.values()):
                    silent_until = time.monotonic() + SECONDS_OF_SILENCE
                elif time.monotonic() > silent_until:
                    print(NO_ROOM, flush=True)
                    silent_until = math.inf
                for answer in done:
                    run, fold, lines = running.pop(answer)
                    end = how_it_ended(cluster.ray, answer)
                    lines.show()
                    if end == LOST:
                        print(f"{lines.prefix}fold {fold}: its machine was lost; it goes on on another", flush=True)
                        waiting.appendleft((run, fold))
                    elif end:
                        failed[run.name, fold] = end
        finally:
            stop(cluster.ray, [*running])
    return failed


def how_it_ended(ray: Any, answer: Any) -> str:
    """Of the task of a fold: empty if it succeeded, LOST, or why it failed."""
    try:
        return "" if ray.get(answer) else "stopped with an error, see above"
    except ray.exceptions.NodeDiedError:
        return LOST
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return "was killed, perhaps for lack of memory"


def fold_resources(cluster: Cluster, cfg: Config, n_folds: int) -> tuple[int, int, dict[str, float]]:
    """Folds at the same time, folds on one machine, and what Ray reserves for each: a GPU or a part of one, else cores.

    Raises UserError if device=cuda and there is no GPU, and for a certain GPU: a task has only its own.
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
    """The task of a fold: its output goes into a file that the command shows; whether it succeeded."""
    with output.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            function(cfg, fold)
        except Exception as error:
            print(explanation(error) or traceback.format_exc())
            return False
    return True


@dataclass
class Lines:
    """A file that a task on another machine writes, shown line by line behind a prefix."""

    path: Path
    prefix: str
    shown: int = 0  # bytes

    def show(self) -> None:
        """Print the lines that were finished since."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        for line in new[: new.rfind(b"\n") + 1].splitlines():
            print(self.prefix + line.decode(errors="replace"), flush=True)
        self.shown += new.rfind(b"\n") + 1


def stop(ray: Any, answers: list[Any]) -> None:
    """Cancel tasks: as by Ctrl-C, so that they leave nothing behind, and after two seconds by force."""
    for force in (False, True) if answers else ():
        for answer in answers:
            ray.cancel(answer, force=force)
        _, answers = ray.wait(answers, num_returns=len(answers), timeout=2)
