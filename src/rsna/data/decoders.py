"""Decode compressed DICOM files and frames: size limits, the decoder of each transfer syntax, decoding."""

import io
import zlib
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

# The decoder of each compressed transfer syntax. pydicom would take whichever plugin happens to be installed, and
# results should not depend on that.
PLUGINS = {
    **dict.fromkeys([uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], "pillow"),
    **dict.fromkeys([uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGLSNearLossless], "gdcm"),
    **dict.fromkeys([uid.JPEG2000Lossless, uid.JPEG2000], "gdcm"),
    uid.RLELossless: "pydicom",
}
# 10,000 x 10,000: no radiograph is larger, and a damaged header can ask for 65,535 x 65,535
MAX_PIXELS = 100_000_000
MAX_BYTES = 4 * MAX_PIXELS  # size limit of a file, before and after decompression


class UnreadableDicom(Exception):  # noqa: N818 (it is not an error of the program)
    """A file that cannot be used. The text gives the reason, and never quotes the header, which may hold any text."""


class BoundedReader(io.BufferedReader):
    """A DICOM file for pydicom, with a size limit. pydicom reads the whole rest of a file only to inflate it."""

    name = ""  # pydicom needs this attribute, which files in memory do not have

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual; raises UnreadableDicom if the whole rest is read and inflates to more than MAX_BYTES."""
        if size is not None and size >= 0:
            return super().read(size)
        parts, room, inflate = [], MAX_BYTES, zlib.decompressobj(-zlib.MAX_WBITS)
        while not inflate.eof and (rest := super().read(2**20)):
            parts.append(rest)
            while rest and not inflate.eof:
                room -= len(inflate.decompress(rest, 2**23))
                rest = inflate.unconsumed_tail
                if room < 0:
                    raise UnreadableDicom(f"inflated it has more than {MAX_BYTES:,} bytes")
        return b"".join(parts)


def frame_of(dataset: FileDataset) -> bytes:
    """The bytes of the single compressed frame, with its fragments joined."""
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG, JPEG-LS or JPEG 2000 stream; None if it has none."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 256)  # JPEG 2000: SOC, then SIZ with bottom right and top left corner
    if siz >= 0:
        right, bottom, left, top = (int.from_bytes(frame[at : at + 4]) for at in range(siz + 8, siz + 24, 4))
        return right - left, bottom - top
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        # SOF0 to SOF15 and JPEG-LS's SOF55; the three excluded values in that range are other markers
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(frame[at + 7 : at + 9]), int.from_bytes(frame[at + 5 : at + 7])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None


def decode(dataset: FileDataset) -> tuple[NDArray[Any], str]:
    """The stored values (height, width[, 3]) and their photometric interpretation. Raises what the decoder raises."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8:
        return decode_12_bit(dataset), str(dataset.PhotometricInterpretation)
    values, properties = get_decoder(syntax).as_array(dataset, decoding_plugin=PLUGINS.get(syntax, ""))
    return values, str(properties["photometric_interpretation"])


def decode_12_bit(dataset: FileDataset) -> NDArray[np.uint16]:
    """Decode 12-bit JPEG Extended with GDCM, which pydicom's GDCM plugin refuses to do: uint16 (height, width)."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame_of(dataset))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    text = image.GetBuffer()
    if text is None:
        raise UnreadableDicom("GDCM cannot decode the 12-bit JPEG")
    # GDCM returns the bytes as str, with those that are not valid UTF-8 escaped
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), "<u2").reshape(dataset.Rows, dataset.Columns)


def decode_reduced(dataset: FileDataset, smallest: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode grey JPEG Baseline, uint8, at the smallest of 1/8, 1/4, 1/2, 1/1 of its size that is at least `smallest`.

    smallest: (width, height) in pixels. Raises UnreadableDicom if the JPEG is not grey.
    """
    # with Pillow, because OpenCV accepts truncated files
    image = Image.open(io.BytesIO(frame_of(dataset)), formats=("JPEG",))
    if image.mode != "L":
        raise UnreadableDicom(f"declared as one grey channel, but the JPEG is {image.mode}")
    width, height = image.size
    for factor in (8, 4, 2):
        # only exact divisors: libjpeg pads other sizes to whole blocks, which would shift the image
        reduced = (width // factor, height // factor)
        if width % factor == height % factor == 0 and reduced[0] >= smallest[0] and reduced[1] >= smallest[1]:
            image.draft("L", reduced)
            break
    return np.asarray(image)
