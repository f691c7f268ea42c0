"""DICOM -> square: transfer syntaxes, windowing, letterbox, and what is refused."""

import contextlib
import os
import tracemalloc
import zlib
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from helpers.dicom_files import GDCM_SYNTAXES, jpeg, radiograph, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from rsna.core.errors import UserError
from rsna.core.files import content_hash
from rsna.data import decoders, dicom
from rsna.data.cache import INDEX_COLUMNS, INDEX_CSV, JOURNAL_CSV, read_index
from rsna.data.decoders import coded_size
from rsna.data.dicom import MAX_PIXELS, UnreadableDicom, describe, parse_dicom, read_file, read_header, read_pixels
from rsna.data.letterbox import (
    cached_to_original,
    decode_square,
    fit_letterbox,
    original_to_cached,
    read_png,
    write_png,
)

NATIVE = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
]


def open_dicom(path):
    return parse_dicom(read_file(path))


def read_dicom(path, size):
    """Read a DICOM file: the image, uint8 (size, size), its geometry, and the fields of decoders.describe."""
    dataset = open_dicom(path)
    header = describe(dataset)
    return *decode_square(dataset, size), header


def pixels_of(path, **options):
    return read_pixels(open_dicom(path), **options).astype(int)


def stretched(values):
    values = values.astype(float)
    return (values - values.min()) / (values.max() - values.min()) * 255


# transfer syntaxes against known pixels


@pytest.mark.parametrize("syntax", [*NATIVE, *GDCM_SYNTAXES], ids=lambda syntax: uid.UID(syntax).name)
def test_8_bit_pixels_come_back_unchanged(tmp_path, syntax):
    image = radiograph(98, 83)
    # of these encoders only GDCM's 8-bit JPEG Extended is lossy
    error = np.abs(pixels_of(write_dicom(tmp_path / "a.dcm", image, syntax)) - image)
    assert error.max() <= (1 if syntax == uid.JPEGExtended12Bit else 0)


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(syntax, 12) for syntax in [*NATIVE, *GDCM_SYNTAXES]]
    + [(syntax, 16) for syntax in [*NATIVE, *GDCM_SYNTAXES] if syntax != uid.JPEGExtended12Bit],
)
def test_more_than_8_bits_span_the_whole_range(tmp_path, syntax, bits):
    values = radiograph(97, 83).astype(np.uint16) << (bits - 8)
    path = write_dicom(tmp_path / "a.dcm", values, syntax, BitsStored=bits)
    assert np.abs(pixels_of(path) - stretched(values)).max() <= 1


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_signed_values(tmp_path, syntax):
    values = radiograph(64, 64).astype(np.int16) * 10 - 1000
    assert np.abs(pixels_of(write_dicom(tmp_path / "a.dcm", values, syntax)) - stretched(values)).max() <= 1


@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_baseline_equals_pillow(tmp_path, quality):
    image = radiograph(256, 200)
    path = write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit, jpeg(image, quality=quality))
    assert np.abs(pixels_of(path, smallest=(200, 256)) - image).max() <= 12
    assert np.abs(pixels_of(path, smallest=(200, 256)) - image).mean() < 3


def test_dicoms_written_by_other_software():
    """The files that come with pydicom, so no network is needed; pixels are compared with the uncompressed original."""
    original = pixels_of(local("MR_small.dcm"))
    for name in (
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ):
        np.testing.assert_array_equal(pixels_of(local(name)), original, name)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_colours_become_luma(name):
    """The same ten colour bars in every encoding."""
    reference = cv2.cvtColor(pydicom.dcmread(local("SC_rgb_rle.dcm")).pixel_array, cv2.COLOR_RGB2GRAY)
    assert np.abs(pixels_of(local(name)) - reference.astype(int)).mean() < 2


def test_a_palette_becomes_luma(tmp_path):
    table = (np.arange(255, -1, -1) * 257).astype("<u2").tobytes()
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table
    path = write_dicom(tmp_path / "a.dcm", np.arange(256, dtype=np.uint8).reshape(16, 16), **tags)
    np.testing.assert_array_equal(pixels_of(path).ravel(), np.arange(255, -1, -1))


