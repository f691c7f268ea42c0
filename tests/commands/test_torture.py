"""The image cache on files with the faults of hospitals, networks and disks, through the real script.

Each file becomes the expected image, or a row with a reason; nothing is written outside the cache.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import GDCM_SYNTAXES, jpeg, radiograph, write_dicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.data import get_testdata_file

from rsna.data.cache import INDEX_CSV, SEEN_CSV, cache_image, read_index
from rsna.data.competition import HEADERS_CSV, TEST_IMAGES, TRAIN_IMAGES
from rsna.data.dicom import read_header
from rsna.data.letterbox import read_png

SCRIPT = Path(__file__).resolve().parents[2] / "src" / "cache_images.py"
SIZE = 64
SECRET = "Doe^Jane"
IMAGE = radiograph(SIZE, SIZE, 3)
# the full range, so that scaling minimum and maximum to 0 and 255 changes nothing
IMAGE[0, 0], IMAGE[0, 1] = 0, 255
WIDE = IMAGE.astype(np.uint16)
IDENTITY = (np.arange(256) * 257).astype("<u2").tobytes()
PALETTE = {"PhotometricInterpretation": "PALETTE COLOR"} | {
    f"{colour}PaletteColorLookupTable{part}": value
    for colour in ("Red", "Green", "Blue")
    for part, value in (("Descriptor", [256, 0, 16]), ("Data", IDENTITY))
}


class Good(NamedTuple):
    """Pixels and header to write; the cache must hold `expected`, within `tolerance` grey levels."""

    pixels: NDArray[Any]
    syntax: str
    expected: NDArray[np.uint8]
    tolerance: int
    frame: bytes
    tags: dict[str, Any]


def good(pixels=IMAGE, syntax=uid.ExplicitVRLittleEndian, expected=IMAGE, tolerance=0, frame=b"", **tags):
    return Good(pixels, syntax, expected, tolerance, frame, tags)


GOOD = {
    **{f"native{k}": good(syntax=syntax) for k, syntax in enumerate(
        (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian))},
    **{f"gdcm{k}": good(syntax=syntax, tolerance=1) for k, syntax in enumerate(GDCM_SYNTAXES)},
    "jpeg": good(syntax=uid.JPEGBaseline8Bit, tolerance=12),
    "bits10": good(WIDE * 4, BitsStored=10),
    "bits12": good(WIDE * 16, BitsStored=12),
    "bits16": good(WIDE * 257),
    "signed": good(IMAGE.astype(np.int16) - 1000),
    "overlay": good(WIDE * 16 | 0xA000, BitsStored=12),
    "inverted": good(255 - IMAGE, PhotometricInterpretation="MONOCHROME1"),
    "inverted12": good((255 - WIDE) * 16, BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
    "rgb": good(np.dstack([IMAGE] * 3), tolerance=1),
    "palette": good(tolerance=1, **PALETTE),
    "oneframe": good(NumberOfFrames=1),
    "nowindow": good(WindowCenter=None, WindowWidth=None),
    "old": good(PatientAge="155"),
    "ageless": good(PatientAge="", PatientSex="", ViewPosition=""),
    "twoviews": good(ViewPosition="AP\\PA"),
    "escaping": good(PatientID="../../escaped", SOPInstanceUID="1.2/../../escaped", PatientName="$(touch escaped)"),
    "fragment": good(frame=jpeg(IMAGE), syntax=uid.JPEGBaseline8Bit, tolerance=12),
    "Größe": good(),
}  # fmt: skip

# the name of each bad file, and what its reason must contain
BAD = {
    "norows": "no image",
    "nophotometric": "PhotometricInterpretation",
    "cut": "less than expected",
    "garbage": "",  # whatever pydicom fails at first
    "zero": "the file is empty",
    "text": "DICM",
    "folder": "folder",
    "pipe": "pipe",
    "loop": "symbolic links",
    "two words": "letters",
    "tiny ": "letters",
    "semi;colon$(id)": "letters",
    "tiny": "same grey",
    "bomb": "must be from 1 to",
    "jpegbomb": "must be from 1 to",
    "frames": "3 frames",
    "nopixels": "no pixel data",
    "report": "no image",
}


def write_bad(folder):
    def path(name):
        return folder / f"{name}.dcm"

    write_dicom(path("norows"), IMAGE)
    write_dicom(path("nophotometric"), IMAGE)
    for name, tag in (("norows", "Rows"), ("nophotometric", "PhotometricInterpretation"), ("nopixels", "PixelData")):
        dataset = pydicom.dcmread(write_dicom(path(name), IMAGE))
        delattr(dataset, tag)
        dataset.save_as(path(name))
    whole = write_dicom(path("cut"), IMAGE).read_bytes()
    path("cut").write_bytes(whole[:-500])
    path("garbage").write_bytes(whole[:400] + np.random.default_rng(0).bytes(4000))
    path("zero").touch()
    path("text").write_text("<html>please log in</html>\n" * 20)
    path("folder").mkdir()
    os.mkfifo(path("pipe"))
    path("loop").symlink_to(path("loop"))
    for name in ("two words", "tiny ", "semi;colon$(id)"):
        write_dicom(path(name), IMAGE)
    write_dicom(path("tiny"), np.zeros((1, 1), np.uint8))
    write_dicom(path("bomb"), IMAGE, Rows=20_000, Columns=20_000)
    frame = jpeg(IMAGE)
    sof = frame.index(b"\xff\xc0") + 5
    bomb = frame[:sof] + (20_000).to_bytes(2) * 2 + frame[sof + 4 :]
    write_dicom(path("jpegbomb"), IMAGE, uid.JPEGBaseline8Bit, bomb, Rows=20_000, Columns=20_000)
    write_dicom(path("frames"), np.vstack([IMAGE] * 3), Rows=SIZE, NumberOfFrames=3)
    report = get_testdata_file("rtplan.dcm", download=False)
    assert report
    path("report").write_bytes(Path(report).read_bytes())


# the headers are wrong on purpose
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


@pytest.fixture(scope="module")
def torture(tmp_path_factory):
    """All good and bad files as training images, and one test image; in a folder that is watched for changes."""
    root = tmp_path_factory.mktemp("torture")
    train = root / "input" / TRAIN_IMAGES
    for split in (TRAIN_IMAGES, TEST_IMAGES):
        (root / "input" / split).mkdir(parents=True)
    write_dicom(root / "input" / TEST_IMAGES / "test.dcm", IMAGE)
    for name, case in GOOD.items():
        tags = {"PatientName": SECRET, "PatientBirthDate": "19010203", **case.tags}
        write_dicom(train / f"{name}.dcm", case.pixels, case.syntax, case.frame, **tags)
    write_bad(train)
    return root


# a small process runs the script and finally prints its peak memory in kB; a direct child of this process, which may
# have libraries in memory, would start with that much
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run(root, working, *words):
    script = [sys.executable, str(SCRIPT), f"root={root}", f"working={root / working}", f"size={SIZE}", *words]
    command = [sys.executable, "-c", MEASURED, *script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def files_of(root):
    """Time and size of every path below `root`, except for caches; no file is opened, since one is a pipe."""
    inside = [path for path in sorted(root.rglob("*")) if not path.is_relative_to(root / "caches")]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in inside if not path.is_dir()}


def cached(root, workers):
    folder = root / "caches" / f"workers{workers}" / f"png_{SIZE}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(torture):
    """Run the script on all files: number of worker processes -> its result."""
    before = files_of(torture)
    results = {workers: run(torture, f"caches/workers{workers}", f"workers={workers}") for workers in (0, 2)}
    assert files_of(torture) == before
    return results


def test_it_finishes_and_reports_what_it_refused(done):
    for result in done.values():
        output = result.stdout + result.stderr
        assert "Traceback" not in output
        assert SECRET not in output
        assert f"{len(GOOD) + 1} images written, 0 current, {len(BAD)} refused" in result.stdout, output
        # more than one in twenty is refused
        assert result.returncode == 1
        assert "were refused" in result.stderr


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_cached_correctly(torture, done, name):
    found = read_png(torture / "caches" / "workers0" / f"png_{SIZE}" / "train" / f"{name}.png", SIZE).astype(int)
    assert np.abs(found - GOOD[name].expected).max() <= GOOD[name].tolerance


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_their_reason(torture, done, name):
    folder = torture / "caches" / "workers0" / f"png_{SIZE}"
    row = read_index(folder, SIZE).set_index("patientId").loc[name if name.isalnum() else quote(name)]
    assert row["status"] == "refused"
    assert BAD[name] in row["reason"]
    assert len(row["reason"]) > 10
    assert not list(folder.rglob(f"{name}.png"))


def test_the_cache_holds_these_files_and_no_names_of_patients(torture, done):
    content = cached(torture, 0)
    assert set(content) - {".lock"} == {INDEX_CSV, SEEN_CSV, "test/test.png", *(f"train/{name}.png" for name in GOOD)}
    for bytes_ in content.values():
        assert SECRET.encode() not in bytes_
        assert b"19010203" not in bytes_
    differing = {".lock": b"", SEEN_CSV: b""}
    assert content | differing == cached(torture, 2) | differing
    assert not list(torture.parent.rglob("*escaped*"))


def test_no_memory_is_allocated_for_the_size_that_a_header_declares(torture, done):
    """20,000 x 20,000 pixels of 8 bits would be 400 MB on top of the libraries."""
    for result in done.values():
        assert int(result.stdout.split()[-1]) * 1024 < 400_000_000


def test_strict_fails_if_a_single_file_is_refused(torture):
    """With one bad file of many the run finishes, and the setting decides its exit status."""
    root = torture.parent / "one_bad"
    for split in (TRAIN_IMAGES, TEST_IMAGES):
        (root / "input" / split).mkdir(parents=True)
        for k in range(15):
            write_dicom(root / "input" / split / f"n{k}.dcm", IMAGE)
    (root / "input" / TRAIN_IMAGES / "n0.dcm").write_text("not found")
    assert run(root, "working", "workers=0").returncode == 0
    strict = run(root, "working", "workers=0", "strict=true")
    assert strict.returncode == 1
    assert "0 images written, 29 current, 1 refused" in strict.stdout
    assert "1 of 30 images (3%) were refused" in strict.stderr


def test_a_file_that_never_finishes_is_refused(tmp_path):
    """A JP2 box of length 0 sends pydicom 3.0.2 into an endless loop."""
    frame = bytes.fromhex("0000000c6a502020") + b"\0" * 200
    (tmp_path / TRAIN_IMAGES).mkdir()
    source = write_dicom(tmp_path / TRAIN_IMAGES / "endless.dcm", IMAGE, uid.JPEG2000Lossless, frame)
    row = cache_image(source, tmp_path, SIZE, seconds=0.5)
    assert row["status"] == "refused"
    assert "not decoded within 0.5 s" in row["reason"]


def test_headers_of_hostile_files_are_read_or_empty(torture):
    """For folds: what cannot be read is empty, and nothing hangs or raises."""
    headers = {path.stem: read_header(path) for path in sorted((torture / "input" / TRAIN_IMAGES).iterdir())}
    assert headers["old"]["PatientAge"] == "155"
    assert headers["ageless"]["PatientSex"] == ""
    assert headers["twoviews"]["ViewPosition"] == ""
    for name in ("zero", "text", "folder", "pipe", "loop"):
        assert headers[name] == {"patientId": name, "PatientAge": "", "PatientSex": "", "ViewPosition": ""}
    assert not any(SECRET in value for header in headers.values() for value in header.values())
    assert not (torture / "input" / HEADERS_CSV).exists()
