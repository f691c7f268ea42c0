"""The image cache: every DICOM decoded once into a PNG of size x size pixels, and the index that lists them all.

An image is skipped if the version and the content hashes of its DICOM and PNG match the index. Files that were not
written since they were last read are not read again. An interrupted update resumes from its journal. A refused DICOM
is tried again every time, because a decoder may have been installed.
"""

import csv
import os
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import ABSENT, bytes_hash, content_hash, naming
from rsna.core.locks import file_lock
from rsna.core.sources import INDEX_CSV, SEEN_CSV, see
from rsna.core.tables import as_numbers, read_table, read_text_table, write_table
from rsna.data import dicom
from rsna.data.competition import TEST_IMAGES, TRAIN_IMAGES, list_sources
from rsna.data.letterbox import GEOMETRY_COLUMNS, REBUILD, decode_square, fit_letterbox, write_png
from rsna.execution.processes import map_files

Row = dict[str, Any]

SPLITS = {TRAIN_IMAGES: "train", TEST_IMAGES: "test"}
ID = re.compile(r"\w[\w.-]*")  # needs no quoting as the name of a PNG and as a field of a CSV
VERSION = 2  # raise it when the same DICOM gives a different PNG than before: caches are then rebuilt
JOURNAL_CSV = "index.partial.csv"  # rows of an unfinished update; index.csv replaces it at the end
INDEX_COLUMNS = ["patientId", "split", "rows", "cols", "transfer_syntax", "photometric", "status", "reason"]
INDEX_COLUMNS += [*GEOMETRY_COLUMNS, "source_hash", "png_hash", "version"]  # the last three: is the PNG still current
HASHES = ["source_hash", "png_hash"]
JOURNAL_COLUMNS = [*INDEX_COLUMNS, "seen"]  # what `see` returned for both files when they were read
# a few bad files among 26,684 must not stop an overnight run; more mean a wrong or broken download
MAX_REFUSED = 0.05
NAMED_REFUSALS = 5


def update_cache(cfg: Config) -> tuple[pd.DataFrame, int]:
    """Bring a cache up to date; return its rows and how many were current. A second process waits. Raises UserError."""
    sources = list_sources(Path(cfg.input), [TEST_IMAGES] if cfg.only_test else [*SPLITS])
    paths = pd.Series(sources, [key_of(path) for path in sources], dtype=object)
    with file_lock(cfg.cache_dir, wait=True):
        index, journal = read_known(cfg.cache_dir), read_rows(cfg.cache_dir / JOURNAL_CSV)
        known = pd.concat([index, journal])
        known = known[~known.index.duplicated(keep="last")]
        current = keep_current(known, paths, cfg)
        rows = make_images(paths[~paths.index.isin(current.index)], current, known, cfg).loc[paths.index]
        # the other split's rows stay; training images come first
        table = pd.concat([known[~known["split"].isin(rows["split"].unique())], rows])
        if not table.equals(index):
            write_table(table[INDEX_COLUMNS], cfg.cache_dir / INDEX_CSV)
            write_table(table["seen"].to_frame(content_hash(cfg.cache_dir / INDEX_CSV)), cfg.cache_dir / SEEN_CSV)
        (cfg.cache_dir / JOURNAL_CSV).unlink(missing_ok=True)
    return rows, len(current)


def report(cfg: Config, rows: pd.DataFrame, current: int) -> None:
    """Print what was done. Raises UserError if too many images were refused, or any with cfg.strict."""
    index, refused = cfg.cache_dir / INDEX_CSV, rows[rows["status"] != "ok"]
    for row in refused[:NAMED_REFUSALS].itertuples():
        print(f"refused {row.split}/{row.patientId}.dcm: {row.reason}")
    if len(refused) > NAMED_REFUSALS:
        print(f"refused ... and {len(refused) - NAMED_REFUSALS} more")
    done = f"{len(rows) - current - len(refused)} images written, {current} current, {len(refused)} refused"
    print(f"cache_images: {f'{current} images current' if current == len(rows) else done} -> {index}")
    if len(refused) > (0 if cfg.strict else MAX_REFUSED) * len(rows):
        share = f"{len(refused)} of {len(rows)} images ({len(refused) / len(rows):.0%})"
        raise UserError(f"{share} were refused; {index} has the reasons; is the download complete?")


def key_of(path: Path) -> str:
    """split/patientId from the file's name, not from the header; a bad name is quoted and so equals no good one."""
    name = path.stem if ID.fullmatch(path.stem) else quote(os.fsencode(path.stem), safe="")
    return f"{SPLITS[path.parts[-2]]}/{name}"


def png_path(cache_dir: Path, source: Path) -> Path:
    return cache_dir / SPLITS[source.parent.name] / f"{source.stem}.png"


def keep_current(known: pd.DataFrame, paths: pd.Series, cfg: Config) -> pd.DataFrame:
    """The rows of those sources (by key) whose DICOM and PNG match the row: not written since, or read again now."""
    usable = known[(known["status"] == "ok") & (known["version"] == str(VERSION))]
    paths = paths[paths.index.isin(usable.index)]
    rows = usable.loc[paths.index]
    pngs = f"{cfg.cache_dir}/" + paths.index + ".png"  # the name in a usable row needs no quoting
    seen = pd.Series([see(path) + see(png) for path, png in zip(paths, pngs, strict=True)], paths.index, dtype=str)
    unknown = (seen != rows["seen"]) | (seen.str.count(";") < 2)
    work = partial(hash_pair, cache_dir=cfg.cache_dir)
    expected, found = rows.loc[unknown, HASHES], map_files(work, paths[unknown].tolist(), cfg, "cached images")
    changed = (pd.DataFrame([*found], expected.index, HASHES, dtype=str) != expected).any(axis=1)
    return rows.assign(seen=seen).drop(index=changed.index[changed])


