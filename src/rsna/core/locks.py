"""Locks: one process at a time may write into a folder or to a temporary file."""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rsna.core.errors import UserError


@contextlib.contextmanager
def file_lock(folder: Path, wait: bool = False, patience: float = 5) -> Iterator[None]:
    """Let one process at a time write into a folder. A second one waits (wait=True), or stops with a UserError.

    It stops only after `patience` seconds, as a command that was just killed may still be writing a file. The kernel
    releases the lock when the process ends, however it ends. Child processes do not inherit it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_own(folder / ".lock") as lock:
        if not re.fullmatch(r"(process \d+)?", lock.read(99)):
            raise UserError(f"{folder / '.lock'}: not a lock of this program; move it elsewhere")
        try:
            if not try_lock(lock, patience):
                lock.seek(0)
                holder = f"another {lock.read(99) or 'process'}"
                if not wait:
                    raise UserError(f"{folder}: {holder} is at work there; wait for it, or set another name=")
                print(f"waiting for {holder} that works in {folder}", flush=True)
                fcntl.lockf(lock, fcntl.LOCK_EX)
        except OSError as error:
            problem = f"its file system has no locks ({error.strerror}), which keep two commands apart"
            raise UserError(f"{folder}: {problem}; move it to a local disk") from None
        lock.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk, a later error will name the file that matters
            os.pwrite(lock.fileno(), f"process {os.getpid()}".encode(), 0)
        try:
            yield
        finally:
            lock.truncate(0)


def try_lock(file: IO[str], patience: float) -> bool:
    """Lock a file; False if another process holds the lock for `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)


def open_own(path: Path) -> IO[str]:
    """Open a lock or temporary file, creating it if needed. Raises UserError for a link, folder or pipe."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # do not follow a link, do not block on a pipe
    try:
        number = os.open(path, flags, 0o666)
        file = os.fdopen(number, "r+", errors="replace")
        if os.fstat(number).st_nlink <= 1:
            return file
        file.close()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, None):
            raise
    raise UserError(f"{path}: a link, folder or pipe that this program did not make is in the way; move it elsewhere")


@contextlib.contextmanager
def open_alone(path: Path) -> Iterator[IO[str]]:
    """As open_own, but wait until no other process has the file open in this way, and empty it."""
    while True:
        with open_own(path) as file:
            with contextlib.suppress(OSError):  # where the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            same = False
            with contextlib.suppress(FileNotFoundError):  # the other process has renamed or removed it
                same = os.path.samestat(os.fstat(file.fileno()), path.lstat())
            if same:
                file.truncate(0)
                yield file
                return
