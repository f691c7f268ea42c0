"""Where work runs: a function of a file in a pool of processes, a function of a fold in a process of its own."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import connection, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from rsna.core.config import Config
from rsna.core.errors import explanation

Result = TypeVar("Result")
# files handed to a worker at once: enough to hide the hand-over, few enough to lose little when killed
BATCH = 8


def count_workers(workers: int, jobs: int = 1) -> int:
    """The config's `workers` as a number of processes: -1 is one per core that this process may use.

    Of that each of several `jobs` at the same time gets its part, one at least.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def map_files(
    function: Callable[[Path], Result],
    paths: Sequence[Path],
    workers: int,
    description: str,
    crashed: Callable[[Path], Result] | None = None,
) -> Iterator[Result]:
    """Yield function(path) of every path, in their order, with a progress bar on a terminal, gone at the end.

    `workers` as in the config: -1 one process per core, 0 none beside this one. `function` must be picklable
    (a function of a module, or functools.partial of one) and is expected not to raise. A file at which the
    worker process itself dies yields crashed(path), out of order; without `crashed` it raises BrokenProcessPool.
    (Causes are the kernel when memory ends, and GDCM 3.2.6, which crashes on about 1 % of damaged JPEG-LS files.)
    """
    processes = min(count_workers(workers), len(paths))
    results = run_isolated(function, paths, processes, crashed) if processes else map(function, paths)
    hidden = None if paths else True  # None: where there is no terminal
    yield from tqdm(results, total=len(paths), desc=description, unit="file", leave=False, disable=hidden)


def run_isolated(
    function: Callable[[Path], Result], paths: Sequence[Path], processes: int, crashed: Callable[[Path], Result] | None
) -> Iterator[Result]:
    """As map_files. When a worker dies, the batches that may have killed it go on one file and process at a time."""
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    while batches:
        lost = []
        for batch, results in run_pool(function, batches, processes):
            if results is None:
                lost.append(batch)
            else:
                yield from results
        # the pool hands out batches in order and one more than it has workers in advance
        suspects, batches = lost[: 2 * processes + 1], lost[2 * processes + 1 :]
        for path in [path for batch in suspects for path in batch]:
            ((_, results),) = run_pool(function, [[path]], 1)
            if results is None and crashed is None:
                raise BrokenProcessPool(f"the process that worked on {path} died")
            yield results[0] if results is not None else crashed(path)  # type: ignore[misc]


def run_pool(
    function: Callable[[Path], Result], batches: Sequence[Sequence[Path]], processes: int
) -> Iterator[tuple[Sequence[Path], list[Result] | None]]:
    """Yield (batch, its results) as they are finished; None for the batches that a died worker left undone."""
    # OpenCV's threads do not survive a fork: a worker that inherits them hangs as soon as it sets their number
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(processes, initializer=prepare_worker)
    try:
        futures = deque(pool.submit(run_batch, function, batch) for batch in batches)
        cv2.setNumThreads(threads)
        for batch in batches:
            # taken off the queue, so that results are not held until the last batch is done
            future = futures.popleft()
            try:
                yield batch, future.result()
            except BrokenProcessPool:
                yield batch, None
    finally:
        # on Ctrl-C or an error: do not first work through all that is queued
        pool.shutdown(cancel_futures=True)


def run_batch(function: Callable[[Path], Result], batch: Sequence[Path]) -> list[Result]:
    return [function(path) for path in batch]


def prepare_worker() -> None:
    """One thread per process, since there is a process per core; and the parent alone decides when to stop."""
    cv2.setNumThreads(1)
    # Ctrl-C reaches every process of the terminal; workers finish their batch instead of printing tracebacks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()


def die_with_parent() -> None:
    """Without this, workers of a parent killed by SIGKILL would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def run_folds(
    function: Callable[[Config, int], None], cfg: Config, folds: Sequence[int], gpus: Callable[[], int] | None = None
) -> dict[int, str]:
    """Call function(cfg, fold) for each of `folds`, each in a process of its own; returns why some failed.

    A fold that fails, even one that the kernel kills, leaves the others alone. `jobs` of them run at the same time
    and share the cores (unless OMP_NUM_THREADS is set). Where several GPUs are visible and device=auto, the folds are
    spread over them, and jobs=-1 runs one on each. gpus: counts the visible GPUs. The text of a UserError is printed
    when it happens. On Ctrl-C the running folds are stopped.
    """
    n_gpus = (gpus or count_gpus)() if cfg.device == "auto" and cfg.jobs != 1 else 0
    at_once = cfg.jobs if cfg.jobs > 0 else max(1, n_gpus)
    os.environ.setdefault("OMP_NUM_THREADS", str(count_workers(-1, at_once)))
    devices = [f"cuda:{place % n_gpus}" if n_gpus > 1 else cfg.device for place in range(at_once)]
    waiting, running, failed = list(folds), dict[int, tuple[int, BaseProcess]](), dict[int, str]()
    try:
        while waiting or running:
            for place in sorted(set(range(at_once)) - {place for place, _ in running.values()})[: len(waiting)]:
                fold = waiting.pop(0)
                work = (function, replace(cfg, device=devices[place], jobs=at_once), fold)
                running[fold] = place, multiprocessing.get_context("spawn").Process(target=run_fold, args=work)
                start_undisturbed(running[fold][1])
            connection.wait([process.sentinel for _, process in running.values()])
            for fold in [fold for fold, (_, process) in running.items() if not process.is_alive()]:
                status = running.pop(fold)[1].exitcode
                if status:
                    failed[fold] = explain_exit(status)
    finally:
        # Ctrl-C reached them too: let them end by themselves, so that they leave nothing behind
        for _, process in running.values():
            process.join(timeout=2)
            process.terminate()
            process.join()
    return failed


def start_undisturbed(process: BaseProcess) -> None:
    """Start a process that does not see a Ctrl-C until run_fold: one in the midst of an import would be a traceback."""
    resource_tracker.ensure_running()  # which would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def count_gpus() -> int:
    """The GPUs that PyTorch can use; without a driver PyTorch is not imported to find that there are none."""
    if not Path("/dev/nvidiactl").exists() and shutil.which("rocm-smi") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def run_fold(function: Callable[[Config, int], None], cfg: Config, fold: int) -> None:
    """What the process of a fold does: the work, with errors that a person can fix printed in one line."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        function(cfg, fold)
    except KeyboardInterrupt:
        sys.exit(1)  # the parent got it too, and prints the line
    except Exception as error:
        line = explanation(error)
        if not line:
            raise
        print(line, file=sys.stderr, flush=True)
        sys.exit(1)


def explain_exit(status: int) -> str:
    """`1` -> stopped with an error; `-9` -> killed, and by what."""
    if status > 0:
        return "stopped with an error, see above"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
