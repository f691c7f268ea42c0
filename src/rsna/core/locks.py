"""One process at a time in a folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rsna.core.errors import UserError


@contextlib.contextmanager
def file_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Let one process at a time write into a folder; a second one waits for it, or stops with a UserError.

    The kernel drops the lock of a process that ends in whatever way, and child processes do not inherit it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            holder = f"another {lock.read().strip() or 'process'}"
            if not wait:
                raise UserError(
                    f"{folder}: {holder} is at work there; wait for it, or give this run another name="
                ) from None
            print(f"waiting for {holder} that works in {folder}", flush=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
