"""Files that are whole or absent, one process at a time in a folder, JSON, and content hashes."""

import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rsna.core.errors import UserError

ABSENT = "absent"  # the hash of a file that is not there
MARKED_BYTES = 2**14  # of a file, where its mark is
MAX_JSON_BYTES = 2**28  # far more than any manifest; a sparse file of terabytes would take all memory


@contextlib.contextmanager
def write_then_rename(path: Path, durable: bool = True, mark: bytes = b"") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends well.

    A process killed inside the block leaves `path` as it was. The temporary name is always the same, so that what it
    left behind is gone once the stage is repeated; a second process waits for it. durable: wait for the disk.
    mark: what such a file has near its start; raises UserError instead of replacing one without: it is somebody else's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") if mark and path.is_file() else io.BytesIO(mark) as file:
        if mark not in file.read(MARKED_BYTES):
            raise UserError(f"{path}: a file that this program did not write is in the way; move it elsewhere")
    name = os.fsencode(path.name)  # one of 255 bytes, the longest that there is, has no room for more
    temporary = path.with_name(f".{path.name if len(name) < 250 else bytes_hash(name)}.tmp")
    with naming(path), open_alone(temporary) as file:
        try:
            yield temporary
            if durable:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(text: str, path: Path, mark: bytes = b"") -> None:
    """Write a whole file in UTF-8; what that cannot hold, such as a byte of a file name, is written as `\\udce9`."""
    with write_then_rename(path, mark=mark) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error in the block name the file: a write that fails, on a full disk for example, does not know it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def open_own(path: Path) -> IO[str]:
    """Open a lock or a temporary file, made if it is not there. Raises UserError for what this program did not make."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a link leads elsewhere, a pipe would not open
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
    """As open_own, emptied, once no other process has it open in this way."""
    while True:
        with open_own(path) as file:
            with contextlib.suppress(OSError):  # where the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            same = False
            with contextlib.suppress(FileNotFoundError):  # renamed or removed by the process that had it
                same = os.path.samestat(os.fstat(file.fileno()), path.lstat())
            if same:
                file.truncate(0)
                yield file
                return


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_json(path: Path, rebuild: str = "", expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object with at least the keys of `expected`, their values of these forms, see fits.

    `rebuild` is the command that makes the file. Raises UserError where it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {rebuild}" if rebuild else ""))
    remedy = f"delete it and run: {rebuild}" if rebuild else "delete it and run its command again"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; {remedy}")
    try:
        content = json.loads(path.read_text(), parse_constant=float)
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with thousands of digits
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    for key, form in (expected or {}).items():
        if not fits(content, {key: form}):
            raise UserError(f"{path}: '{key}' is missing or makes no sense; {remedy}")
    return content


def fits(value: Any, form: Any) -> bool:
    """Whether a value from JSON has a form: a type, or a dict or list of forms; a list of one is for any length.

    Numbers are finite, or NaN where None is allowed too. A dict may have more keys than its form.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], own) for key, own in form.items())
    if isinstance(form, list):
        forms = form * len(value) if isinstance(value, list) and len(form) == 1 else form
        return isinstance(value, list) and len(value) == len(forms) and all(map(fits, value, forms))
    if isinstance(value, float) and not math.isfinite(value):
        return isinstance(value, form) and math.isnan(value) and isinstance(None, form)
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > 2**53):
        return False
    return isinstance(value, form)


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
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            kept = [k for k, name in enumerate(names) if name not in ("png_hash", "reason")]
            place = names.index("split") if "split" in names else len(names)
            found = [[*map(row.__getitem__, kept)] for row in rows if len(row) == len(names) and row[place] == split]
    except csv.Error:  # a field without end, as after a lost quote
        return content_hash(path)
    found.sort()
    # as the JSON of all rows, without the memory for it
    digest = hashlib.sha256(b"[")
    for k, row in enumerate(found):
        digest.update(((", " if k else "") + json.dumps(row)).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16] if found else ABSENT


@contextlib.contextmanager
def file_lock(folder: Path, wait: bool = False, patience: float = 5) -> Iterator[None]:
    """Let one process at a time write into a folder; a second one waits for it, or stops with a UserError.

    Both after `patience` seconds: the fold of a command that was killed a moment ago may still be writing a file.
    The kernel drops the lock of a process that ends in whatever way, and child processes do not inherit it.
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
        with contextlib.suppress(OSError):  # on a full disk: the file that matters is named soon
            os.pwrite(lock.fileno(), f"process {os.getpid()}".encode(), 0)
        try:
            yield
        finally:
            lock.truncate(0)


def try_lock(file: IO[str], patience: float) -> bool:
    """Lock a file, or return False if another process holds its lock for `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
