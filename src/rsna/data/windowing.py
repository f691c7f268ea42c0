"""Windowing: stored pixel values -> 8 bits for display, by DICOM's modality and VOI transforms."""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

GreyImage = NDArray[np.uint8]
# PS3.3 C.7.6.3.1.2, including retired ones
PHOTOMETRIC = [
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"),
]


def to_8_bit(values: NDArray, photometric: str, dataset: Dataset) -> GreyImage:
    """Decoded values (height, width[, 3]) -> uint8 (height, width). Raises what pydicom raises for invalid tables.

    photometric: the interpretation of the values, which may differ from the header's, as a decoder may turn YBR into
    RGB. MONOCHROME1 is not inverted here.
    """
    white = 2 ** int(dataset.BitsStored) - 1
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        white = np.iinfo(values.dtype).max
    if values.ndim == 3:
        return rescale(cv2.cvtColor(values[..., :3].astype(np.float32), cv2.COLOR_RGB2GRAY), 0, white)
    if shows_stored_values(dataset):
        return values.astype(np.uint8)
    return window_monochrome(values, dataset)


def window_monochrome(values: NDArray, dataset: Dataset) -> GreyImage:
    """Modality transform, VOI transform, then scaling to 0..255. Padding, as given in the header, becomes black."""
    padding = find_padding(values, dataset)
    values = apply_modality_lut(values, dataset) if has_modality(dataset) else values
    if has_voi(dataset):
        image = apply_voi(values, dataset)
    else:
        # the standard leaves this open; like viewers, scale from the minimum to the maximum. With the full range of the
        # type, 12 bits stored in 16 would be nearly black, and signed values around an offset a flat grey.
        shown = values if padding.all() else values[~padding]
        image = rescale(values, shown.min(), shown.max())
    image[padding] = 255 if dataset.PhotometricInterpretation == "MONOCHROME1" else 0
    return image


def apply_voi(values: NDArray, dataset: Dataset) -> GreyImage:
    """Apply the VOI table, or else the first window, and scale to 0..255."""
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        entries, first, bits = item.LUTDescriptor
        # pydicom 3.0.2 indexes the table with integers as wide as its output, which overflow if a table with 8-bit
        # output has more than 256 entries; declared as 16 bits, the same table works
        item.LUTDescriptor = [entries, first, 16]
        return rescale(apply_voi_lut(np.rint(values).astype(np.int64), dataset), 0, 2**bits - 1)
    # values far below and far above the window give black and white, whatever function and rescaling pydicom applies
    with np.errstate(over="ignore"):
        low, high = apply_voi_lut(np.array([-1e30, 1e30]), dataset)
        return rescale(apply_voi_lut(values, dataset), low, high)


def find_padding(values: NDArray, dataset: Dataset) -> NDArray[np.bool_]:
    """A mask of the stored values that are padding: PixelPaddingValue, PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, np.bool_)
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    return (values >= low) & (values <= high)


def rescale(values: NDArray, low: float, high: float) -> GreyImage:
    """Map low..high linearly to 0..255, rounded and clipped; all zeros if low == high."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - low) * (255 / (float(high) - float(low)))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def shows_stored_values(dataset: Dataset) -> bool:
    """Whether an image is unsigned 8-bit and has neither transform, so that its stored values can be shown directly."""
    plain = dataset.BitsStored == 8 and dataset.PixelRepresentation == 0
    return plain and not has_modality(dataset) and not has_voi(dataset)


def has_modality(dataset: Dataset) -> bool:
    """Whether there is a modality table, or a rescaling that is not the identity."""
    rescaling = (dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0))
    return bool(dataset.get("ModalityLUTSequence")) or rescaling != (1, 0)


def has_voi(dataset: Dataset) -> bool:
    """Whether there is a VOI table or a window."""
    window = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    return bool(dataset.get("VOILUTSequence")) or None not in window
