"""New images: which files are found, how PNG and JPEG are decoded, what headers say, what is far from the others."""

import io

import numpy as np
import pytest
from helpers.dicom_files import radiograph, write_dicom
from PIL import Image

from rsna.core.errors import UserError
from rsna.data.letterbox import fit_letterbox, letterbox
from rsna.inference import image_files
from rsna.inference.image_files import decode_picture, find_images, read_image, safe_name
from rsna.inference.outliers import distances, fit
from rsna.inference.tiles import draw_tile

GREY = radiograph(40, 60)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.rot90(GREY)), exif=exif)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(GREY)),
        encoded(Image.fromarray(np.dstack([GREY] * 3))),
        encoded(Image.fromarray(np.dstack([GREY] * 3)).convert("RGBA")),
        encoded(Image.fromarray(GREY).convert("LA")),
        turned(6),
    ],
    ids=["grey", "RGB", "RGBA", "grey and alpha", "EXIF"],
)
def test_a_png_is_decoded_to_its_greys_as_viewers_turn_it(content):
    assert np.array_equal(decode_picture(content), GREY)


def test_a_jpeg_differs_by_its_compression_only():
    assert np.abs(decode_picture(encoded(Image.fromarray(GREY), "JPEG", quality=98)).astype(int) - GREY).mean() < 2


def test_16_bits_are_scaled_from_the_minimum_to_the_maximum():
    deep = GREY.astype(np.uint16) * 16 + 1000  # 12 bits in 16, which would be black in the whole range
    shown = decode_picture(encoded(Image.fromarray(deep)))
    expected = (GREY.astype(float) - GREY.min()) / (int(GREY.max()) - int(GREY.min())) * 255
    assert np.abs(shown - expected).max() <= 0.5


def test_transparent_pixels_are_black():
    alpha = np.where(np.arange(60) < 30, 0, 255).astype(np.uint8) * np.ones((40, 1), np.uint8)
    shown = decode_picture(encoded(Image.fromarray(np.dstack([GREY, alpha]), "LA")))
    assert shown[:, :30].max() == 0
    assert np.array_equal(shown[:, 30:], GREY[:, 30:])


def test_a_picture_and_a_dicom_of_the_same_pixels_are_the_same_to_a_network(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    write_dicom(tmp_path / "a.dcm", GREY)
    picture, dicom = (read_image(tmp_path / name, [32, 64]) for name in ("a.png", "a.dcm"))
    width, height, _ = fit_letterbox(40, 60, 64)
    for image in (picture, dicom):
        assert image.shape == (40, 60)
        assert (image.flag, image.refused) == ("", "")
        assert [square.shape for square in image.squares] == [(32, 32), (64, 64)]
        assert np.array_equal(image.squares[1], letterbox(GREY, width, height, 64))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"a note" * 99, "it is no DICOM, PNG or JPEG file"),
        (encoded(Image.fromarray(GREY))[:-200], "cannot be decoded"),
        (encoded(Image.fromarray(np.full((9, 9), 7, np.uint8))), "every pixel is the same grey"),
        (encoded(Image.fromarray(GREY), "JPEG")[:300], "cannot be decoded"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    image = read_image(tmp_path / "file", [32])
    assert reason in image.refused
    assert not image.squares


def test_a_bomb_is_refused_by_its_size_alone(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "bomb.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 40 * 60 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert "more than 2,399 pixels" in read_image(tmp_path / "bomb.png", [32]).refused
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "bomb.png", [32]).refused == "more than 2,399 pixels"


@pytest.mark.parametrize(
    ("tags", "flag"),
    [
        ({}, ""),
        ({"ViewPosition": "PA", "BodyPartExamined": "CHEST", "Modality": "CR"}, ""),
        ({"ViewPosition": "AP", "BodyPartExamined": "THORAX PA", "PatientOrientation": ["L", "F"]}, ""),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "DOE JANE"}, "lateral, or another view than AP and PA"),
        ({"PatientOrientation": ["P", "F"]}, "lateral"),
        ({"BodyPartExamined": "HAND"}, "another part of the body"),
        ({"Modality": "CT"}, "another modality"),
        ({"Modality": "CT", "ViewPosition": "RL"}, "AP and PA; another modality"),
    ],
)
def test_the_header_of_what_is_no_frontal_chest_radiograph_flags_it(tmp_path, tags, flag):
    write_dicom(tmp_path / "a.dcm", GREY, **tags)
    found = read_image(tmp_path / "a.dcm", [32]).flag
    assert flag in found if flag else found == ""
    assert "DOE" not in found


