"""DICOM files: their headers, and their pixels as 8 bits. Anything wrong with a file raises UnreadableDicom."""

import io
import re
import signal
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from rsna.core.config import Config
from rsna.core.tables import read_table
from rsna.data import decoders
from rsna.data.competition import HEADER_COLUMNS, HEADERS_CSV, TRAIN_IMAGES, list_images
from rsna.data.decoders import MAX_BYTES, MAX_PIXELS, BoundedReader, UnreadableDicom
from rsna.data.windowing import PHOTOMETRIC, GreyImage, shows_stored_values, to_8_bit
from rsna.execution.processes import map_files

SECONDS_PER_FILE = 60.0  # of CPU time; the largest image that is accepted takes a tenth of this
# The fields that are read, and their allowed values: people type names into any field, and those must not leak. An age
# may lack its unit, as in the challenge's files; views as in PS3.3 C.8.1.1.1 and C.8.7.10.1.2.1.
HEADER_FIELDS = {
    "PatientAge": re.compile(r"\d{1,3}(\.0)?[DWMY]?"),
    "PatientSex": re.compile(r"[MFO]"),
    "ViewPosition": re.compile(r"AP|PA|LL|RL|RLD|LLD|RLO|LLO"),
}
BAD_HEADER = "a field of the header is not valid"


@contextmanager
def as_unreadable(problem: str = "the image cannot be decoded") -> Iterator[None]:
    """Turn any exception in the block into UnreadableDicom: `problem` and the type of the exception.

    All exceptions are caught here and only here: on garbage, pydicom, GDCM and Pillow raise anything, even MemoryError.
    Their messages are dropped, since they may quote the header. Warnings are dropped too, as pydicom warns about each
    of the challenge's files (ages written as 62, not 062Y).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableDicom:
        raise
    except InvalidDicomError as error:
        raise UnreadableDicom("not a DICOM file: DICM is not where it should be") from error
    except Exception as error:
        words = error.strerror if isinstance(error, OSError) else None  # the operating system's message
        raise UnreadableDicom(words or f"{problem} ({type(error).__name__})") from error


@contextmanager
def time_limit(seconds: float = SECONDS_PER_FILE) -> Iterator[None]:
    """Raise UnreadableDicom if the block uses more CPU time; after twice that, end the process. Main thread only."""
    # CPU time, so that a process that is paused or waits for a slow disk is not interrupted. Damaged JPEG 2000 files
    # can send pydicom 3.0.2 into an endless loop; a decoder may swallow or replace the exception.
    late = False

    def stop(*_: object) -> None:
        nonlocal late
        late = True
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)  # SIGVTALRM has no handler, so it ends the process
        yield
    except Exception as error:
        if late:
            raise UnreadableDicom(f"not decoded within {seconds:g} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def parse_dicom(content: bytes) -> FileDataset:
    """Parse the bytes of a DICOM file. Raises UnreadableDicom."""
    with as_unreadable("the file cannot be parsed"):
        return pydicom.dcmread(BoundedReader(io.BytesIO(content)))


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises UnreadableDicom if it is not a regular file, or empty, too large or unreadable."""
    with as_unreadable():
        found = path.stat()
        # reading a pipe would wait for ever
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableDicom("it is not a file but a folder, pipe or device")
        # pydicom would report it as if it were a text file
        if found.st_size == 0:
            raise UnreadableDicom("the file is empty")
        if found.st_size > MAX_BYTES:
            raise UnreadableDicom(f"the file has {found.st_size:,} bytes, more than {MAX_BYTES:,}")
        return path.read_bytes()


def describe(dataset: FileDataset) -> dict[str, Any]:
    """rows, cols, transfer_syntax (its name) and photometric, from the header. Raises UnreadableDicom."""
    with as_unreadable(BAD_HEADER):
        if "Rows" not in dataset or "Columns" not in dataset:
            raise UnreadableDicom("there is no image in the file")
        if "PhotometricInterpretation" not in dataset:
            raise UnreadableDicom("the header has no PhotometricInterpretation")
        photometric, syntax = str(dataset.PhotometricInterpretation), dataset.file_meta.TransferSyntaxUID
        if photometric not in PHOTOMETRIC:
            raise UnreadableDicom("the photometric interpretation is none that DICOM knows")
        if syntax.is_private or not syntax.is_transfer_syntax:
            raise UnreadableDicom("the transfer syntax is none that DICOM knows")
        size = {"rows": int(dataset.Rows), "cols": int(dataset.Columns)}
        return size | {"transfer_syntax": syntax.name, "photometric": photometric}


