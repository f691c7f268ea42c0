"""Call a function for every fold, each in its own process here or in its own task on a cluster."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from rsna.core.artifacts import is_current
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError, explanation
from rsna.execution import cluster
from rsna.execution.cluster import Failed, Fold, Work
from rsna.execution.processes import count_workers, die_with_parent


def run_each_fold(cfg: Config, stage: str, function: Work) -> None:
    """Call function(run, fold) for each fold of each trained run for which the stage is not current.

    Runs follow one another; on a cluster they work side by side. Raises UserError with the folds that failed and the
    command that resumes them; the other folds are kept.
    """
    waiting: list[list[Fold]] = []
    for run in cfg.trained_runs:
        current = [fold for fold in run.fold_list if is_current(run, stage, fold)]
        if current:
            print(f"{stage}: fold {', '.join(map(str, current))} current -> {run.run_dir}")
        waiting.append([(run, fold) for fold in run.fold_list if fold not in current])
    for todo in [[*chain(*waiting)]] if cfg.engine == "ray" else waiting:
        if cfg.members and todo and cfg.engine == "local":
            print(f"{stage}: run {todo[0][0].name}", flush=True)
        if failed := run_folds(function, todo):
            raise UserError(explain_failures(cfg, stage, failed))


def explain_failures(cfg: Config, stage: str, failed: Failed) -> str:
    """Which folds failed and why, and the command that works on them again."""
    runs = [run for run in cfg.trained_runs if any(run.name == name for name, _ in failed)]
    named = [f"{f'{name} ' if len(runs) > 1 else ''}fold {fold} {why}" for (name, fold), why in sorted(failed.items())]
    folds = ",".join(map(str, sorted({fold for _, fold in failed})))
    again = command(cfg if len(runs) > 1 else runs[0], stage, fold=folds)
    return f"{'; '.join(named)}. The other folds are kept. Once that is fixed, run: {again}"


def run_folds(function: Work, todo: Sequence[Fold], gpus: Callable[[], int] | None = None) -> Failed:
    """Call function(cfg, fold) for each of `todo`, each in its own process; return why some (name, fold) failed.

    A fold that fails, or that the kernel kills, does not stop the others. `jobs` folds run at the same time and share
    the cores (unless OMP_NUM_THREADS is set). With several visible GPUs and device=auto, the folds are spread over
    them; jobs=-1 runs one on each. gpus: counts the visible GPUs. The text of a UserError is printed at once. Ctrl-C
    stops the running folds. With engine=ray all of this happens on the cluster.
    """
    if not todo:
        return {}
    cfg = todo[0][0]
    if cfg.engine == "ray":
        return cluster.run_folds(function, todo)
    n_gpus = (gpus or count_gpus)() if cfg.device == "auto" and cfg.jobs != 1 else 0
    at_once = cfg.jobs if cfg.jobs > 0 else max(1, n_gpus)
    os.environ.setdefault("OMP_NUM_THREADS", str(count_workers(-1, at_once)))
    devices = [f"cuda:{place % n_gpus}" if n_gpus > 1 else cfg.device for place in range(at_once)]
    return run_at_places(function, todo, devices)


def run_at_places(function: Work, todo: Sequence[Fold], devices: Sequence[str]) -> Failed:
    """As run_folds, one fold at a time on each of these devices; a device may be listed several times."""
    waiting, running, failed = list(todo), dict[tuple[str, int], tuple[int, BaseProcess]](), Failed()
    try:
        while waiting or running:
            for place in sorted({*range(len(devices))} - {place for place, _ in running.values()})[: len(waiting)]:
                run, fold = waiting.pop(0)
                work = (function, run.at(device=devices[place], jobs=len(devices)), fold)
                started = multiprocessing.get_context("spawn").Process(target=run_fold, args=work)
                running[run.name, fold] = place, started
                start_undisturbed(started)
            connection.wait([process.sentinel for _, process in running.values()])
            for key in [key for key, (_, process) in running.items() if not process.is_alive()]:
                if status := running.pop(key)[1].exitcode:
                    failed[key] = explain_exit(status)
    finally:
        # Ctrl-C reached them too: let them end by themselves, so that they clean up
        for _, process in running.values():
            process.join(timeout=2)
            process.terminate()
            process.join()
    return failed


def start_undisturbed(process: BaseProcess) -> None:
    """Start a process that ignores Ctrl-C until run_fold; during its imports it would print a traceback."""
    resource_tracker.ensure_running()  # which would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def count_gpus() -> int:
    """The number of GPUs that PyTorch can use. Without a driver the slow import of PyTorch is skipped."""
    if not Path("/dev/nvidiactl").exists() and shutil.which("rocm-smi") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def run_fold(function: Work, cfg: Config, fold: int) -> None:
    """The work of a fold's process; an error that the user can fix is printed in one line."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore, which Python reports as leaked if this is killed
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        function(cfg, fold)
    except KeyboardInterrupt:
        sys.exit(1)  # the parent got it too, and prints the line
    except Exception as error:
        line = explanation(error)
        if not line:
            raise
        sys.exit(line)  # multiprocessing prints it


def explain_exit(status: int) -> str:
    """`1` -> stopped with an error; `-9` -> killed, and by what."""
    if status > 0:
        return "stopped with an error, see above"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
