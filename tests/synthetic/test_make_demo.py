"""The synthetic competition: Kaggle's layout, the real mix, the same bytes every time, and nothing overwritten."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.data import competition
from rsna.synthetic import demo as demo_module
from rsna.synthetic.demo import claim_folder, make_demo
from rsna.synthetic.patients import BOX_SHRINK, MIX, apportion, draw_patients, draw_split
from rsna.synthetic.phantom import SIDE, Case, lay_out, render

# every tag of the challenge's files, in their order
REAL_TAGS = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "Modality",
    "ConversionType",
    "ReferringPhysicianName",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "BodyPartExamined",
    "ViewPosition",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "SeriesNumber",
    "InstanceNumber",
    "PatientOrientation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "PixelData",
]


def settings(root, *words):
    return parse([f"root={root}", "demo_train=10", "demo_test=2", "workers=0", *words])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo; tests must not change it."""
    cfg = settings(tmp_path_factory.mktemp("demo"))
    make_demo(cfg)
    return cfg


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_layout_is_kaggles(demo):
    folder = Path(demo.input)
    labels = pd.read_csv(folder / "stage_2_train_labels.csv")
    classes = pd.read_csv(folder / "stage_2_detailed_class_info.csv")
    sample = pd.read_csv(folder / "stage_2_sample_submission.csv")
    assert [*labels] == ["patientId", "x", "y", "width", "height", "Target"]
    assert [*classes] == ["patientId", "class"]
    assert [*sample] == ["patientId", "PredictionString"]
    assert classes.patientId.tolist() == labels.patientId.tolist()
    assert {path.stem for path in (folder / "stage_2_train_images").glob("*.dcm")} == set(labels.patientId)
    assert sorted(path.stem for path in (folder / "stage_2_test_images").glob("*.dcm")) == sample.patientId.tolist()
    assert set(sample.PredictionString) == {"0.5 0 0 100 100"}
    assert labels.patientId.nunique() == 10
    assert len(sample) == 2
    assert ((classes["class"] == "Lung Opacity") == (labels.Target == 1)).all()
    assert (labels[competition.BOX_COLUMNS].notna().all(axis=1) == (labels.Target == 1)).all()


def test_mapping_covers_the_training_images(demo):
    rows = json.loads((Path(demo.input) / "pneumonia-challenge-dataset-mappings_2018.json").read_text())
    labels = pd.read_csv(Path(demo.input) / "stage_2_train_labels.csv")
    assert {row["subset_img_id"] for row in rows} == set(labels.patientId)
    names = pd.Series([row["img_id"] for row in rows])
    assert names.is_unique
    assert names.str.fullmatch(r"\d{8}_\d{3}\.png").all()
    assert names.str[:8].duplicated().any()


def test_the_test_labels_are_outside_input(demo):
    truth = pd.read_csv(demo.test_labels)
    sample = pd.read_csv(Path(demo.input) / "stage_2_sample_submission.csv")
    assert Path(demo.input) not in Path(demo.test_labels).parents
    assert [*truth] == competition.LABEL_COLUMNS
    assert set(truth.patientId) == set(sample.patientId)


def test_dicoms_have_the_challenges_tags(demo):
    images = {image.patient_id: image for image in draw_patients(10, 0, demo.seed)}
    for path in (Path(demo.input) / "stage_2_train_images").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert [element.keyword for element in dataset] == REAL_TAGS
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
        assert dataset.PatientID == dataset.PatientName == path.stem
        assert dataset.ViewPosition == images[path.stem].case.view
        assert dataset.SeriesDescription == f"view: {dataset.ViewPosition}"
        assert int(dataset.PatientAge) == images[path.stem].age
        assert dataset.pixel_array.shape == (1024, 1024)
        assert dataset.pixel_array.std() > 30


def test_same_seed_same_bytes_with_any_number_of_processes(demo, tmp_path):
    # in a new process, because one that forks must not have used OpenCV's threads before
    words = [f"root={tmp_path}", "demo_train=10", "demo_test=2", "workers=2"]
    script = Path(__file__).resolve().parents[2] / "src" / "make_demo.py"
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True, timeout=60)
    assert contents(tmp_path) == contents(demo.root)


def test_other_seed_other_images(demo):
    ids = [{m.patient_id for m in draw_patients(10, 0, seed)} for seed in (demo.seed, demo.seed + 1)]
    assert not ids[0] & ids[1]


