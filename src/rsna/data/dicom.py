"""DICOM files: their header, and their pixels in 8 bits. Whatever is wrong with one ends as UnreadableDicom."""

import io
import re
import signal
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset

from rsna.core.config import Config
from rsna.core.executor import map_files
from rsna.core.tables import read_table, write_table
from rsna.data.competition import HEADER_COLUMNS, HEADERS_CSV, TRAIN_IMAGES, list_images
from rsna.data.decoders import PLUGINS, coded_size, decode, decode_reduced, frame_of
from rsna.data.windowing import GreyImage, shows_stored_values, to_8_bit

# The fields that are read, and what they may contain: people type names into any field, and those must not get out.
# Ages also without their unit, as the challenge's files have them; views as in PS3.3 C.8.1.1.1 and C.8.7.10.1.2.1.
HEADER_FIELDS = {
    "PatientAge": re.compile(r"\d{1,3}[DWMY]?"),
    "PatientSex": re.compile(r"[MFO]"),
    "ViewPosition": re.compile(r"AP|PA|LL|RL|RLD|LLD|RLO|LLO"),
}
# PS3.3 C.7.6.3.1.2, retired ones included
PHOTOMETRIC = [
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"),
]
# 10,000 x 10,000: no radiograph is larger, and a damaged header can ask for 65,535 x 65,535
MAX_PIXELS = 100_000_000


class UnreadableDicom(Exception):  # noqa: N818 (it is not an error of the program)
    """A file that cannot be used; its text is the reason, one line."""


@contextmanager
def as_unreadable() -> Iterator[None]:
    """Turn whatever goes wrong inside the block into UnreadableDicom.

    Every exception, at this one border only: on garbage pydicom, GDCM and Pillow raise anything up to MemoryError.
    Warnings are dropped, as pydicom gives one for each of the challenge's files (ages written 62, not 062Y).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableDicom:
        raise
    except Exception as error:
        # the messages of these two are sentences; that of others, such as a KeyError, means nothing without the name
        name = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        # what stands in a field that should hold a number may be anything, a name as well
        number = r"^(invalid literal for .*?|could not convert string to float): .*"
        text = " ".join((name + re.sub(number, r"\1", str(error), flags=re.S)).split())
        # headers can hold any bytes
        raise UnreadableDicom("".join(c if c.isprintable() else "?" for c in text)[:300]) from error


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds`, end the process after twice that. For the main thread only."""

    # of processor time: a process that is paused, or waits for a slow disk, is not at fault;
    # damaged JPEG 2000 files can keep pydicom 3.0.2 in an endless loop; a decoder may ignore the exception
    def stop(*_: object) -> None:
        raise TimeoutError(f"not decoded within {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)  # SIGVTALRM ends a process that has no handler for it
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def parse_dicom(content: bytes) -> FileDataset:
    """The dataset of a DICOM file's bytes. Raises UnreadableDicom."""
    with as_unreadable():
        return pydicom.dcmread(io.BytesIO(content))


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises UnreadableDicom for what is none, and for an empty one."""
    with as_unreadable():
        # a pipe would keep its reader waiting for ever
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableDicom("it is not a file but a folder, pipe or device")
        # pydicom's message would be that of a text file
        if path.stat().st_size == 0:
            raise UnreadableDicom("the file is empty")
        return path.read_bytes()


def describe(dataset: FileDataset) -> dict[str, Any]:
    """rows, cols, transfer_syntax (its name) and photometric, as the header says. Raises UnreadableDicom."""
    with as_unreadable():
        if "Rows" not in dataset or "Columns" not in dataset:
            raise UnreadableDicom("there is no image in the file")
        photometric, syntax = str(dataset.PhotometricInterpretation), dataset.file_meta.TransferSyntaxUID
        if photometric not in PHOTOMETRIC:
            raise UnreadableDicom("the photometric interpretation is none that DICOM knows")
        if syntax.is_private or not syntax.is_valid:
            raise UnreadableDicom("the transfer syntax is none that DICOM knows")
        size = {"rows": int(dataset.Rows), "cols": int(dataset.Columns)}
        return size | {"transfer_syntax": syntax.name, "photometric": photometric}


def read_header(path: Path) -> dict[str, str]:
    """patientId (the file's name) and HEADER_FIELDS; empty where the file, or the field, cannot be read as such."""
    header = {"patientId": path.stem} | dict.fromkeys(HEADER_FIELDS, "")
    with suppress(UnreadableDicom), as_unreadable():
        if path.is_file():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_FIELDS))
            found = {name: str(dataset.get(name) or "").strip() for name in HEADER_FIELDS}
            header |= {name: text for name, text in found.items() if HEADER_FIELDS[name].fullmatch(text)}
    return header