def local(name):
    path = get_testdata_file(name, download=False)
    assert path, f"{name} does not come with this pydicom"
    return Path(path)


# windowing


def test_monochrome1_is_inverted_in_every_path(tmp_path):
    image = radiograph(64, 64)
    tags = {"PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_array_equal(pixels_of(write_dicom(tmp_path / "a.dcm", image, **tags)), 255 - image.astype(int))
    for syntax in (uid.JPEGBaseline8Bit, uid.JPEG2000Lossless):
        plain = pixels_of(write_dicom(tmp_path / "b.dcm", image, syntax))
        np.testing.assert_array_equal(pixels_of(write_dicom(tmp_path / "c.dcm", image, syntax, **tags)), 255 - plain)
    values = image.astype(np.uint16) * 10
    plain = pixels_of(write_dicom(tmp_path / "d.dcm", values))
    np.testing.assert_array_equal(pixels_of(write_dicom(tmp_path / "e.dcm", values, **tags)), 255 - plain)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2 and C.11.2.1.3, worked out by hand for centre 2048, width 1024
        ("LINEAR", lambda x: np.clip((x - 2047.5) / 1023 + 0.5, 0, 1) * 255),
        ("LINEAR_EXACT", lambda x: np.clip((x - 2048) / 1024 + 0.5, 0, 1) * 255),
        ("SIGMOID", lambda x: 255 / (1 + np.exp(-4 * (x - 2048) / 1024))),
    ],
)
def test_window_functions(tmp_path, function, expected):
    tags = {"WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": function, "BitsStored": 12}
    found = pixels_of(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert np.abs(found - expected(RAMP.astype(float))).max() <= 0.51


def test_window_is_in_rescaled_units_and_the_first_of_many_counts(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [0, 500], "WindowWidth": [2001, 10]}
    found = pixels_of(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    expected = np.clip((RAMP * 2.0 - 1000 + 0.5) / 2000 + 0.5, 0, 1) * 255
    assert np.abs(found - expected).max() <= 0.51


def test_a_window_applies_to_8_bit_jpeg_too(tmp_path):
    image = radiograph(64, 64)
    tags = {"WindowCenter": 128, "WindowWidth": 64}
    found = pixels_of(write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit, **tags), smallest=(8, 8))
    plain = pixels_of(write_dicom(tmp_path / "b.dcm", image, uid.JPEGBaseline8Bit))
    assert found.shape == (64, 64)
    assert np.abs(found - np.clip((plain - 127.5) / 63 + 0.5, 0, 1) * 255).max() <= 0.51


def test_negative_slope_inverts(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=4095)
    assert np.abs(pixels_of(path) - (255 - stretched(RAMP))).max() <= 0.51


def test_an_empty_window_is_ignored(tmp_path):
    image = radiograph(32, 32)
    found = pixels_of(write_dicom(tmp_path / "a.dcm", image, WindowCenter=None, WindowWidth=None))
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (-2000, {"PixelPaddingValue": -2000}),
        (-1999, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (3000, {"PixelPaddingValue": 3000, "RescaleSlope": 2, "RescaleIntercept": 7}),
        (3000, {"PixelPaddingValue": 3000, "WindowCenter": 120, "WindowWidth": 200}),
    ],
)
def test_padding_is_black_and_does_not_affect_the_scaling(tmp_path, value, tags, photometric):
    """Otherwise a scanner's border outside the measured area would turn the lungs into a flat grey."""
    values = radiograph(64, 64).astype(np.int16)
    shown = {name: value for name, value in tags.items() if name.startswith("Window")}
    plain = pixels_of(write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, **shown))
    padded = np.pad(values, 8, constant_values=value)
    found = pixels_of(write_dicom(tmp_path / "b.dcm", padded, PhotometricInterpretation=photometric, **tags))
    np.testing.assert_array_equal(found, np.pad(plain, 8))


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("bits", [8, 12])
def test_voi_table(tmp_path, bits, rescaled):
    """Including a table with 8-bit output and more than 256 entries, which pydicom 3.0.2 applies wrongly."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, bits])
    table.add_new("LUTData", "US", [int(2**bits - 1 - entry / 4095 * (2**bits - 1)) for entry in range(4096)])
    tags = {"RescaleSlope": 0.5, "RescaleIntercept": 0} if rescaled else {}
    found = pixels_of(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=Sequence([table]), **tags))
    assert np.abs(found - (1 - RAMP * (0.5 if rescaled else 1) / 4095) * 255).max() <= 1.1


# letterbox


@settings(max_examples=200)
@given(
    rows=st.integers(1, 6000),
    cols=st.integers(1, 6000),
    size=st.sampled_from([64, 224, 512, 1024]),
    box=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_are_mapped_back(rows, cols, size, box):
    width, height, geometry = fit_letterbox(rows, cols, size)
    original = np.array([box]) * [cols, rows, cols, rows]
    cached = original_to_cached(original, np.array([geometry]))
    assert ((cached >= -1e-6) & (cached <= size + 1e-6)).all()
    np.testing.assert_allclose(cached_to_original(cached, np.array(geometry)), original, atol=1e-6)
    assert max(width, height) == size
    # the proportions are kept; the shorter side is rounded to whole pixels and is at least 1
    assert abs(min(width, height) - min(rows, cols) * size / max(rows, cols)) <= 1


def test_each_row_of_boxes_has_its_own_geometry():
    geometry = np.array([[0.5, 0.5, 0, 0], [0.25, 0.5, 10, 0]])
    boxes = np.array([[0, 0, 10, 10], [4, 4, 8, 8]])
    expected = [[0, 0, 5, 5], [11, 2, 12, 4]]
    np.testing.assert_allclose(original_to_cached(boxes, geometry), expected)
    np.testing.assert_allclose(cached_to_original(np.array(expected), geometry), boxes)
    assert original_to_cached(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0, 4)


SHAPES = [(1024, 1024), (1000, 700), (333, 500), (2048, 1536), (150, 150)]


@pytest.mark.parametrize("size", [64, 96, 256, 512])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.ExplicitVRLittleEndian], ids=["jpeg", "raw"])
def test_a_bright_box_lies_where_its_mapped_box_says(tmp_path, syntax, shape, size):
    rows, cols = shape
    image = np.full(shape, 20, np.uint8)
    box = np.array([[cols * 0.2, rows * 0.3, cols * 0.7, rows * 0.9]]).round()
    left, top, right, bottom = box[0].astype(int)
    image[top:bottom, left:right] = 220
    path = write_dicom(tmp_path / "a.dcm", image, syntax, jpeg(image, quality=98) if "1.4.50" in syntax else b"")
    cached, geometry, _ = read_dicom(path, size)
    assert cached.shape == (size, size)
    assert cached.dtype == np.uint8
    mapped = original_to_cached(box, np.array(geometry))[0]
    # the brightness along the middle row and column gives the edges to fractions of a pixel
    centre_x, centre_y = int(mapped[[0, 2]].mean()), int(mapped[[1, 3]].mean())
    for profile, low, high in ((cached[centre_y], mapped[0], mapped[2]), (cached[:, centre_x], mapped[1], mapped[3])):
        brightness = np.clip((profile.astype(float) - 20) / 200, 0, None)
        assert abs(brightness.sum() - (high - low)) < 0.15
        assert abs((brightness * (np.arange(size) + 0.5)).sum() / brightness.sum() - (low + high) / 2) < 0.1


def test_not_square_is_padded_black_on_both_sides(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.clip(radiograph(100, 50), 50, 255))
    image, geometry, header = read_dicom(path, 64)
    assert geometry == (0.64, 0.64, 16, 0)
    assert (header["rows"], header["cols"], header["photometric"]) == (100, 50, "MONOCHROME2")
    assert image[:, :16].max() == 0
    assert image[:, 48:].max() == 0
    assert image[:, 16:48].min() > 40


@pytest.mark.parametrize("size", [64, 128, 256, 384, 512])
def test_fast_path_equals_full_decoding(tmp_path, size):
    """Within 2 grey levels, except for single pixels: libjpeg drops high frequencies, which averaging keeps."""
    image = radiograph(1024, 1024)
    path = write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit)
    fast, _, _ = read_dicom(path, size)
    full = pixels_of(path).astype(np.uint8)
    assert full.shape == (1024, 1024)
    slow = cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
    difference = np.abs(fast.astype(int) - slow)
    assert np.percentile(difference, 99.9) <= 2
    assert difference.max() <= 3
    assert difference.mean() < 0.4


def test_reduction_is_exact_and_never_below_the_size(tmp_path):
    image = radiograph(1000, 1000)
    dataset = open_dicom(write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit))
    sides = {need: read_pixels(dataset, (need, need)).shape[0] for need in (1000, 501, 500, 250, 126, 125, 10)}
    assert sides == {1000: 1000, 501: 1000, 500: 500, 250: 250, 126: 250, 125: 125, 10: 125}
    odd = open_dicom(write_dicom(tmp_path / "b.dcm", radiograph(1001, 1000), uid.JPEGBaseline8Bit))
    assert read_pixels(odd, (10, 10)).shape == (1001, 1000)


# what is refused


def refusal(path, size=64):
    with pytest.raises(UnreadableDicom) as caught:
        read_dicom(path, size)
    reason = str(caught.value)
    assert "\n" not in reason
    assert 5 < len(reason) <= 300
    return reason


def test_files_that_are_not_dicom(tmp_path):
    (tmp_path / "text.dcm").write_text("<html>please log in</html>\n" * 20)
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "noise.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)) * 8)
    (tmp_path / "link.dcm").symlink_to(tmp_path / "nothing")
    assert "DICM" in refusal(tmp_path / "text.dcm")
    assert refusal(tmp_path / "empty.dcm") == "the file is empty"
    assert "folder" in refusal(tmp_path / "folder.dcm")
    assert refusal(tmp_path / "noise.dcm")
    assert "No such file" in refusal(tmp_path / "link.dcm")
    assert refusal(local("rtplan.dcm")) == "there is no image in the file"


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
@pytest.mark.parametrize(
    "syntax", [*NATIVE, uid.JPEGBaseline8Bit, *GDCM_SYNTAXES], ids=lambda syntax: uid.UID(syntax).name
)
def test_a_truncated_file_is_refused(tmp_path, syntax, kept):
    path = write_dicom(tmp_path / "a.dcm", radiograph(200, 200), syntax)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_truncated_jpeg_in_a_complete_dicom_is_refused(tmp_path, kept):
    image = radiograph(256, 256)
    frame = jpeg(image)
    path = write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit, frame[: int(len(frame) * kept)])
    assert "truncated" in refusal(path)


def test_sizes_that_do_not_agree_are_refused(tmp_path):
    image = radiograph(64, 64)
    for syntax in (uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.JPEGLosslessSV1):
        dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", image, syntax))
        dataset.Columns = 65
        dataset.save_as(tmp_path / "a.dcm")
        assert refusal(tmp_path / "a.dcm") == "declared size 65 x 64, but the compressed image is 64 x 64"


def test_headers_that_ask_for_too_much_are_refused(tmp_path):
    image = radiograph(64, 64)
    path = write_dicom(tmp_path / "a.dcm", image, Rows=65535, Columns=65535)
    assert f"{MAX_PIXELS:,}" in refusal(path)
    assert "declared size 64 x 0" in refusal(write_dicom(tmp_path / "a.dcm", image, Rows=0))
    assert "3 frames" in refusal(write_dicom(tmp_path / "a.dcm", image, NumberOfFrames=3))
    assert "less than expected" in refusal(write_dicom(tmp_path / "a.dcm", image, Rows=65))
    assert "windows or lookup tables" in refusal(write_dicom(tmp_path / "a.dcm", image, WindowCenter=5, WindowWidth=0))


def test_an_image_of_a_single_grey_level_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((64, 64), np.uint8))
    assert refusal(path) == "every pixel is the same grey (0 of 255)"
    assert "same grey" in refusal(write_dicom(tmp_path / "a.dcm", np.full((64, 64), 900, np.uint16)))


def test_missing_pixels_and_unknown_syntaxes_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(64, 64))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert refusal(path) == "there is no pixel data"
    path = write_dicom(tmp_path / "a.dcm", radiograph(64, 64), uid.HTJ2KLossless, b"\xff\x4f\xff\x51" + b"\0" * 40)
    assert "not supported" in refusal(path)


def test_colour_jpeg_declared_as_grey_is_refused(tmp_path):
    image = radiograph(64, 64)
    path = write_dicom(tmp_path / "a.dcm", image, uid.JPEGBaseline8Bit, jpeg(np.dstack([image, image // 2, image])))
    assert "one grey channel" in refusal(path)


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path_factory, data):
    """Not with GDCM: a damaged stream can crash its process; see test_cache_images."""
    folder = tmp_path_factory.mktemp("damaged")
    syntax = data.draw(st.sampled_from([uid.JPEGBaseline8Bit, *NATIVE]))
    path = write_dicom(folder / "a.dcm", radiograph(40, 40), syntax)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 10))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UnreadableDicom):
        image, _, _ = read_dicom(path, 32)
        assert image.shape == (32, 32)
        assert image.dtype == np.uint8


def test_coded_size():
    assert coded_size(jpeg(radiograph(30, 50))) == (50, 30)
    assert coded_size(jpeg(radiograph(30, 50), progressive=True)) == (50, 30)
    assert coded_size(b"") is None
    assert coded_size(b"\xff\xd8\xff\xe0\x00\x10") is None


# headers, PNG files, the index


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_read_header(tmp_path):
    """Ages may lack their unit, as in the challenge's files."""
    tags = {"PatientAge": "62", "PatientSex": "F", "ViewPosition": "PA"}
    path = write_dicom(tmp_path / "0a1b.dcm", radiograph(8, 8), **tags)
    assert read_header(path) == {"patientId": "0a1b", **tags}
    path.write_text("no DICOM")
    assert read_header(path) == {"patientId": "0a1b", "PatientAge": "", "PatientSex": "", "ViewPosition": ""}


