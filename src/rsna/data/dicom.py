"""DICOM files: their header, and their pixels as 8-bit grey. Whatever is wrong with one ends as Refused."""

import faulthandler
import re
import signal
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset

from rsna.data.decoders import PLUGINS, coded_size, decode, decode_reduced, frame_of
from rsna.data.windowing import Grey, shows_stored_values, to_grey

# What is taken of a header, and what it may say: by hand people write names into any field, which must not get out.
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


class Refused(Exception):  # noqa: N818 (it is no error of the program)
    """A file that cannot be used; its text is the reason, one line."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever goes wrong inside the block into Refused.

    Every exception is caught, at this one border only: on garbage pydicom, GDCM and Pillow raise anything from
    KeyError to struct.error, RecursionError and MemoryError, and one bad file must not end a night's run.
    Warnings are dropped, as pydicom utters one for each of the challenge's files (ages written 62, not 062Y).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Refused:
        raise
    except Exception as error:
        # these two bring whole sentences; the text of others, a KeyError say, means nothing without the name
        name = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        # what stands in a field that should hold a number may be anything, a name as well
        text = re.sub(
            r"^(invalid literal for .*?|could not convert string to float): .*", r"\1", str(error), flags=re.S
        )
        raise Refused(printable(name + text)[:300]) from error


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so long; a decoder that does not even notice ends the process, later.

    For the main thread of a process. Damaged JPEG 2000 files can keep pydicom 3.0.2 in a loop for ever.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not decoded within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        # the process's own stderr: what notebooks and test tools put in its place has no file behind it
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__ or 2)
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def printable(text: str) -> str:
    """The text on one line, each character that cannot be printed replaced: headers can hold any bytes."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def open_dicom(path: Path) -> FileDataset:
    """Read a DICOM file. Raises Refused."""
    with refusing():
        # a pipe would keep its reader waiting for ever
        if not stat.S_ISREG(path.stat().st_mode):
            raise Refused("it is not a file but a folder, pipe or device")
        # pydicom says of an empty file what it says of a text file
        if path.stat().st_size == 0:
            raise Refused("the file is empty")
        return pydicom.dcmread(path)


def describe(dataset: FileDataset) -> dict[str, Any]:
    """rows, cols, transfer_syntax (its name) and photometric, as the header says. Raises Refused."""
    with refusing():
        if "Rows" not in dataset or "Columns" not in dataset:
            raise Refused("there is no image in the file")
        photometric, syntax = str(dataset.PhotometricInterpretation), dataset.file_meta.TransferSyntaxUID
        if photometric not in PHOTOMETRIC:
            raise Refused("the photometric interpretation is none that DICOM knows")
        if syntax.is_private or not syntax.is_valid:
            raise Refused("the transfer syntax is none that DICOM knows")
        size = {"rows": int(dataset.Rows), "cols": int(dataset.Columns)}
        return size | {"transfer_syntax": syntax.name, "photometric": photometric}


def read_header(path: Path) -> dict[str, str]:
    """patientId (the file's name), PatientAge, PatientSex and ViewPosition as they are written.

    Reads nothing behind these fields. Where the file cannot be read, or says something that does not
    belong there, they are empty: cache_images is the stage that says which files are broken.
    """
    header = {"patientId": path.stem} | dict.fromkeys(HEADER_FIELDS, "")
    try:
        with refusing():
            if not path.is_file():
                return header
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_FIELDS))
            found = {name: str(dataset.get(name) or "").strip() for name in HEADER_FIELDS}
            return header | {name: text for name, text in found.items() if HEADER_FIELDS[name].fullmatch(text)}
    except Refused:
        return header


def read_grey(dataset: FileDataset, smallest: tuple[int, int] = (MAX_PIXELS, MAX_PIXELS)) -> Grey:
    """The whole image as uint8 (height, width), 0 black. Raises Refused.

    It has the original's size, or an exact half, quarter or eighth of it that is at least `smallest`
    (width, height), in pixels. MONOCHROME1, where 0 is white, comes inverted; colours come as luma.
    """
    with refusing():
        check(dataset)
        reducible = is_plain_jpeg(dataset)
        grey = decode_reduced(dataset, smallest) if reducible else to_grey(*decode(dataset), dataset)
        # a radiograph is never of one single grey: something before this program failed, and a black
        # picture in the training set would teach that nothing is there
        if grey.min() == grey.max():
            raise Refused(f"every pixel is the same grey ({grey.min()} of 255)")
        return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def check(dataset: FileDataset) -> None:
    """Raise Refused for what can be told from the header, before memory is taken for pixels."""
    rows, cols = int(dataset.Rows), int(dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not dataset.get("PixelData"):
        raise Refused("there is no pixel data")
    if not 0 < rows * cols <= MAX_PIXELS:
        raise Refused(f"declared size {cols} x {rows}: must be from 1 to {MAX_PIXELS:,} pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Refused(f"{dataset.NumberOfFrames} frames: a radiograph has one")
    if not syntax.is_encapsulated:
        return
    if syntax not in PLUGINS:
        raise Refused(f"transfer syntax {syntax.name} is not supported")
    found = None if syntax == uid.RLELossless else coded_size(frame_of(dataset))
    if found not in (None, (cols, rows)):
        raise Refused(f"declared size {cols} x {rows}, but the compressed image is {found[0]} x {found[1]}")


def is_plain_jpeg(dataset: FileDataset) -> bool:
    """Whether it is a JPEG of 8-bit grey values that are the ones to show, as all files of the challenge are."""
    return (
        dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
        and dataset.SamplesPerPixel == 1
        and dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
        and shows_stored_values(dataset)
    )
