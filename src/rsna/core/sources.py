"""Whether the DICOMs are still those that were cached, and that all results come from."""

import functools
import os
import time
from pathlib import Path

import pandas as pd

from rsna.core.files import ABSENT, content_hash

INDEX_CSV = "index.csv"  # in the folder of a cache: a row for each image
SEEN_CSV = ".seen.csv"  # what `see` said of its DICOM and PNG; the hash of the index is the column's name
COLUMNS = ["patientId", "split", "status", "source_hash"]
RECENT_NS = 2 * 10**9  # the coarsest clock of a file system, that of FAT, ticks every two seconds


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