def test_a_header_that_never_ends_is_abandoned(tmp_path, monkeypatch):
    """A file that is too large is not opened, and one that keeps the parser busy is stopped by the time limit."""
    path = write_dicom(tmp_path / "a.dcm", radiograph(8, 8), ViewPosition="AP")
    os.truncate(path, decoders.MAX_BYTES + 1)  # sparse
    with monkeypatch.context() as patch:
        patch.setattr(pydicom, "dcmread", lambda *args, **options: pytest.fail("opened"))
        assert read_header(path)["ViewPosition"] == ""
    os.truncate(path, 10_000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **options: next(n for n in count() if n < 0))
    monkeypatch.setattr(dicom, "time_limit", partial(dicom.time_limit, 0.05))
    assert read_header(path)["ViewPosition"] == ""


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.filterwarnings("ignore:The value length")
def test_free_text_in_header_fields_is_not_passed_on(tmp_path):
    secrets = {"PatientAge": "DOE", "PatientSex": "DOE^JANE 1950", "ViewPosition": "DOE^JOHN MRN123"}
    path = write_dicom(tmp_path / "0a1b.dcm", radiograph(8, 8), **secrets)
    assert read_header(path) == {"patientId": "0a1b"} | dict.fromkeys(secrets, "")
    path = write_dicom(tmp_path / "a.dcm", radiograph(8, 8), PhotometricInterpretation="DOE JOHN")
    assert refusal(path) == "the photometric interpretation is none that DICOM knows"
    for tag in ("NumberOfFrames", "WindowCenter"):
        content = write_dicom(
            tmp_path / "a.dcm", radiograph(8, 8), **{tag: "1234567890", "WindowWidth": 5}
        ).read_bytes()
        (tmp_path / "a.dcm").write_bytes(content.replace(b"1234567890", b"DOE^JOHNNY"))
        assert "DOE" not in refusal(tmp_path / "a.dcm")


