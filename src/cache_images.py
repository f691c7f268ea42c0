"""Decode every DICOM once into a PNG of size x size pixels, and list them all in the cache's index.csv.

    python src/cache_images.py [size=...] [workers=...] [input=...] [only_test=true]

Stopped and started again it goes on: an image is skipped while its source, the recipe and the PNG are as the
index says. A file that cannot be decoded is a row with its reason and is tried again by every run, which is
cheap and right after a decoder was installed.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.executor import map_files
from rsna.core.locks import file_lock
from rsna.data.cache import INDEX_COLUMNS, INDEX_CSV, JOURNAL_CSV, Row, read_rows, square, write_png, write_rows
from rsna.data.competition import HOW_TO_GET, TEST_IMAGES, TRAIN_IMAGES
from rsna.data.dicom import Refused, describe, open_dicom, refusing, time_limit

SPLITS = {TRAIN_IMAGES: "train", TEST_IMAGES: "test"}
# raise it when the same DICOM gives another PNG than before: caches are then made anew
VERSION = 2
# a few bad files of 26,684 must not stop a night's run, but more than that is a wrong or broken download
MAX_REFUSED = 0.05
NAMED_REFUSALS = 5
# the largest image that is not refused takes a tenth of this
SECONDS_PER_FILE = 60.0

Key = tuple[str, str]


def main(cfg: Config) -> None:
    sources = list_sources(Path(cfg.input), [TEST_IMAGES] if cfg.only_test else tuple(SPLITS))
    with file_lock(cfg.cache_dir, wait=True):
        recipe = name_recipe(Path(cfg.input), cfg.cache_dir, Path(cfg.root))
        known = read_rows(cfg.cache_dir / INDEX_CSV) + read_rows(cfg.cache_dir / JOURNAL_CSV)
        kept = keep_valid(known, sources, cfg.cache_dir, recipe)
        todo = [path for path in sources if key_of(path) not in kept]
        made = make_images(todo, kept, cfg.cache_dir, cfg.size, recipe, cfg.workers)
        every = kept | made
        rows = [every[key_of(path)] for path in sources]
        write_rows(with_other_splits(rows, known), cfg.cache_dir / INDEX_CSV)
        (cfg.cache_dir / JOURNAL_CSV).unlink(missing_ok=True)
    report(rows, len(kept), cfg.cache_dir / INDEX_CSV, 0.0 if cfg.strict else MAX_REFUSED)


def list_sources(folder: Path, names: Sequence[str] = tuple(SPLITS)) -> list[Path]:
    """Every DICOM of these image folders, one after the other. Raises UserError if one of them has none."""
    sources = []
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder; {HOW_TO_GET}")
        # macOS leaves ._<name>.dcm beside every file that it copies to a foreign disk
        found = sorted(path for path in (folder / name).glob("*.dcm") if not path.name.startswith("._"))
        if not found:
            raise UserError(f"{folder / name}: no .dcm file in it; {HOW_TO_GET}")
        sources += found
    return sources


def with_other_splits(rows: list[Row], known: Iterable[Row]) -> list[Row]:
    """The rows behind what is known of splits that this run left alone; training images come first."""
    splits = {row["split"] for row in rows}
    others = {(row["split"], row["patientId"]): row for row in known if row["split"] not in splits}
    return [*others.values(), *rows]


def key_of(path: Path) -> Key:
    """(split, patientId) of a source: the file's name counts, not what its header says.

    Other characters than an id's are written as %XX, so that no bad name can pass for a good one.
    """
    return SPLITS[path.parent.name], path.stem if is_id(path.stem) else quote(path.stem, safe="", errors="replace")


def is_id(text: str) -> bool:
    """Whether it can become the name of a PNG and a field of CSVs as it is."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None


def name_recipe(folder: Path, cache_dir: Path, root: Path) -> str:
    """Short name of all that a PNG depends on beside its source's bytes and `size`, which names the cache.

    With the input's place in it: another data set can have the same names, sizes and (from an archive) times. If it
    lies in the workspace, that is its place there, so that a workspace that is moved keeps its cache.
    """
    place = folder.resolve()
    moves_along = place.is_relative_to(root.resolve())
    where = os.path.relpath(place, cache_dir.resolve()) if moves_along else place
    return hashlib.sha256(f"{VERSION} {where}".encode()).hexdigest()[:8]


