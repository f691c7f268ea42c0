"""What results are made from: the hashes of inputs, and whether the DICOMs are still those that were cached."""

import csv
import functools
import hashlib
import json
import os
import time
from pathlib import Path

import pandas as pd

from rsna.core.files import ABSENT, content_hash

INDEX_CSV = "index.csv"  # in the folder of a cache: a row for each image
SEEN_CSV = ".seen.csv"  # what `see` said of its DICOM and PNG; the hash of the index is the column's name
COLUMNS = ["patientId", "split", "status", "source_hash"]
ROWS_AT_ONCE = 10_000  # of an index, in memory as JSON
RECENT_NS = 2 * 10**9  # the coarsest clock of a file system, that of FAT, ticks every two seconds


def hash_of(path: Path) -> str:
    """The content hash of a file, or of the rows of one split of a cache's index; `absent` where there is none."""
    split = path.name.partition(f"{INDEX_CSV}#")[2]
    path = path.with_name(INDEX_CSV) if split else path
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
            whole = (row for row in rows if len(row) == len(names) and row[place] == split)
            found = sorted(tuple(map(row.__getitem__, kept)) for row in whole)
    except csv.Error:  # a field without end, as after a lost quote
        return content_hash(path)
    # as the JSON of all rows, without the memory for it
    digest = hashlib.sha256(b"[")
    for k in range(0, len(found), ROWS_AT_ONCE):
        digest.update(((", " if k else "") + json.dumps(found[k : k + ROWS_AT_ONCE])[1:-1]).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16] if found else ABSENT


def see(path: str | Path, recent: bool = False) -> str:
    """What changes whenever a file is written or replaced, even by one of equal size and time.

    Empty for a file that is not there, and for one written in the last seconds, unless `recent` is true: a further
    change within the same tick of the clock would leave it the same.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    last = max(found.st_mtime_ns, found.st_ctime_ns)
    if not recent and last > time.time_ns() - RECENT_NS:
        return ""
    # the time of the last change of the inode cannot be set
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns};"


def changed_source(cache_dir: Path, images: Path, split: str) -> Path | None:
    """The first DICOM in `images` whose content is not that which was cached; one that is gone is not compared.

    None too if the cache cannot tell: its index is not the one that cache_images wrote last.
    """
    index = cache_dir / INDEX_CSV
    return compare_sources(index, images, split, content_hash(index)) if index.is_file() else None


@functools.lru_cache(maxsize=64)
def compare_sources(index: Path, images: Path, split: str, version: str) -> Path | None:
    """As changed_source, once in a process. Reads only what was written since it was cached."""
    try:
        seen = pd.read_csv(index.with_name(SEEN_CSV), dtype=str, na_filter=False)[version]
        rows = pd.read_csv(index, dtype=str, na_filter=False, usecols=COLUMNS).assign(seen=seen)
    except (OSError, ValueError, KeyError):
        return None
    rows = rows[(rows["split"] == split) & (rows["status"] == "ok")]
    for name, said, seen_both in zip(rows["patientId"], rows["source_hash"], rows["seen"], strict=True):
        path = f"{images}/{name}.dcm"
        if see(path) != f"{seen_both.partition(';')[0]};" and content_hash(Path(path)) not in (said, ABSENT):
            return Path(path)
    return None
