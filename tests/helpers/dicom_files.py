"""Write DICOM files for tests, with any pixels, header and transfer syntax."""

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

# written by GDCM from an uncompressed file; the names are those of gdcm.TransferSyntax
GDCM_SYNTAXES = {
    uid.JPEGLossless: "JPEGLosslessProcess14",
    uid.JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    uid.JPEGLSLossless: "JPEGLSLossless",
    uid.JPEGLSNearLossless: "JPEGLSNearLossless",
    uid.JPEG2000Lossless: "JPEG2000Lossless",
    uid.JPEG2000: "JPEG2000",
    uid.JPEGExtended12Bit: "JPEGExtendedProcess2_4",
    uid.RLELossless: "RLELossless",
}


def radiograph(rows: int, cols: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth greys with some noise, uint8 (rows, cols)."""
    y, x = np.mgrid[:rows, :cols]
    waves = np.sin(x / cols * 5 + seed) * np.cos(y / rows * 4) + 0.3 * np.sin((x + 2 * y) / 37)
    noise = np.random.default_rng(seed).normal(0, 2, (rows, cols))
    return np.clip(128 + 80 * waves + noise, 0, 255).astype(np.uint8)


def jpeg(image: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def write_dicom(
    path: Path, pixels: NDArray[Any], syntax: str = uid.ExplicitVRLittleEndian, frame: bytes = b"", **tags: Any
) -> Path:
    """Write `pixels` (rows, cols[, 3]) with a matching header; `frame`, if given, is written instead of them.

    JPEG Baseline is encoded by Pillow, other compressed syntaxes by GDCM.
    """
    pixels = np.ascontiguousarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax if frame or syntax not in GDCM_SYNTAXES else uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    big = syntax == uid.ExplicitVRBigEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_little_endian=not big)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientID = uid.SecondaryCaptureImageStorage, "1.2.3", "header"
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    if syntax == uid.JPEGBaseline8Bit and not frame:
        frame = jpeg(pixels)
    order = ">" if big else "<"
    dataset.PixelData = encapsulate([frame]) if frame else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 or frame else "OW"
    # DICOM elements must have an even number of bytes
    if not frame and len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset.save_as(path, enforce_file_format=True)
    if syntax in GDCM_SYNTAXES and not frame:
        transcode(path, GDCM_SYNTAXES[syntax])
    return path


def transcode(path: Path, name: str) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change(), name
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.PeekOutput() if hasattr(change, "PeekOutput") else change.GetOutput())
    assert writer.Write()