NUMERIC_FIELDS = ["SamplesPerPixel", "BitsStored", "BitsAllocated", "PixelRepresentation", "PlanarConfiguration"]
NUMERIC_FIELDS += ["NumberOfFrames", "Rows", "Columns", "WindowCenter", "WindowWidth", "RescaleSlope", "HighBit"]
NUMERIC_FIELDS += ["RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "VOILUTFunction"]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.RLELossless])
@pytest.mark.parametrize("name", NUMERIC_FIELDS)
def test_reasons_do_not_quote_the_header(tmp_path, name, syntax):
    """A field may hold a name, which libraries quote in their messages."""
    window = {} if syntax == uid.JPEGBaseline8Bit else {"WindowCenter": 90, "WindowWidth": 80}
    path = write_dicom(tmp_path / "a.dcm", radiograph(64, 64), syntax, **window)
    dataset = pydicom.dcmread(path)
    dataset[name] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(name), "LO", "DOE^JANE")
    dataset.save_as(path)
    with contextlib.suppress(UnreadableDicom):
        read_dicom(path, 64)
        return
    assert "DOE" not in refusal(path)


def test_an_unknown_transfer_syntax_is_not_repeated(tmp_path):
    """Its UID may be any text, even with DICOM's own prefix."""
    path = write_dicom(tmp_path / "a.dcm", radiograph(64, 64))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.194701"))
    assert refusal(path) == "the transfer syntax is none that DICOM knows"