def hash_pair(source: Path, cache_dir: Path) -> tuple[str, str]:
    try:
        return content_hash(source), content_hash(png_path(cache_dir, source))
    except OSError:
        return ABSENT, ABSENT


def make_images(paths: pd.Series, current: pd.DataFrame, known: pd.DataFrame, cfg: Config) -> pd.DataFrame:
    """Cache the images of `paths`; return the current rows and theirs. Each goes into the journal at once."""
    if paths.empty:
        return current
    work = partial(cache_image, cache_dir=cfg.cache_dir, size=cfg.size)
    crashed = partial(refuse, cache_dir=cfg.cache_dir, reason="the process that decoded it died")
    rows = map_files(work, paths.tolist(), cfg, "images", crashed)
    journal, refused = cfg.cache_dir / JOURNAL_CSV, known.index[known["status"] != "ok"]
    if not journal.exists() and paths.index.isin(refused).all():
        # only refused images are tried again: the index stays valid, and other commands may read it
        return pd.concat([current, by_key(pd.DataFrame([*rows], columns=JOURNAL_COLUMNS).astype(str))])
    # the current rows too: while there is a journal nobody reads the index, which the changed input made stale
    write_table(current, journal)
    with naming(journal), journal.open("a", newline="", buffering=1, encoding="utf-8") as file:
        csv.DictWriter(file, JOURNAL_COLUMNS, lineterminator="\n").writerows(rows)
    return read_rows(journal)


def cache_image(path: Path, cache_dir: Path, size: int, seconds: float = dicom.SECONDS_PER_FILE) -> Row:
    """Write the PNG of one DICOM and return its row of the index; never raises for a bad DICOM."""
    known: Row = {}
    try:
        if not ID.fullmatch(path.stem):
            raise dicom.UnreadableDicom("the file's name has other characters than letters, digits, '_', '.' and '-'")
        with dicom.as_unreadable(), dicom.time_limit(seconds):
            seen = see(path)
            # the bytes that are hashed are the ones that are decoded, even if the file is replaced meanwhile
            content = dicom.read_file(path)
            known |= {"source_hash": bytes_hash(content)}
            dataset = dicom.parse_dicom(content)
            known |= dicom.describe(dataset)
            image, geometry = decode_square(dataset, size)
    except dicom.UnreadableDicom as error:
        return refuse(path, cache_dir, str(error), **known)
    png = png_path(cache_dir, path)
    png_hash = write_png(image, png)
    seen += see(png, recent=True)
    return new_row(path, status="ok", **known, **geometry._asdict(), png_hash=png_hash, seen=seen)


def refuse(path: Path, cache_dir: Path, reason: str, **known: Any) -> Row:
    """The row of an image that cannot be decoded; removes the PNG of an earlier, readable DICOM."""
    png_path(cache_dir, path).unlink(missing_ok=True)
    return new_row(path, status="refused", reason=reason, **known)


def new_row(path: Path, **known: Any) -> Row:
    split, patient = key_of(path).split("/")
    return dict.fromkeys(JOURNAL_COLUMNS, "") | {"patientId": patient, "split": split, "version": VERSION} | known


def read_index(cache_dir: Path, size: int, split: str = "") -> pd.DataFrame:
    """INDEX_COLUMNS of a finished cache, for one split or both; refused images have no geometry. Raises UserError."""
    if (cache_dir / JOURNAL_CSV).exists():
        raise UserError(f"{cache_dir}: the image cache is unfinished; run: {REBUILD}")
    path = cache_dir / INDEX_CSV
    table = read_table(path, ["patientId"], REBUILD)
    if not set(INDEX_COLUMNS) <= set(table.columns):
        raise UserError(f"{path}: not of this version; run: {REBUILD}")
    table = table.assign(**as_numbers(table[["rows", "cols", *GEOMETRY_COLUMNS]]))
    shapes = table[["rows", "cols"]].fillna(0).astype(int)
    codes, known = shapes.groupby(["rows", "cols"], sort=False).ngroup(), shapes.drop_duplicates().to_numpy().tolist()
    expected = np.array([fit_letterbox(rows, cols, size)[2] for rows, cols in known]).reshape(-1, 4)[codes]
    same = np.isclose(table[GEOMETRY_COLUMNS], expected, rtol=1e-6, atol=1e-9)
    fits = (shapes >= 1).all(axis=1) & np.all(same, axis=1)
    wrong = (table["status"] == "ok") & ~fits | table.duplicated(["patientId", "split"])
    if wrong.any():
        name = table.loc[wrong, "patientId"].iloc[0]
        raise UserError(f"{path}, patientId {name}: not as it was written; delete it and run: {REBUILD}")
    return table[table["split"] == split] if split else table


def read_known(cache_dir: Path) -> pd.DataFrame:
    """The rows of the index, with `seen` if it was recorded for exactly this index."""
    rows, seen = read_rows(cache_dir / INDEX_CSV), read_text_table(cache_dir / SEEN_CSV)
    same = list(seen) == [content_hash(cache_dir / INDEX_CSV)] and len(seen) == len(rows)
    return rows.assign(seen=seen.iloc[:, 0].to_numpy()) if same else rows


def read_rows(path: Path) -> pd.DataFrame:
    """JOURNAL_COLUMNS of an index or journal by key, all text; empty if it is missing or of another version."""
    rows = read_text_table(path)
    rows = rows if list(rows) in (INDEX_COLUMNS, JOURNAL_COLUMNS) else pd.DataFrame(columns=JOURNAL_COLUMNS, dtype=str)
    return by_key(rows.reindex(columns=JOURNAL_COLUMNS, fill_value=""))


def by_key(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.set_index(rows["split"] + "/" + rows["patientId"])