def test_a_killed_run_resumes_to_the_same_result(demo, tmp_path, monkeypatch):
    cfg = settings(tmp_path)
    monkeypatch.setattr(demo_module, "write_tables", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        make_demo(cfg)
    monkeypatch.undo()
    assert not (Path(cfg.input) / competition.LABELS_CSV).exists()
    next((Path(cfg.input) / competition.TRAIN_IMAGES).iterdir()).unlink()
    make_demo(cfg)
    assert contents(tmp_path) == contents(demo.root)


def test_a_complete_demo_is_not_changed(demo, monkeypatch):
    monkeypatch.setattr(demo_module, "write_tables", lambda *_: pytest.fail("made again"))
    assert make_demo(demo) == f"make_demo: 10 training and 2 test images current -> {demo.input}"


def test_a_lost_image_is_made_again(demo, tmp_path):
    shutil.copytree(demo.root, tmp_path / "copy")
    cfg = settings(tmp_path / "copy")
    next((Path(cfg.input) / competition.TEST_IMAGES).iterdir()).unlink()
    assert "next: ./run.sh make_folds" in make_demo(cfg)
    assert contents(cfg.root) == contents(demo.root)
    assert "current" in make_demo(cfg)


def test_a_demo_that_was_moved_and_touched_is_current(demo, tmp_path):
    shutil.copytree(demo.root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
    assert "current" in make_demo(settings(tmp_path / "copy"))


def test_an_edited_table_is_not_overwritten(demo, tmp_path):
    shutil.copytree(demo.root, tmp_path / "copy")
    cfg = settings(tmp_path / "copy")
    labels = Path(cfg.input) / competition.LABELS_CSV
    labels.write_text("mine")
    with pytest.raises(UserError, match=r"labels\.csv: not as make_demo wrote it, and not overwritten; choose another"):
        make_demo(cfg)
    assert labels.read_text() == "mine"


def test_refuses_other_settings_and_names_them(demo):
    before = contents(demo.root)
    with pytest.raises(UserError, match=r"seed: 42 -> 7.*root="):
        make_demo(settings(demo.root, "seed=7"))
    with pytest.raises(UserError, match="demo_train: 10 -> 13"):
        make_demo(settings(demo.root, "demo_train=13"))
    assert contents(demo.root) == before


FOREIGN = ["input/stage_2_train_labels.csv", "input/stage_2_train_images/x.dcm", "test_labels.csv"]


@pytest.mark.parametrize("name", FOREIGN)
def test_never_writes_over_foreign_files(tmp_path, name):
    foreign = tmp_path / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(UserError, match=r"not (made by|as) make_demo"):
        make_demo(settings(tmp_path))
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_manifest_does_not_vouch_for_files_that_the_user_put_in_their_place(demo, tmp_path, name, killed):
    """The demo's input was deleted, or make_demo was killed before it wrote tables; then the user put files there."""
    cfg = settings(tmp_path)
    manifest = json.loads((Path(demo.root) / "demo.json").read_text())
    (tmp_path / "demo.json").write_text(json.dumps(manifest | ({"outputs": {}} if killed else {})))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"not (made by|as) make_demo"):
        make_demo(cfg)
    assert contents(tmp_path) == before


def test_a_run_killed_while_writing_tables_resumes(demo, tmp_path):
    shutil.copytree(demo.root, tmp_path / "copy")
    cfg = settings(tmp_path / "copy")
    (Path(cfg.input) / competition.LABELS_CSV).unlink()
    make_demo(cfg)
    assert contents(cfg.root) == contents(demo.root)


def test_the_manifest_of_one_folder_is_not_valid_for_another(demo, tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text("mine")
    with pytest.raises(UserError, match="input"):
        make_demo(settings(demo.root, f"input={tmp_path}"))
    assert contents(tmp_path) == {"stage_2_train_labels.csv": b"mine"}


def test_readme_in_input_is_no_obstacle(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "README.md").write_text("put Kaggle's files here")
    claim_folder(settings(tmp_path), set())
    assert (tmp_path / "demo.json").is_file()


@pytest.mark.parametrize("count", [10, 80, 300, 1000])
def test_mix_is_the_real_one(count):
    images = draw_patients(count, 0, 42)
    cells = Counter((m.case.view, m.kind, m.case.n_boxes) for m in images)
    total = sum(MIX.values())
    assert len(images) == count
    for cell, real in MIX.items():
        assert abs(cells[cell] - count * real / total) < 1
    assert len({m.patient_id for m in images}) == count


def test_numbers_at_300():
    images = draw_patients(300, 0, 42)
    kinds = Counter(m.kind for m in images)
    assert kinds == {"Lung Opacity": 68, "No Lung Opacity / Not Normal": 133, "Normal": 99}
    assert 2.0 <= 300 / len({m.patient for m in images}) <= 2.4
    # as in the real data, sick patients come back, so their other images show findings too
    positives = pd.DataFrame({"patient": [m.patient for m in images], "sick": [m.case.n_boxes > 0 for m in images]})
    often = positives.groupby("patient").sick.agg(["size", "mean"])
    assert often["mean"][often["size"] >= 3].mean() > 1.5 * often["mean"][often["size"] == 1].mean()


def test_apportion_keeps_the_sum_and_the_largest_remainder():
    assert apportion({"a": 5, "b": 3, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    assert sum(apportion(MIX, 137).values()) == 137


def test_no_patient_in_both_splits():
    train, test = ({m.patient for m in draw_patients(200, split, 42)} for split in (0, 1))
    assert not train & test


def test_a_shifted_competition_has_the_real_shift():
    train, test = (draw_split(n, k, 42, True) for k, n in enumerate((500, 200)))
    for images, count in ((train[-100:], 100), (test, 200)):
        kinds = Counter(m.kind for m in images)
        assert kinds == pytest.approx(
            {"Lung Opacity": 0.36 * count, "Normal": 0.32 * count, competition.CLASSES[1]: 0.32 * count}, abs=2
        )
        assert {m.case.box_scale for m in images} == {BOX_SHRINK}
    assert {m.case.box_scale for m in train[:-100]} == {1.0}
    assert np.mean([m.kind == "Lung Opacity" for m in train[:-100]]) == pytest.approx(0.225, abs=0.01)
    people = [{m.patient for m in images} for images in (train[:-100], train[-100:], test)]
    assert sum(map(len, people)) == len(set().union(*people)), "nobody in two of them"
    assert len({m.patient_id for m in [*train, *test]}) == 700
    assert draw_split(50, 0, 42, False) == draw_patients(50, 0, 42)


def test_shifted_boxes_are_smaller():
    case = Case("M", "AP", True, 2, (0, 0))
    sides = [
        np.median(
            [
                lay_out(replace(case, body_seed=(0, i), box_scale=s), np.random.default_rng(i)).boxes[:, 2:]
                for i in range(8)
            ]
        )
        for s in (1.0, BOX_SHRINK)
    ]
    assert sides[1] / sides[0] == pytest.approx(BOX_SHRINK, abs=0.06)


def test_a_patient_keeps_sex_and_body():
    by_patient: dict[int, set] = {}
    for image in draw_patients(200, 0, 42):
        by_patient.setdefault(image.patient, set()).add((image.case.sex, image.case.body_seed))
    assert all(len(traits) == 1 for traits in by_patient.values())


@pytest.mark.parametrize("n_boxes", [1, 2, 3, 4])
@pytest.mark.parametrize("view", ["AP", "PA"])
def test_a_box_encloses_its_opacity(view, n_boxes):
    """Rendered with and without the opacity, only pixels in the boxes differ, and they are brighter."""
    scene = lay_out(Case("F", view, True, n_boxes, (1, n_boxes)), np.random.default_rng(n_boxes))
    healthy = replace(scene, opacity=np.zeros_like(scene.opacity))
    pair = [render(s, np.random.default_rng(5)).astype(float) for s in (scene, healthy)]
    added = pair[0] - pair[1]
    inside = np.zeros((SIDE, SIDE), bool)
    assert scene.boxes.shape == (n_boxes, 4)
    for x, y, width, height in scene.boxes.astype(int):
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= SIDE
        assert min(width, height) >= 40
        box = (slice(y, y + height), slice(x, x + width))
        assert added[box].mean() > 4
        # tight: the opacity reaches into the strip along every side
        for strip in (added[box][:, :20], added[box][:, -20:], added[box][:20], added[box][-20:]):
            assert np.percentile(strip, 99) > 3
        inside[box] = True
    assert added[inside].sum() > 0.9 * np.abs(added).sum()


def test_boxes_follow_the_measured_statistics():
    """Medians over 80 images with two opacities; measured on the real labels: AP 225 x 352, one in each lung."""
    case = Case("M", "AP", True, 2, (0, 0))
    boxes = np.array([lay_out(replace(case, body_seed=(0, i)), np.random.default_rng(i)).boxes for i in range(80)])
    width, height = np.median(boxes[..., 2]), np.median(boxes[..., 3])
    assert width == pytest.approx(225, rel=0.1)
    assert height == pytest.approx(345, rel=0.12)
    assert (boxes[:, 0, 0] + boxes[:, 0, 2] / 2 < boxes[:, 1, 0] + boxes[:, 1, 2] / 2).all()


def test_bedside_images_differ():
    """AP images have a larger heart and a higher diaphragm than PA images of the same patient."""
    cases = [Case("M", view, False, 0, (0, 3)) for view in ("AP", "PA")]
    bases = [np.mean([lay_out(case, np.random.default_rng(i)).base for i in range(20)]) for case in cases]
    assert bases[0] < bases[1] - 0.03
