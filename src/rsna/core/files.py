"""Files that are whole or absent, one process at a time in a folder, JSON, and content hashes."""

import contextlib
import csv
import fcntl
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from rsna.core.errors import UserError

ABSENT = "absent"  # the hash of a file that is not there


@contextlib.contextmanager
def write_then_rename(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends well.

    A process killed inside the block leaves `path` as it was. The temporary name is always the same, so that what it
    left behind is gone once the stage is repeated; file_lock keeps a second process away. durable: wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not know its file's name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict[str, Any], path: Path) -> None:
    with write_then_rename(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path, rebuild: str = "", expected: Mapping[str, type | UnionType] | None = None) -> dict[str, Any]:
    """Read a JSON object with at least the keys of `expected`, their values of these types; numbers are finite.

    `rebuild` is the command that makes the file. Raises UserError where it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {rebuild}" if rebuild else ""))
    remedy = f"delete it and run: {rebuild}" if rebuild else "delete it and run its command again"
    try:
        content = json.loads(path.read_text(), parse_constant=float)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    for key, kind in (expected or {}).items():
        value = content.get(key)
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{path}: '{key}' is missing or makes no sense; {remedy}")
    return content


def bytes_hash(content: bytes) -> str:
    """First 16 hex digits of the SHA-256, as content_hash gives for a file of these bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes, or `absent`."""
    if not path.is_file():
        return ABSENT
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_of(path: Path) -> str:
    """The content hash of a file, or of the rows of one split of a cache's index; `absent` where there is none."""
    split = path.name.partition("index.csv#")[2]
    path = path.with_name("index.csv") if split else path
    if not path.is_file():
        return ABSENT
    found = path.stat()
    return hash_once(path, split, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def hash_once(path: Path, split: str, _: tuple[int, ...]) -> str:
    """As hash_of; within one process a file that was not written since is read once."""
    return hash_of_index(path, split) if split else content_hash(path)


def hash_of_index(path: Path, split: str) -> str:
    """Hash of the rows of one split in the index of a cache.

    Not of its PNGs, whose bytes depend on the library that wrote them: the source, the version and the geometry
    decide the pixels.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split") == split]
    kept = [[value for key, value in row.items() if key not in ("png_hash", "reason")] for row in rows]
    return hashlib.sha256(json.dumps(sorted(kept)).encode()).hexdigest()[:16] if rows else ABSENT


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