def test_files_are_found_in_folders_and_by_patterns_without_what_infer_wrote(tmp_path):
    for name in ("b/same.png", "a/same.png", "a/deep/er.dcm", "a/._same.png", "out/overlays/same.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(text):
        return [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path / text), tmp_path / "out")]

    assert names("") == ["a/deep/er.dcm", "a/same.png", "b/same.png"]
    assert names("**/*.png") == ["a/same.png", "b/same.png"]
    assert names("a*") == ["a/deep/er.dcm", "a/same.png"]
    assert names("b/same.png") == ["b/same.png"]
    for nothing in ("none", "*.jpg"):
        with pytest.raises(UserError, match="no such file"):
            names(nothing)
    with pytest.raises(UserError, match="the images are in this folder; set another one"):
        names("out")


def test_hidden_folders_are_skipped_and_links_give_each_file_once(tmp_path):
    (tmp_path / "a/.hidden").mkdir(parents=True)
    for name in ("a/.hidden/x.png", "a/y.png"):
        (tmp_path / name).touch()
    (tmp_path / "a/loop").symlink_to(".")
    for text in ("a", "a/**/*.png"):
        assert find_images(str(tmp_path / text), tmp_path / "out") == [tmp_path / "a/y.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(UserError, match="Permission denied; make it readable"):
        find_images(str(tmp_path), tmp_path / "out")


def test_names_that_no_font_has_can_be_drawn():
    for name in ("bad\udcff.png", "r\xf6ntgen.png"):
        assert draw_tile(GREY, [], "", name, 64, name).shape[1] == 64


def test_a_transparent_grey_of_16_bits_stays_as_it_is():
    image = Image.fromarray(GREY.astype(np.uint16) * 200 + 100)
    output = io.BytesIO()
    image.save(output, "PNG", transparency=100)
    assert np.array_equal(decode_picture(output.getvalue()), decode_picture(encoded(image)))


def test_files_of_one_name_in_two_folders_have_two_names():
    assert len({safe_name("a/same.png"), safe_name("b/same.png"), safe_name("a/same.dcm")}) == 3
    assert "/" not in safe_name("a/x/../../etc")


def test_the_threshold_lets_the_stated_fraction_of_like_images_pass():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(30, 30))
    train, held_out, others = (rng.normal(size=(n, 30)) @ mix + 5 for n in (500, 400, 20_000))
    reference = fit(train, held_out)
    assert reference["false_alarms"] == pytest.approx(1 - 397 / 401)
    assert (distances(reference, held_out) > reference["threshold"]).sum() == 3
    assert (distances(reference, others) > reference["threshold"]).mean() == pytest.approx(0.01, abs=0.008)
    assert (distances(reference, others[:100] + 30) > reference["threshold"]).all()


def test_distances_are_mahalanobis_distances():
    rng = np.random.default_rng(1)
    train = rng.normal(size=(100_000, 3)) @ rng.normal(size=(3, 3)) + [1, 2, 3]
    reference = fit(train, train[:50])
    away = train[:20] - train.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.cov(train.T)), away))
    assert distances(reference, train[:20]) == pytest.approx(expected, rel=0.01)
    assert fit(train, train[:50])["false_alarms"] == pytest.approx(1 / 51), "few held-out images: beyond all of them"
