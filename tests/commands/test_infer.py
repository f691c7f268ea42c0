"""infer on a finished run: the boxes of predict, any files, pictures and reports, and what it refuses."""

import json
import shutil
from subprocess import run as execute

import numpy as np
import pandas as pd
import pydicom
import pytest
from helpers.dicom_files import radiograph, write_dicom
from helpers.sequence import copy_of, stage
from PIL import Image

from rsna.data.competition import read_predictions
from rsna.data.submission_format import parse_submission
from rsna.inference.image_files import safe_name

BOX = ["confidence", "x", "y", "width", "height"]
MEMBERS = ["preset=best", "name=pair", "members=detector,classifier", "epochs=1", "fold=0"]


@pytest.fixture(scope="module")
def root(world, tmp_path_factory):
    """A workspace that infer may write into."""
    return copy_of(world, tmp_path_factory.mktemp("infer"))


@pytest.fixture(scope="module")
def mixed(root):
    """A folder with what a user may have."""
    folder = root / "mixed"
    sources = sorted((root / "input/stage_2_test_images").glob("*.dcm"))
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        shutil.copy(sources[0], folder / name / "same.dcm")
    pixels = pydicom.dcmread(sources[1]).pixel_array
    Image.fromarray(pixels).save(folder / "grey.png")
    Image.fromarray(np.dstack([pixels] * 3)).save(folder / "colour.jpg", quality=95)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200)).astype(np.uint8)).save(folder / "noise.png")
    lateral = pydicom.dcmread(sources[2])
    lateral.ViewPosition = "LL"
    lateral.save_as(folder / "lateral.dcm")
    (folder / "notes.txt").write_text("none of these")
    (folder / "Icon\r").touch()  # macOS adds it to a folder with an icon of its own
    return folder


def infer(root, output, images, *words, check=True):
    """Returns the finished process and the table by file."""
    words = [f"images={images}", f"output={output}", *words]
    done, path = stage("infer", root, *words, check=check), output / "predictions.csv"
    return done, pd.read_csv(path) if done.returncode == 0 else None


def boxes_by_stem(table):
    """Rows of numbers of each image with a box, in order."""
    stems = table["file"].map(lambda file: file.rsplit("/", 1)[1].removesuffix(".dcm"))
    rows = table.assign(patientId=stems).dropna(subset=["confidence"])
    return {name: own[BOX].to_numpy().tolist() for name, own in rows.groupby("patientId")}


def test_the_boxes_are_those_of_predict_and_of_the_submission(root, tmp_path):
    images = root / "input/stage_2_test_images"
    done, table = infer(root, tmp_path / "out", images)
    submitted = parse_submission(root / "submissions/tiny.csv").dropna(subset=["confidence"])
    assert boxes_by_stem(table) == {name: own[BOX].to_numpy().tolist() for name, own in submitted.groupby("patientId")}
    assert len(submitted)
    threshold = json.loads((root / "submissions/tiny.json").read_text())["threshold"]
    assert f"threshold {threshold:.4f}" in done.stdout
    assert f"8 files: {submitted['patientId'].nunique()} with a box" in done.stdout
    assert "not a medical device" in done.stdout
    # without the operating point every fused box, and the class probabilities
    _, table = infer(root, tmp_path / "all", images, "threshold=0", "box_scale=1")
    fused = read_predictions(root / "working/tiny/test.csv")
    rounded = fused.round({"confidence": 4, **dict.fromkeys(BOX[1:], 1)})
    found = boxes_by_stem(table)
    assert list(found) == sorted(rounded["patientId"].unique())
    for name, own in rounded.groupby("patientId"):
        assert np.abs(np.array(found[name]) - own[BOX].to_numpy()).max() <= 0.1001  # of the right edge
    classes = pd.read_csv(root / "working/tiny/test_images.csv").set_index("patientId")["p_opacity"]
    own = table.set_index(table["file"].map(lambda file: file.rsplit("/", 1)[1][:-4]))["p_opacity"]
    assert (own - classes[own.index]).abs().max() <= 0.00005 + 1e-9


