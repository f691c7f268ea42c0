"""Images from anywhere: find the files, decode them for the networks, and read from the header what they show."""

import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from pydicom.dataset import Dataset

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import bytes_hash
from rsna.data.decoders import MAX_PIXELS
from rsna.data.dicom import UnreadableDicom, as_unreadable, describe, parse_dicom, read_file, time_limit
from rsna.data.letterbox import decode_square, fit_letterbox, letterbox
from rsna.data.windowing import GreyImage, rescale

PICTURES = (b"\x89PNG", b"\xff\xd8\xff")  # how PNG and JPEG files begin
RADIOGRAPHY = ("", "CR", "DX", "RG", "SC", "OT")  # SC, OT: scanned films, and files that do not specify it


class NewImage(NamedTuple):
    """A file and its pixels, or the reason why it cannot be used."""

    path: Path
    shape: tuple[int, int] = (0, 0)  # rows, cols of the original
    squares: Sequence[GreyImage] = ()  # letterboxed, one for each requested size
    flag: str = ""  # why, by its header, it may be no frontal chest radiograph
    refused: str = ""


def find_images(text: str, output: Path) -> list[Path]:
    """The files that images= names: a file, all visible files below a folder, or those that match a pattern.

    Files in `output` are left out. Raises UserError if there is none.
    """
    named, found = os.path.expanduser(text), list[Path]()
    for path in [named] if os.path.lexists(named) else sorted(glob.glob(named, recursive=True)):
        found += sorted(files_below(path)) if os.path.isdir(path) else [Path(path)]
    if not found:
        raise UserError(f"images={text}: no such file, or no file in it; name a file, a folder or a pattern")
    real = {folder: os.path.realpath(folder) for folder in {path.parent for path in found}}
    # a pattern follows links to folders, even to one above them: each file once, by its shortest path
    by_length = sorted(found, key=lambda path: len(path.parts), reverse=True)
    shortest = {(real[path.parent], path.name): path for path in by_length}
    once = dict.fromkeys(shortest[real[path.parent], path.name] for path in found)
    files = [path for path in once if not path.absolute().is_relative_to(output.absolute())]
    if not files:
        raise UserError(f"output={output}: the images are in this folder; set another one")
    return files


def files_below(folder: str) -> Iterator[Path]:
    """The visible files in a folder and in all visible folders below it. Raises UserError if one cannot be read."""
    for here, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(here, name) for name in names if name[0] != ".")


def refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}; make it readable, or name other images")


def safe_name(file: str) -> str:
    """The name for the outputs of a file: its own name and a hash of its path, as names may repeat."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", Path(file).stem)[:80] + "_" + bytes_hash(os.fsencode(file))[:8]


def output_folder(cfg: Config) -> Path:
    """output=, or a folder of the run that depends on images= alone."""
    return Path(cfg.output or cfg.run_dir / "infer" / safe_name(os.path.abspath(cfg.images)))


def read_image(path: Path, sizes: Sequence[int]) -> NewImage:
    """Decode a file into squares of these sizes; a bad file gives a NewImage with the reason."""
    try:
        with as_unreadable(), time_limit():
            content = read_file(path)
            if content.startswith(PICTURES):
                grey = decode_picture(content)
                rows, cols = grey.shape
                squares = [letterbox(grey, *fit_letterbox(rows, cols, size)[:2], size) for size in sizes]
                return NewImage(path, (rows, cols), squares)
            if content[128:132] != b"DICM":
                raise UnreadableDicom("it is no DICOM, PNG or JPEG file")
            dataset = parse_dicom(content)
            known = describe(dataset)
            squares = [decode_square(dataset, size)[0] for size in sizes]
            return NewImage(path, (known["rows"], known["cols"]), squares, header_flag(dataset))
    except UnreadableDicom as error:
        return NewImage(path, refused=str(error))


def decode_picture(content: bytes) -> GreyImage:
    """A PNG or JPEG as uint8 (rows, cols), turned according to its EXIF; colours become luma, transparent pixels black.

    16 bits are scaled from minimum to maximum, as in DICOMs without a window. Raises UnreadableDicom, and Pillow's
    errors.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError:
        raise UnreadableDicom(f"more than {MAX_PIXELS:,} pixels") from None
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableDicom(f"size {image.width} x {image.height}: more than {MAX_PIXELS:,} pixels")
    image = ImageOps.exif_transpose(image)
    wide = image.mode.startswith("I")  # 16 bits: in these a transparent grey stays as it is
    if image.has_transparency_data and not wide:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    values = np.asarray(image if wide else image.convert("L"))
    if values.min() == values.max():
        raise UnreadableDicom(f"every pixel is the same grey ({values.min()})")
    return values if values.dtype == np.uint8 else rescale(values, values.min(), values.max())


def header_flag(dataset: Dataset) -> str:
    """Why, by its header, the image may be no frontal chest radiograph; empty if nothing speaks against it."""
    names = ("ViewPosition", "BodyPartExamined", "Modality")
    view, part, modality = (str(dataset.get(name) or "").strip().upper() for name in names)
    views = " ".join(str(item.get("CodeMeaning")) for item in dataset.get("ViewCodeSequence") or []).upper()
    rows = str(next(iter(dataset.get("PatientOrientation") or []), ""))  # A, P: as in a lateral
    lateral = re.search(r"\bLATERAL\b", views) or rows.startswith(("A", "P")) or view not in ("", "AP", "PA")
    flags = {
        "lateral, or another view than AP and PA": lateral,
        "another part of the body than the chest": part and not re.search("CHEST|THORA|LUNG", part),
        "another modality than radiography": modality not in RADIOGRAPHY,
    }
    return "; ".join(flag for flag, applies in flags.items() if applies)