def write_inflating(path, megabytes):
    """Write a small deflated DICOM that inflates to this size."""
    write_dicom(path, radiograph(8, 8), uid.DeflatedExplicitVRLittleEndian, ViewPosition="AP")
    content = path.read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    # an endless private element; after a full flush, a compressed block is independent and can be repeated
    element = b"\x09\x00\x10\x10OB\0\0" + (0xFFFFFFF0).to_bytes(4, "little")
    first = deflate.compress(element) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(content[:meta] + first + block * megabytes + deflate.flush())
    assert path.stat().st_size < 4 * 2**20
    return path


def test_a_decompression_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "MAX_BYTES", 100_000_000)
    path = write_inflating(tmp_path / "a.dcm", 1000)
    tracemalloc.start()
    try:
        assert "inflated it has more than 100,000,000 bytes" in refusal(path)
        assert set(read_header(path).values()) == {"a", ""}
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_any_radiograph_is_refused_unread(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(8, 8))
    os.truncate(path, 2**40)
    assert "more than 400,000,000" in refusal(path)


def test_png_round_trip(tmp_path):
    image = radiograph(64, 64)
    assert write_png(image, tmp_path / "a.png") == content_hash(tmp_path / "a.png")
    np.testing.assert_array_equal(read_png(tmp_path / "a.png", 64), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_png_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match=r"a\.png: No such file.*cache_images"):
        read_png(tmp_path / "a.png", 64)
    write_png(radiograph(64, 64), tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    header = whole[:8] + b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4)
    for content in (b"", b"text", whole[:-1], whole[: len(whole) // 2], header):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.png: damaged PNG file; run: "):
            read_png(tmp_path / "a.png", 64)


def test_a_png_that_declares_or_has_more_than_its_image_takes_no_memory(tmp_path):
    path = tmp_path / "a.png"
    write_png(radiograph(64, 64), path)
    whole = path.read_bytes()
    header = b"IHDR" + (30_000).to_bytes(4) * 2 + whole[24:29]
    path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:])
    with pytest.raises(UserError, match=r"a\.png: 30000 x 30000 pixels, not 64 x 64; run: "):
        read_png(path, 64)
    path.write_bytes(whole)
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match=r"a\.png: damaged PNG file; run: "):
        read_png(path, 64)


def test_index_that_is_missing_or_unfinished(tmp_path):
    with pytest.raises(UserError, match=r"no such file; run: \./run\.sh cache_images"):
        read_index(tmp_path, 64)
    pd.DataFrame(columns=INDEX_COLUMNS).to_csv(tmp_path / INDEX_CSV, index=False)
    assert list(read_index(tmp_path, 64)) == INDEX_COLUMNS
    refused = {**dict.fromkeys(INDEX_COLUMNS, ""), "patientId": "a", "split": "train", "status": "refused"}
    pd.DataFrame([refused]).to_csv(tmp_path / INDEX_CSV, index=False)
    assert read_index(tmp_path, 64)["rows"].isna().all(), "no image of it can be used"
    (tmp_path / JOURNAL_CSV).touch()
    with pytest.raises(UserError, match="unfinished"):
        read_index(tmp_path, 64)
