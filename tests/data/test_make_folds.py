"""Folds: complete, balanced, no patient in two folds, made once and then kept."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.dicom_files import radiograph, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core import artifacts
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.data.competition import CLASSES_CSV, FOLD_COLUMNS, HEADERS_CSV, LABELS_CSV, TRAIN_IMAGES
from rsna.data.dicom import read_headers
from rsna.data.folds import assign_folds, compare_files, describe_images, group_by_patient, report, update_folds

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "rsna"


def images_of(patients, seed=0):
    """One row per image; patients: how many images each patient has."""
    rng = np.random.default_rng(seed)
    n = sum(patients)
    target = np.resize([1, 0, 0], n)
    return pd.DataFrame(
        {
            "patientId": [f"i{k:05d}" for k in range(n)],
            "target": target,
            "n_boxes": target * rng.integers(1, 4, n),
            "class": np.where(target == 1, "Lung Opacity", "Normal"),
            "view": rng.choice(["AP", "PA"], n),
            "sex": rng.choice(["F", "M"], n),
            "age": pd.array(rng.integers(1, 100, n), dtype="Int64"),
            "group": np.repeat([f"p{k}" for k in range(len(patients))], patients),
        }
    )


@settings(max_examples=50)
@given(st.lists(st.integers(1, 8), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 5))
def test_folds_never_split_a_patient_and_every_fold_is_used(patients, n_folds, seed):
    images = images_of(patients)
    folds = assign_folds(images, n_folds, seed)
    assert set(folds) == set(range(n_folds))
    assert images.assign(fold=folds).groupby("group")["fold"].nunique().max() == 1


@st.composite
def labelled_patients(draw):
    """Images with any values in all columns, and any number of patients."""
    n = draw(st.integers(6, 60))

    def column(*values):
        return draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    target = np.array(column(0, 1))
    names = column("Lung Opacity", "No Lung Opacity / Not Normal", "Normal", "")
    ages = pd.array(column(pd.NA, 0, 1, 62, 155), dtype="Int64")
    table = {"patientId": [f"i{k}" for k in range(n)], "target": target, "n_boxes": target * column(1, 2, 3, 4)}
    table |= {"class": names, "view": column("AP", "PA", "", "LL"), "sex": column("F", "M", ""), "age": ages}
    return pd.DataFrame(table | {"group": column(*(f"p{k}" for k in range(draw(st.integers(1, n)))))})


@settings(max_examples=150)
@given(labelled_patients(), st.integers(2, 5), st.integers(0, 3))
def test_folds_are_disjoint_and_complete_for_any_labels(images, n_folds, seed):
    positives = images["target"].sum()
    if min(positives, len(images) - positives, images["group"].nunique()) < n_folds:
        with pytest.raises(UserError, match="too many for"):
            assign_folds(images, n_folds, seed)
        return
    images["fold"] = assign_folds(images, n_folds, seed)
    assert set(images["fold"]) == set(range(n_folds))
    assert images.groupby("group")["fold"].nunique().max() == 1
    sizes = images["fold"].value_counts()
    # apart from the largest patient, the labels determine how even the folds can be
    assert sizes.max() - sizes.min() <= 2 * images["group"].value_counts().max() + 4


def test_images_without_labels_and_labels_without_images_are_reported(tmp_path, capsys):
    for name in ("a", "b", "d", "._a"):
        (tmp_path / f"{name}.dcm").touch()
    compare_files(np.array(["a", "b", "c", "e"]), tmp_path)
    output = capsys.readouterr().out
    assert "2 of 4 labelled images have no DICOM" in output
    assert "first c" in output
    assert "1 images in" in output
    compare_files(np.array(["a", "b", "d"]), tmp_path)
    compare_files(np.array(["a"]), tmp_path / "absent")
    assert capsys.readouterr().out == ""


def headers_of(*ids):
    return pd.DataFrame({"patientId": ids, "PatientAge": "", "PatientSex": "", "ViewPosition": ""})


def test_a_class_that_contradicts_its_label_is_named():
    labels = pd.DataFrame({"patientId": ["a", "b", "c"], "Target": [0, 1, 0]})
    good = pd.Series({"a": "Normal", "b": "Lung Opacity"})
    assert describe_images(labels, good, headers_of())["class"].tolist() == ["Normal", "Lung Opacity", ""]
    for wrong in ({"a": "Lung Opacity"}, {"b": "Normal"}):
        with pytest.raises(UserError, match=f"patientId {min(wrong)} is .*1 such image"):
            describe_images(labels, pd.Series({**good, **wrong}), headers_of())


def test_images_of_unknown_patients_are_reported(capsys):
    images = pd.DataFrame({"patientId": ["a", "b"]})
    assert group_by_patient(images, pd.Series({"a": "p", "b": "q"})).tolist() == ["p", "q"]
    assert capsys.readouterr().out == ""
    for patients, count in (({"a": "p"}, 1), ({}, 2), ({"z": "p"}, 2)):
        group_by_patient(images, pd.Series(patients, dtype=object))
        assert f"patients may leak between folds: {count} of 2 images" in capsys.readouterr().out


def test_headers_are_read_from_the_current_files(tmp_path):
    """Even after files were replaced: nothing is cached."""
    cfg = parse([f"root={tmp_path}", "workers=0"])
    folder = tmp_path / "input" / TRAIN_IMAGES
    folder.mkdir(parents=True)
    for name in "ab":
        write_dicom(folder / f"{name}.dcm", radiograph(8, 8), ViewPosition="AP")
    whole = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(b"cut")
    assert read_headers(cfg)["ViewPosition"].tolist() == ["AP", ""]
    (folder / "b.dcm").write_bytes(whole)
    write_dicom(folder / "a.dcm", radiograph(8, 8), ViewPosition="PA")
    assert read_headers(cfg)["ViewPosition"].tolist() == ["PA", "AP"]


def test_only_documented_values_are_taken_from_a_table_of_headers(tmp_path):
    """People type names into any field, which must not get into folds.csv."""
    cfg = parse([f"root={tmp_path}"])
    (tmp_path / "input").mkdir()
    rows = "a,62,F,AP\nb,062Y,DOE^JANE,PA\nc,,M,see Mr Doe\nd,born 1950,O,LL\n"
    (tmp_path / "input" / HEADERS_CSV).write_text("patientId,PatientAge,PatientSex,ViewPosition\n" + rows)
    headers = read_headers(cfg)
    assert headers["PatientAge"].tolist() == ["62", "062Y", "", ""]
    assert headers["PatientSex"].tolist() == ["F", "", "M", "O"]
    assert headers["ViewPosition"].tolist() == ["AP", "PA", "", "LL"]


def test_single_images_are_stratified_evenly():
    images = images_of([1] * 500)
    images["fold"] = assign_folds(images, 5, 42)
    assert images["fold"].value_counts().tolist() == [100] * 5
    rates = images.groupby("fold")["target"].mean()
    assert (rates - images["target"].mean()).abs().max() < 0.011


def test_the_seed_determines_the_folds():
    images = images_of([1, 2, 3] * 30)
    assert (assign_folds(images, 5, 1) == assign_folds(images, 5, 1)).all()
    assert (assign_folds(images, 5, 1) != assign_folds(images, 5, 2)).any()


@pytest.mark.parametrize(
    ("sizes", "expected"), [([1] * 30, "022122011101011210201202100202"), ([3] * 10, "222111222000000000111111222222")]
)
def test_folds_are_the_same_with_every_library_version(sizes, expected):
    """The expected folds are listed, so that a library version that gives other folds is noticed."""
    images = images_of(sizes)
    images.loc[3, "age"] = pd.NA
    folds = "".join(map(str, assign_folds(images, 3, 42)))
    assert folds == expected


def test_too_few_positives_are_refused():
    with pytest.raises(UserError, match="too many for 3 positive"):
        assign_folds(images_of([1] * 9), 5, 42)


@pytest.mark.parametrize(("written", "age"), [("062Y", 62), ("62", 62), (" 62".strip(), 62), ("", None), ("6M", None)])
def test_forms_of_an_age(written, age):
    labels = pd.DataFrame({"patientId": ["a"], "Target": [0]})
    headers = pd.DataFrame({"patientId": ["a"], "PatientAge": [written], "PatientSex": ["F"], "ViewPosition": ["AP"]})
    found = describe_images(labels, None, headers)["age"].iloc[0]
    assert (found == age) if age else pd.isna(found)


@pytest.mark.skipif(not REAL.is_dir(), reason="the challenge's tables are not there")
def test_all_of_the_challenge(tmp_path, capsys):
    cfg = parse([f"input={REAL}", f"root={tmp_path}", f"working={tmp_path}"])
    report(cfg, *update_folds(cfg))
    folds = pd.read_csv(cfg.folds_csv)
    assert list(folds.columns) == FOLD_COLUMNS
    assert len(folds) == 26684
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert (folds.groupby("fold")["target"].mean() - folds["target"].mean()).abs().max() < 0.001
    sizes = folds["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.01
    assert "none of them in more than one fold" in capsys.readouterr().out


# made once, then kept


@pytest.fixture
def cfg(tmp_path):
    """A workspace with the labels and classes of 12 images."""
    (tmp_path / "input").mkdir()
    rows = [f"i{k:02d},1,2,30,40,1" if k % 3 == 0 else f"i{k:02d},,,,,0" for k in range(12)]
    (tmp_path / "input" / LABELS_CSV).write_text("\n".join(["patientId,x,y,width,height,Target", *rows, ""]))
    return parse([f"root={tmp_path}", "n_folds=2"])


def make(cfg, capsys):
    """Run the command in this process; returns its first line and the bytes of the folds and their manifest."""
    capsys.readouterr()
    report(cfg, *update_folds(cfg))
    output = [line for line in capsys.readouterr().out.splitlines() if line.startswith("make_folds:")]
    return output[0], [path.read_bytes() for path in sorted(cfg.folds_csv.parent.glob("folds.*"))]


def test_folds_are_made_once_even_if_the_workspace_is_moved(cfg, tmp_path, capsys):
    first, before = make(cfg, capsys)
    assert first == f"make_folds: new -> {cfg.folds_csv}"
    assert make(cfg, capsys) == (f"make_folds: current -> {cfg.folds_csv}", before)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    message, after = make(parse([f"root={moved}", "n_folds=2"]), capsys)
    assert message.startswith("make_folds: current")
    assert after == before


def test_folds_of_other_settings_and_files_are_refused_by_name(cfg, capsys):
    _, before = make(cfg, capsys)
    with pytest.raises(UserError, match=r"\(seed: 42 -> 7\); .*keep both with folds=<other folder>, or delete"):
        update_folds(replace(cfg, seed=7))
    with pytest.raises(UserError, match=r"n_folds: 2 -> 3"):
        update_folds(replace(cfg, n_folds=3))
    labels = Path(cfg.input) / LABELS_CSV
    labels.write_text(labels.read_text().replace("30,40", "30,41"))
    with pytest.raises(UserError, match=rf"{LABELS_CSV}: [0-9a-f]{{16}} -> [0-9a-f]{{16}}\)"):
        update_folds(cfg)
    labels.write_text(labels.read_text().replace("30,41", "30,40"))
    (Path(cfg.input) / CLASSES_CSV).write_text("patientId,class\n")
    with pytest.raises(UserError, match=rf"{CLASSES_CSV}: absent -> "):
        update_folds(cfg)
    (Path(cfg.input) / CLASSES_CSV).unlink()
    assert make(cfg, capsys)[1] == before


def test_folds_that_the_user_brought_are_checked_and_kept(cfg, capsys):
    make(cfg, capsys)
    cfg.folds_csv.with_suffix(".json").unlink()
    content = cfg.folds_csv.read_bytes()
    for _ in range(2):
        assert make(replace(cfg, seed=7), capsys) == (
            f"make_folds: not made by make_folds, kept -> {cfg.folds_csv}",
            [content],
        )
    cfg.folds_csv.write_text(content.decode().replace("i00,0,1,1", "i00,0,0,0").replace("i00,1,1,1", "i00,1,0,0"))
    with pytest.raises(UserError, match=r"patientId i00: target is not that of the labels"):
        update_folds(cfg)
    cfg.folds_csv.write_text(content.decode().replace("i00,0,", "i00,5,").replace("i00,1,", "i00,5,"))
    with pytest.raises(UserError, match="has folds beyond n_folds=2"):
        update_folds(cfg)


def test_edited_folds_are_checked_kept_and_recorded_again(cfg, capsys):
    make(cfg, capsys)
    folds = pd.read_csv(cfg.folds_csv)
    folds["fold"] = 1 - folds["fold"]
    folds.to_csv(cfg.folds_csv, index=False)
    edited = cfg.folds_csv.read_bytes()
    message, _ = make(cfg, capsys)
    assert message == f"make_folds: edited by hand, kept -> {cfg.folds_csv}"
    assert cfg.folds_csv.read_bytes() == edited
    assert make(cfg, capsys)[0] == f"make_folds: current -> {cfg.folds_csv}"


def test_a_killed_run_leaves_folds_that_the_next_one_records(cfg, capsys, monkeypatch):
    record = artifacts.record

    def killed_at_the_end(cfg, *args, **options):
        if cfg.folds_csv.exists():
            raise KeyboardInterrupt
        record(cfg, *args, **options)

    monkeypatch.setattr(artifacts, "record", killed_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        update_folds(cfg)
    monkeypatch.undo()
    assert make(cfg, capsys)[0] == f"make_folds: kept -> {cfg.folds_csv}"
    assert make(cfg, capsys)[0] == f"make_folds: current -> {cfg.folds_csv}"