def test_an_ensemble_of_members_predicts_as_it_submitted(root, tmp_path):
    for name in ("train", "predict", "ensemble", "evaluate", "make_submission"):
        stage(name, root, *MEMBERS, "threshold=0")
    # the name alone: all other settings are those of the run
    _, table = infer(root, tmp_path / "out", root / "input/stage_2_test_images", "name=pair", "threshold=0")
    submitted = parse_submission(root / "submissions/pair.csv").dropna(subset=["confidence"])
    assert boxes_by_stem(table) == {name: own[BOX].to_numpy().tolist() for name, own in submitted.groupby("patientId")}
    assert submitted["patientId"].value_counts().max() > 1, "the detector's boxes, gated by the classifier"


def test_any_files_are_predicted_flagged_or_refused(root, mixed, tmp_path):
    done, table = infer(root, tmp_path / "out", mixed, "threshold=0", "overlays=all")
    images = table.drop_duplicates("file").set_index("file")
    names = ["Icon\\r", "a/same.dcm", "b/same.dcm", "colour.jpg", "grey.png", "lateral.dcm", "noise.png", "notes.txt"]
    assert images.index.tolist() == [str(mixed / name) for name in names]
    images = images.set_axis(names)
    assert images.loc["a/same.dcm", BOX].tolist() == images.loc["b/same.dcm", BOX].tolist()
    assert images.loc["notes.txt", "refused"] == "it is no DICOM, PNG or JPEG file"
    assert images["refused"].isna().sum() == 6
    assert images.loc["lateral.dcm", "flag"].startswith("lateral")
    assert images.loc["noise.png", "flag"] == "unlike the training images"
    assert images.loc["noise.png", "confidence"] >= 0, "it has its box, and is marked"
    assert "8 files: 6 with a box" in done.stdout
    assert "2 refused; " in done.stdout
    assert (tmp_path / "out/contact_sheet.png").is_file()
    written = {path.name for path in (tmp_path / "out/overlays").iterdir()}
    assert written == {f"{safe_name(str(mixed / name))}.png" for name in names[1:-1]}
    assert np.abs(images.loc["colour.jpg", BOX].astype(float) - images.loc["grey.png", BOX].astype(float)).max() < 3


def test_a_second_call_replaces_its_own_files_and_no_others(root, mixed, tmp_path):
    out, images = tmp_path / "out", mixed / "*" / "same.dcm"
    first, _ = infer(root, out, images, "threshold=0", "overlays=all")
    reference = root / "working/tiny/outliers.npz"
    before, table = reference.stat().st_mtime_ns, (out / "predictions.csv").read_bytes()
    # killed in the middle of writing
    manifest = json.loads((out / "infer.json").read_text())
    (out / "infer.json").write_text(json.dumps({"files": dict.fromkeys(manifest["files"], "")}))
    (out / "predictions.csv").write_text("file")
    again, _ = infer(root, out, images, "threshold=0", "overlays=all")
    assert (again.stdout, (out / "predictions.csv").read_bytes()) == (first.stdout, table)
    assert json.loads((out / "infer.json").read_text()) == manifest
    assert reference.stat().st_mtime_ns == before, "made once"
    infer(root, out, images, "threshold=0", "overlays=none")
    assert not list(out.rglob("*.png")), "pictures of an earlier call"
    (out / "contact_sheet.png").write_text("mine")
    failed, _ = infer(root, out, images, "threshold=0", "overlays=all", check=False)
    assert f"{out / 'contact_sheet.png'}: not as infer wrote it, and not overwritten" in failed.stderr
    assert (out / "contact_sheet.png").read_text() == "mine"


