"""Files that are whole or absent, tables with checked columns, and fingerprints of what a result depends on."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any

import pandas as pd


class UserError(Exception):
    """Something that the person at the keyboard can mend: says what, in which file and row, and how."""


def explain_errors() -> None:
    """Let a UserError or Ctrl-C end the process with one line and a non-zero status instead of a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = explanation(error)
        if line:
            print(line, file=sys.stderr, flush=True)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def explanation(error: BaseException) -> str:
    """One line for what a person can mend; empty for what is a bug."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "stopped; what was finished is kept, the same command goes on from there"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"error: {error.strerror}: {error.filename}; make room: what was finished is kept, the same command goes on"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {error.strerror}: {error.filename or 'no file named'}"
    return ""


@contextlib.contextmanager
def write_then_rename(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends well.

    A process killed inside the block leaves `path` as it was. The temporary name is always the same, so that what it
    left behind is gone once the stage is repeated; only_one keeps a second process away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not know its file's name
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(folder: Path, wait: bool = False) -> Iterator[None]:
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


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV with a header; numbers keep every digit, missing values are empty fields."""
    with write_then_rename(path) as temporary:
        table.to_csv(temporary, index=False)


def read_table(path: Path, columns: Sequence[str], maker: str = "") -> pd.DataFrame:
    """Read a CSV that must have `columns`; patientId stays text. Spaces around names and ids are cut off.
    `maker` is the command that makes the file, named when it is missing. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {maker}" if maker else ""))
    try:
        names = pd.read_csv(path, encoding="utf-8-sig", header=None, nrows=1, dtype=str).loc[0].fillna("").str.strip()
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # ids of digits keep their zeros
            ids = {position: str for position, name in enumerate(names) if name == "patientId"}
            rows = pd.read_csv(path, dtype=ids, encoding="utf-8-sig", index_col=False)
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: rows have more fields than the header; mend or fetch the file again") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table with a header ({str(error).strip()})") from None
    doubled = names[names.duplicated() & (names != "")]
    if len(doubled):
        raise UserError(f"{path}: column {doubled.iloc[0]} is there twice; remove one")
    table = cut_spaces(rows, path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns[:8]))
        raise UserError(f"{path}: column {', '.join(missing)} is missing; found {found}")
    return table


def line_number(path: Path, row: int) -> int:
    """The line of a CSV, counted from 1, that holds row `row` of its table, counted from 0; empty lines hold none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        full = [number for number, line in enumerate(file, 1) if line.strip()]
    return full[min(row + 1, len(full) - 1)]


def cut_spaces(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table without spaces around names of columns and patientIds; a field of spaces is empty. Says how many."""
    names = [str(column).strip() for column in table.columns]
    changed = sum(name != column for name, column in zip(names, table.columns, strict=True))
    table = table.set_axis(names, axis=1)
    for position, name in enumerate(names):
        column = table.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column):
            stripped = column.str.strip()
            mended = column.mask(stripped == "")
            if name == "patientId":
                mended = mended.mask(stripped != "", stripped)
            changed += int((mended.fillna("") != column.fillna("")).sum())
            table.isetitem(position, mended.array)
    if changed:
        print(f"{path}: spaces cut off around {changed} names of columns and fields")
    return table


def write_json(content: dict[str, Any], path: Path) -> None:
    with write_then_rename(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path, maker: str = "", expected: Mapping[str, type | UnionType] | None = None) -> dict[str, Any]:
    """Read a JSON object with at least the keys of `expected`, their values of these types; numbers are finite.

    `maker` is the command that makes the file. Raises UserError where it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {maker}" if maker else ""))
    remedy = f"delete it and run: {maker}" if maker else "delete it and run the stage again"
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


def fingerprint(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes, or `absent`."""
    if not path.is_file():
        return "absent"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name what differs between two sets of facts, as `size: 512 -> 256; lr: 0.001 -> 0.01`; empty if nothing."""
    keys = [*new, *(key for key in old if key not in new)]
    changes = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    return "; ".join(changes)
