"""Hashes of inputs, and a check whether the DICOM files are still the ones that were cached."""

import csv
import functools
import hashlib
import json
import os
import time
from pathlib import Path

import pandas as pd

from rsna.core.files import ABSENT, content_hash

INDEX_CSV = "index.csv"  # in a cache's folder: one row per image
SEEN_CSV = ".seen.csv"  # row by row, the `see` of the DICOM and of the PNG; its column is named by the index's hash
COLUMNS = ["patientId", "split", "status", "source_hash"]
ROWS_AT_ONCE = 10_000  # rows of an index that are in memory as JSON at a time
RECENT_NS = 2 * 10**9  # FAT has the coarsest file times: two seconds


def hash_of(path: Path) -> str:
    """The content hash of a file or, for `index.csv#<split>`, of the rows of a split; ABSENT if there is none."""
    split = path.name.partition(f"{INDEX_CSV}#")[2]
    path = path.with_name(INDEX_CSV) if split else path
    if not path.is_file():
        return ABSENT
    found = path.stat()
    return hash_once(path, split, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def hash_once(path: Path, split: str, _: tuple[int, ...]) -> str:
    """As hash_of; a process reads a file only once unless its inode, size or time changes."""
    return hash_of_index(path, split) if split else content_hash(path)


def hash_of_index(path: Path, split: str) -> str:
    """The hash of a split's rows in a cache's index, without the hashes of the PNGs.

    A PNG's bytes depend on the library that wrote it; its pixels follow from source, version and geometry.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            kept = [k for k, name in enumerate(names) if name not in ("png_hash", "reason")]
            place = names.index("split") if "split" in names else len(names)
            whole = (row for row in rows if len(row) == len(names) and row[place : place + 1] == [split])
            found = sorted(tuple(map(row.__getitem__, kept)) for row in whole)
    except csv.Error:  # such as a field that never ends because a quote is missing
        return content_hash(path)
    # the hash of the JSON of all rows, computed in parts to save memory
    digest = hashlib.sha256(b"[")
    for k in range(0, len(found), ROWS_AT_ONCE):
        digest.update(((", " if k else "") + json.dumps(found[k : k + ROWS_AT_ONCE])[1:-1]).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16] if found else ABSENT


def see(path: str | Path, recent: bool = False) -> str:
    """Inode, size and times of a file as text, which changes when the file is written or replaced.

    Empty if there is no file, or if it was changed in the last two seconds and `recent` is false: another change
    within the same tick of the clock would not be noticed.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    last = max(found.st_mtime_ns, found.st_ctime_ns)
    if not recent and last > time.time_ns() - RECENT_NS:
        return ""
    # includes ctime, which unlike mtime cannot be set by a program
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns};"


def changed_source(cache_dir: Path, images: Path, split: str) -> Path | None:
    """The first DICOM in the folder `images` that has changed since it was cached; None if there is none.

    A file that is gone is not compared. Also None if .seen.csv does not belong to the index as it is now.
    """
    index = cache_dir / INDEX_CSV
    return compare_sources(index, images, split, content_hash(index)) if index.is_file() else None


@functools.lru_cache(maxsize=64)
def compare_sources(index: Path, images: Path, split: str, version: str) -> Path | None:
    """As changed_source, once per process. Only files that were written since they were cached are read."""
    try:
        rows = pd.read_csv(index, dtype=str, na_filter=False, usecols=COLUMNS)
        # ValueError if one of the two was cut off
        rows["seen"] = pd.read_csv(index.with_name(SEEN_CSV), dtype=str, na_filter=False)[version].array
    except (OSError, ValueError, KeyError):
        return None
    rows = rows[(rows["split"] == split) & (rows["status"] == "ok")]
    for name, cached_hash, seen_both in zip(rows["patientId"], rows["source_hash"], rows["seen"], strict=True):
        path, seen_dicom = f"{images}/{name}.dcm", seen_both.partition(";")[0]
        if see(path) != f"{seen_dicom};" and content_hash(Path(path)) not in (cached_hash, ABSENT):
            return Path(path)
    return None