def test_a_report_is_a_valid_tid_1500_with_the_boxes_of_the_table(root, tmp_path):
    sr = pytest.importorskip("highdicom.sr")
    source = sorted((root / "input/stage_2_test_images").glob("*.dcm"))[0]
    _, table = infer(root, tmp_path / "out", source, "threshold=0", "format=dicom-sr")
    (path,) = (tmp_path / "out/reports").iterdir()
    report, image = sr.srread(path), pydicom.dcmread(source)
    assert report.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    assert (report.PatientID, report.StudyInstanceUID) == (image.PatientID, image.StudyInstanceUID)
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == len(table) > 0
    for group, row in zip(groups, table.to_dict("records"), strict=True):
        region = group.roi
        corners = np.array([row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"]])
        low, high = region.value.min(axis=0), region.value.max(axis=0)
        assert np.array([*low, *high]) == pytest.approx(corners, abs=1e-3)
        assert region.graphic_type.value == "POLYLINE"
        assert region.ContentSequence[0].referenced_sop_instance_uid == image.SOPInstanceUID
        assert group.get_measurements()[0].value == pytest.approx(row["confidence"])
    said = [str(item.TextValue) for item in groups[0][0].ContentSequence if "TextValue" in item]
    version = json.loads((tmp_path / "out/infer.json").read_text())["version"]
    notes = ["rsna-pneumonia-workspace, run tiny", version, "For research use only; not a medical device"]
    assert [word for word in notes if word in said] == notes
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    if validator := shutil.which("dciodvfy"):
        said = execute([validator, str(path)], capture_output=True, text=True, check=False)
        assert "ComprehensiveSR" in said.stderr + said.stdout
        assert "Error" not in said.stderr + said.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["images="], 1, "images=: no such file"),
        (["images=nowhere/*.dcm"], 1, "images=nowhere/*.dcm: no such file"),
        (["images=IMAGE", "name=none"], 1, "name=none: no such run in"),
        (["images=NOTES"], 1, "every file was refused"),
        (["images=IMAGE", "format=dicom-sr"], 1, "image.png: format=dicom-sr is for DICOMs"),
        (["images=BARE", "format=dicom-sr", "threshold=0"], 1, "1 of 1 reports could not be written"),
        (["images=IMAGE", "format=pdf"], 2, "format=pdf: table or dicom-sr"),
        (["images=IMAGE", "overlays=some"], 2, "overlays=some: boxes or all or none"),
        (["images=IMAGE", "box_scale=1", "prior=2"], 2, "prior=2"),
    ],
)
def test_mistakes_end_in_one_line(root, tmp_path, words, status, message):
    Image.fromarray(radiograph(64, 64)).save(tmp_path / "image.png")
    bare = write_dicom(tmp_path / "bare.dcm", radiograph(64, 64))
    (tmp_path / "notes.txt").write_text("no image")
    for name, path in (("IMAGE", tmp_path / "image.png"), ("BARE", bare), ("NOTES", tmp_path / "notes.txt")):
        words = [word.replace(name, str(path)) for word in words]
    failed = stage("infer", root, f"output={tmp_path / 'out'}", *words, check=False)
    assert failed.returncode == status
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (root / "working/none").exists()


def test_a_header_without_a_study_costs_only_its_own_report(root, tmp_path):
    pytest.importorskip("highdicom")
    (tmp_path / "images").mkdir()
    source = sorted((root / "input/stage_2_test_images").glob("*.dcm"))[0]
    write_dicom(tmp_path / "images/a.dcm", radiograph(64, 64))
    shutil.copy(source, tmp_path / "images/b.dcm")
    failed, _ = infer(root, tmp_path / "out", tmp_path / "images", "threshold=0", "format=dicom-sr", check=False)
    assert "a.dcm: no report: its header lacks what a report repeats" in failed.stdout
    assert "error: 1 of 2 reports could not be written" in failed.stderr
    assert [path.name for path in (tmp_path / "out/reports").iterdir()] == [
        f"{safe_name(str(tmp_path / 'images/b.dcm'))}.dcm"
    ]
    assert len(json.loads((tmp_path / "out/infer.json").read_text())["files"]) > 2


def test_a_file_in_the_way_is_named_before_the_networks_work(root, tmp_path):
    (tmp_path / "predictions.csv").write_text("mine")
    source = sorted((root / "input/stage_2_test_images").glob("*.dcm"))[0]
    failed, _ = infer(root, tmp_path, source, check=False)
    assert "predictions.csv: not as infer wrote it, and not overwritten" in failed.stderr
    assert "threshold" not in failed.stdout


def test_folds_that_the_run_does_not_take_are_named(root, tmp_path):
    source = sorted((root / "input/stage_2_test_images").glob("*.dcm"))[0]
    done, _ = infer(root, tmp_path / "out", source, "fold=1")
    assert "fold=1 has no effect here: tiny was made with fold=" in done.stdout
