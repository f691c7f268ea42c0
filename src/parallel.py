"""Many files, one function, several processes."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

Result = TypeVar("Result")
# files handed to a worker at once: enough to hide the hand-over, few enough to lose little when killed
BATCH = 8


def count_workers(workers: int) -> int:
    """The config's `workers` as a number of processes: -1 is one per core that this process may use."""
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_files(
    function: Callable[[Path], Result],
    paths: Sequence[Path],
    workers: int,
    description: str,
    crashed: Callable[[Path], Result] | None = None,
) -> Iterator[Result]:
    """Yield function(path) of every path, in their order, with a progress bar.

    `workers` as in the config: -1 one process per core, 0 none beside this one. `function` must be picklable
    (a function of a module, or functools.partial of one) and is expected not to raise. A file at which the
    worker process itself dies yields crashed(path), out of order; without `crashed` it raises BrokenProcessPool.
    (The kernel out of memory is one cause; and of damaged JPEG-LS files GDCM 3.2.6 takes one in a hundred so ill.)
    """
    processes = min(count_workers(workers), len(paths))
    results = run_isolated(function, paths, processes, crashed) if processes else map(function, paths)
    yield from tqdm(results, total=len(paths), desc=description, unit="file", disable=not paths)


def run_isolated(
    function: Callable[[Path], Result],
    paths: Sequence[Path],
    processes: int,
    crashed: Callable[[Path], Result] | None,
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
            yield run_alone(function, path, crashed)


def run_alone(function: Callable[[Path], Result], path: Path, crashed: Callable[[Path], Result] | None) -> Result:
    """function(path) in a process of its own; crashed(path) if that dies."""
    ((_, results),) = run_pool(function, [[path]], 1)
    if results is not None:
        return results[0]
    if crashed is None:
        raise BrokenProcessPool(f"the process that worked on {path} died")
    return crashed(path)


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