def keep_valid(rows: Iterable[Row], sources: Sequence[Path], cache_dir: Path, recipe: str) -> dict[Key, Row]:
    """The rows, by key, whose source is as it was and whose PNG is there; of two for a source the later."""
    known = {(row["split"], row["patientId"]): row for row in rows if row["recipe"] == recipe}
    keys = {key_of(path): path for path in sources}
    return {key: known[key] for key, path in keys.items() if key in known and is_done(known[key], path, cache_dir)}


def is_done(row: Row, source: Path, cache_dir: Path) -> bool:
    if row["status"] != "ok":
        return False
    try:
        before, png = source.stat(), png_path(cache_dir, source).stat()
    except OSError:
        return False
    found = [str(number) for number in (before.st_size, before.st_mtime_ns, png.st_size)]
    return found == [row[name] for name in ("source_bytes", "source_mtime_ns", "png_bytes")]


def png_path(cache_dir: Path, source: Path) -> Path:
    return cache_dir / SPLITS[source.parent.name] / f"{source.stem}.png"


def make_images(
    todo: Sequence[Path], kept: dict[Key, Row], cache_dir: Path, size: int, recipe: str, workers: int
) -> dict[Key, Row]:
    """Cache the images of `todo` and return their rows.

    Each row goes to the journal as soon as it is known; it holds the kept ones too, since after a change of
    the input the index is no longer true, and as long as there is a journal nobody reads the index.
    """
    if not todo:
        return {}
    for split in SPLITS.values():
        (cache_dir / split).mkdir(exist_ok=True)
    work = partial(cache_image, cache_dir=cache_dir, size=size, recipe=recipe)
    crashed = partial(refuse, cache_dir=cache_dir, recipe=recipe, reason="the process that decoded it died")
    write_rows(kept.values(), cache_dir / JOURNAL_CSV)
    made = {}
    with (cache_dir / JOURNAL_CSV).open("a", newline="") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS, lineterminator="\n")
        for row in map_files(work, todo, workers, "images", crashed):
            writer.writerow(row)
            file.flush()
            made[row["split"], row["patientId"]] = row
    return made


def cache_image(path: Path, cache_dir: Path, size: int, recipe: str, seconds: float = SECONDS_PER_FILE) -> Row:
    """Write the PNG of one DICOM and return its row of the index; never raises for a bad DICOM."""
    facts: Row = {}
    try:
        if not is_id(path.stem):
            raise Refused("the file's name has other characters than letters, digits, '_', '.' and '-'")
        with refusing():
            before = path.stat()
        facts = {"source_bytes": before.st_size, "source_mtime_ns": before.st_mtime_ns}
        with refusing(), time_limit(seconds):
            dataset = open_dicom(path)
            facts |= describe(dataset)
            image, geometry = square(dataset, size)
    except Refused as refusal:
        return refuse(path, cache_dir, recipe, str(refusal), facts)
    facts |= geometry._asdict() | {"png_bytes": write_png(image, png_path(cache_dir, path))}
    return new_row(path, recipe, status="ok", **facts)


def refuse(path: Path, cache_dir: Path, recipe: str, reason: str, facts: Row | None = None) -> Row:
    """The row of an image that cannot be had; a PNG from better days goes away."""
    png_path(cache_dir, path).unlink(missing_ok=True)
    return new_row(path, recipe, status="refused", reason=reason, **facts or {})


def new_row(path: Path, recipe: str, **facts: Any) -> Row:
    split, patient = key_of(path)
    return dict.fromkeys(INDEX_COLUMNS, "") | {"patientId": patient, "split": split, "recipe": recipe} | facts


def report(rows: Sequence[Row], skipped: int, index: Path, allowed: float) -> None:
    """Print what was done. Raises UserError if more than this share of the images was refused."""
    refused = [row for row in rows if row["status"] != "ok"]
    for row in refused[:NAMED_REFUSALS]:
        print(f"refused {row['split']}/{row['patientId']}.dcm: {row['reason']}")
    if len(refused) > NAMED_REFUSALS:
        print(f"refused ... and {len(refused) - NAMED_REFUSALS} more")
    written = len(rows) - skipped - len(refused)
    print(f"{written} images written, {skipped} skipped, {len(refused)} refused -> {index}")
    if len(refused) > allowed * len(rows):
        share = f"{len(refused)} of {len(rows)} images ({len(refused) / len(rows):.0%})"
        raise UserError(f"{share} were refused; {index} has the reasons; is the download whole?")


if __name__ == "__main__":
    run(main)