def read_header(path: Path) -> dict[str, str]:
    """patientId (from the file's name) and HEADER_FIELDS, which are empty if the file cannot be read."""
    header = {"patientId": path.stem} | dict.fromkeys(HEADER_FIELDS, "")
    with suppress(UnreadableDicom), as_unreadable(), time_limit():
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            with BoundedReader(io.FileIO(path)) as file:
                dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER_FIELDS))
            header |= {name: known_value(name, dataset.get(name) or "") for name in HEADER_FIELDS}
    return header


def known_value(name: str, value: Any) -> str:
    """The value of one of HEADER_FIELDS as text; empty if it is not an allowed value."""
    text = str(value).strip()
    return text if HEADER_FIELDS[name].fullmatch(text) else ""


def read_headers(cfg: Config) -> pd.DataFrame:
    """HEADER_COLUMNS of the training images: from dicom_headers.csv if it exists, else from the DICOM files."""
    given, folder = Path(cfg.input) / HEADERS_CSV, Path(cfg.input) / TRAIN_IMAGES
    if given.is_file():
        headers = read_table(given, HEADER_COLUMNS)[HEADER_COLUMNS]
        return headers.assign(**{name: headers[name].map(partial(known_value, name)) for name in HEADER_FIELDS})
    paths = list_images(folder)
    if not paths:
        print(f"no DICOMs in {folder}: folds are not stratified by view, sex and age")
    return pd.DataFrame(map_files(read_header, paths, cfg, "headers"), columns=HEADER_COLUMNS)


def read_pixels(dataset: FileDataset, smallest: tuple[int, int] = (MAX_PIXELS, MAX_PIXELS)) -> GreyImage:
    """The image as uint8 (height, width), 0 black, colours as luma, MONOCHROME1 inverted. Raises UnreadableDicom.

    It has the original's size, or an exact half, quarter or eighth of it that is at least `smallest` (width, height).
    """
    with as_unreadable(BAD_HEADER):
        check_header(dataset)
    with as_unreadable():
        # true of all files of the challenge
        plain_jpeg = (
            dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
            and dataset.SamplesPerPixel == 1
            and dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
            and shows_stored_values(dataset)
        )
        if plain_jpeg:
            with as_unreadable("the JPEG is truncated or damaged"):
                image = decoders.decode_reduced(dataset, smallest)
        else:
            values, photometric = decoders.decode(dataset)
            with as_unreadable("its windows or lookup tables make no sense"):
                image = to_8_bit(values, photometric, dataset)
        # no radiograph is like this: the file was damaged earlier, and a blank image would be trained on as a negative
        if image.min() == image.max():
            raise UnreadableDicom(f"every pixel is the same grey ({image.min()} of 255)")
        return 255 - image if dataset.PhotometricInterpretation == "MONOCHROME1" else image


def check_header(dataset: FileDataset) -> None:
    """Raise UnreadableDicom for problems that the header shows, before memory is allocated for pixels."""
    rows, cols, syntax = int(dataset.Rows), int(dataset.Columns), dataset.file_meta.TransferSyntaxUID
    if not dataset.get("PixelData"):
        raise UnreadableDicom("there is no pixel data")
    if not 0 < rows * cols <= MAX_PIXELS:
        raise UnreadableDicom(f"declared size {cols} x {rows}: must be from 1 to {MAX_PIXELS:,} pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableDicom(f"{dataset.NumberOfFrames} frames: a radiograph has one")
    if not syntax.is_encapsulated:
        if (length := len(dataset.PixelData)) < (expected := get_expected_length(dataset)):
            raise UnreadableDicom(f"{length} bytes of pixel data, less than expected ({expected})")
        return
    if syntax not in decoders.PLUGINS:
        raise UnreadableDicom(f"transfer syntax {syntax.name} is not supported")
    found = None if syntax == uid.RLELossless else decoders.coded_size(decoders.frame_of(dataset))
    if found not in (None, (cols, rows)):
        raise UnreadableDicom(f"declared size {cols} x {rows}, but the compressed image is {found[0]} x {found[1]}")
