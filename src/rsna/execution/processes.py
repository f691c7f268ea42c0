"""Call a function for every file: in this process, in a pool of processes, or on a cluster."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from rsna.core.config import Config
from rsna.execution import cluster, machines

Result = TypeVar("Result")
OfFile = Callable[[Path], Result]
Batches = Iterator[tuple[Sequence[Path], list[Result] | None]]  # files, and the result for each
Pool = Callable[..., Batches[Result]]  # run_pool, or its counterpart on a cluster
# files per task: enough to hide the overhead, few enough to lose little work when killed
BATCH = 8


def count_workers(workers: int, jobs: int = 1) -> int:
    """The config's `workers` as a number of processes: -1 is one per core that this process may use.

    With several `jobs` at the same time, the cores are divided among them; each gets at least one.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def map_files(
    function: OfFile[Result], paths: Sequence[Path], cfg: Config, title: str, crashed: OfFile[Result] | None = None
) -> Iterator[Result]:
    """Yield function(path) for every path, in order, with a progress bar that vanishes at the end.

    Uses cfg.workers processes: -1 is one per core, 0 only this one. `function` must be picklable (a function of a
    module, or functools.partial of one) and should not raise. If the worker itself dies at a file, this yields
    crashed(path), out of order, or raises BrokenProcessPool without `crashed`. Workers die when the kernel runs out of
    memory, or in GDCM 3.2.6, which crashes on about 1 % of damaged JPEG-LS files.
    """
    on_cluster = cfg.engine == "ray" and cfg.workers != 0
    processes = min(machines.count_cores(cfg) if on_cluster else count_workers(cfg.workers), len(paths))
    pool = partial(cluster.run_batches, cfg) if on_cluster else run_pool
    results = run_isolated(function, paths, processes, pool, crashed) if processes else map(function, paths)
    hidden = None if paths else True  # None: shown on a terminal only
    yield from tqdm(results, total=len(paths), desc=title, unit="file", leave=False, disable=hidden)


def run_isolated(
    function: OfFile[Result], paths: Sequence[Path], processes: int, pool: Pool[Result], crashed: OfFile[Result] | None
) -> Iterator[Result]:
    """As map_files. When a worker dies, the batches that may have killed it are retried, one file per process."""
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    while batches:
        lost = []
        for batch, results in pool(function, batches, processes):
            if results is None:
                lost.append(batch)
            else:
                yield from results
        # the pool hands out batches in order, at most one more than it has workers
        suspects, batches = lost[: 2 * processes + 1], lost[2 * processes + 1 :]
        for path in [path for batch in suspects for path in batch]:
            ((_, results),) = pool(function, [[path]], 1)
            if results is None and crashed is None:
                raise BrokenProcessPool(f"the process that worked on {path} died")
            yield results[0] if results is not None else crashed(path)  # type: ignore[misc]


def run_pool(function: OfFile[Result], batches: Sequence[Sequence[Path]], processes: int) -> Batches[Result]:
    """Yield (batch, results) in order; None for the batches that a dead worker left undone."""
    # OpenCV's threads do not survive a fork: a worker that inherits them hangs when it sets their number
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(processes, initializer=prepare_worker)
    try:
        futures = deque(pool.submit(cluster.run_batch, function, batch) for batch in batches)
        cv2.setNumThreads(threads)
        for batch in batches:
            try:
                # popped, so that results are not kept in memory until the last batch is done
                yield batch, futures.popleft().result()
            except BrokenProcessPool:
                yield batch, None
    finally:
        # after Ctrl-C or an error, drop what is still queued
        pool.shutdown(cancel_futures=True)


def prepare_worker() -> None:
    """Leave it to the parent to decide when to stop."""
    # Ctrl-C reaches every process of the terminal; workers finish their batch instead of printing tracebacks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()


def die_with_parent() -> None:
    """End this process when its parent ends; workers of a parent killed by SIGKILL would wait forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