def read_headers(cfg: Config, ids: set[str]) -> pd.DataFrame:
    """View, sex and age of the training images: from a table where there is one, else from the DICOMs, once."""
    given, folder = Path(cfg.input) / HEADERS_CSV, Path(cfg.input) / TRAIN_IMAGES
    for path in (given, cfg.headers_csv):
        if path.is_file():
            headers = read_table(path, HEADER_COLUMNS)
            # files that could not be read then may have been replaced since
            unread = headers[HEADER_COLUMNS[1:]].isna().all(axis=1)
            if path == given or ids <= set(headers.loc[~unread, "patientId"]):
                return headers
    paths = list_images(folder)
    if not paths:
        print(f"no DICOMs in {folder}: folds are not stratified by view, sex and age")
        return pd.DataFrame(columns=HEADER_COLUMNS)
    rows = map_files(read_header, paths, cfg.workers, "headers")
    headers = pd.DataFrame(rows, columns=HEADER_COLUMNS).sort_values("patientId", ignore_index=True)
    write_table(headers, cfg.headers_csv)
    return headers


def read_pixels(dataset: FileDataset, smallest: tuple[int, int] = (MAX_PIXELS, MAX_PIXELS)) -> GreyImage:
    """The whole image as uint8 (height, width), 0 black: colours as luma, MONOCHROME1 inverted. Raises UnreadableDicom.

    In the original's size, or an exact half, quarter or eighth of it that is at least `smallest` (width, height).
    """
    with as_unreadable():
        check_header(dataset)
        # all files of the challenge are such
        plain_jpeg = (
            dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
            and dataset.SamplesPerPixel == 1
            and dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
            and shows_stored_values(dataset)
        )
        image = decode_reduced(dataset, smallest) if plain_jpeg else to_8_bit(*decode(dataset), dataset)
        # never so in a radiograph: something before this program failed, and a black image would teach a negative
        if image.min() == image.max():
            raise UnreadableDicom(f"every pixel is the same grey ({image.min()} of 255)")
        return 255 - image if dataset.PhotometricInterpretation == "MONOCHROME1" else image


def check_header(dataset: FileDataset) -> None:
    """Raise UnreadableDicom for what the header alone tells, before memory is allocated for pixels."""
    rows, cols, syntax = int(dataset.Rows), int(dataset.Columns), dataset.file_meta.TransferSyntaxUID
    if not dataset.get("PixelData"):
        raise UnreadableDicom("there is no pixel data")
    if not 0 < rows * cols <= MAX_PIXELS:
        raise UnreadableDicom(f"declared size {cols} x {rows}: must be from 1 to {MAX_PIXELS:,} pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableDicom(f"{dataset.NumberOfFrames} frames: a radiograph has one")
    if not syntax.is_encapsulated:
        return
    if syntax not in PLUGINS:
        raise UnreadableDicom(f"transfer syntax {syntax.name} is not supported")
    found = None if syntax == uid.RLELossless else coded_size(frame_of(dataset))
    if found not in (None, (cols, rows)):
        raise UnreadableDicom(f"declared size {cols} x {rows}, but the compressed image is {found[0]} x {found[1]}")
