"""Folds: complete, balanced, without leaks between people, the same for any order of rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.dicom_files import radiograph, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st

import make_folds
from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.data.competition import FOLD_COLUMNS, TRAIN_IMAGES

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "rsna"


def images_of(people, seed=0):
    """One row per image; people: how many images each person has."""
    rng = np.random.default_rng(seed)
    n = sum(people)
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
            "group": np.repeat([f"p{k}" for k in range(len(people))], people),
        }
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 5))
def test_people_stay_together_and_every_fold_is_used(people, n_folds, seed):
    images = images_of(people)
    folds = make_folds.assign_folds(images, n_folds, seed)
    assert set(folds) == set(range(n_folds))
    assert images.assign(fold=folds).groupby("group")["fold"].nunique().max() == 1


@st.composite
def labelled_people(draw):
    """Images with anything in any column, of any number of people."""
    n = draw(st.integers(6, 60))

    def column(*values):
        return draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    target = np.array(column(0, 1))
    names = column("Lung Opacity", "No Lung Opacity / Not Normal", "Normal", "")
    ages = pd.array(column(pd.NA, 0, 1, 62, 155), dtype="Int64")
    table = {"patientId": [f"i{k}" for k in range(n)], "target": target, "n_boxes": target * column(1, 2, 3, 4)}
    table |= {"class": names, "view": column("AP", "PA", "", "LL"), "sex": column("F", "M", ""), "age": ages}
    return pd.DataFrame(table | {"group": column(*(f"p{k}" for k in range(draw(st.integers(1, n)))))})


@settings(max_examples=150, deadline=None)
@given(labelled_people(), st.integers(2, 5), st.integers(0, 3))
def test_folds_are_disjoint_and_complete_for_any_labels(images, n_folds, seed):
    positives = images["target"].sum()
    if min(positives, len(images) - positives, images["group"].nunique()) < n_folds:
        with pytest.raises(UserError, match="too many for"):
            make_folds.assign_folds(images, n_folds, seed)
        return
    images["fold"] = make_folds.assign_folds(images, n_folds, seed)
    assert set(images["fold"]) == set(range(n_folds))
    assert images.groupby("group")["fold"].nunique().max() == 1
    sizes = images["fold"].value_counts()
    # beyond the largest person, what is even to see is left to the labels
    assert sizes.max() - sizes.min() <= 2 * images["group"].value_counts().max() + 4


def test_images_without_labels_and_labels_without_images_are_said(tmp_path, capsys):
    for name in ("a", "b", "d", "._a"):
        (tmp_path / f"{name}.dcm").touch()
    make_folds.compare_files(np.array(["a", "b", "c", "e"]), tmp_path)
    said = capsys.readouterr().out
    assert "2 of 4 labelled images have no DICOM" in said
    assert "first c" in said
    assert "1 images in" in said
    make_folds.compare_files(np.array(["a", "b", "d"]), tmp_path)
    make_folds.compare_files(np.array(["a"]), tmp_path / "absent")
    assert capsys.readouterr().out == ""


def headers_of(*ids):
    return pd.DataFrame({"patientId": ids, "PatientAge": "", "PatientSex": "", "ViewPosition": ""})


def test_a_class_that_contradicts_its_label_is_named():
    labels = pd.DataFrame({"patientId": ["a", "b", "c"], "Target": [0, 1, 0]})
    good = pd.Series({"a": "Normal", "b": "Lung Opacity"})
    assert make_folds.describe_images(labels, good, headers_of())["class"].tolist() == ["Normal", "Lung Opacity", ""]
    for wrong in ({"a": "Lung Opacity"}, {"b": "Normal"}):
        with pytest.raises(UserError, match=f"patientId {min(wrong)} is .*1 such image"):
            make_folds.describe_images(labels, pd.Series({**good, **wrong}), headers_of())


def test_images_of_unknown_people_are_said(capsys):
    images = pd.DataFrame({"patientId": ["a", "b"]})
    assert make_folds.group_by_person(images, pd.Series({"a": "p", "b": "q"})).tolist() == ["p", "q"]
    assert capsys.readouterr().out == ""
    for people, count in (({"a": "p"}, 1), ({}, 2), ({"z": "p"}, 2)):
        make_folds.group_by_person(images, pd.Series(people, dtype=object))
        assert f"people may leak between folds: {count} of 2 images" in capsys.readouterr().out


def test_headers_that_could_not_be_read_are_read_again(tmp_path):
    cfg = parse([f"root={tmp_path}", "workers=0"])
    folder = tmp_path / "input" / TRAIN_IMAGES
    folder.mkdir(parents=True)
    for name in "ab":
        write_dicom(folder / f"{name}.dcm", radiograph(8, 8), ViewPosition="AP")
    whole = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(b"cut")
    assert make_folds.read_headers(cfg, {"a", "b"})["ViewPosition"].tolist() == ["AP", ""]
    (folder / "b.dcm").write_bytes(whole)
    assert make_folds.read_headers(cfg, {"a", "b"})["ViewPosition"].tolist() == ["AP", "AP"]
    (folder / "b.dcm").unlink()
    assert make_folds.read_headers(cfg, {"a", "b"})["ViewPosition"].tolist() == ["AP", "AP"]


def test_without_people_rates_are_even():
    images = images_of([1] * 500)
    images["fold"] = make_folds.assign_folds(images, 5, 42)
    assert images["fold"].value_counts().tolist() == [100] * 5
    rates = images.groupby("fold")["target"].mean()
    assert (rates - images["target"].mean()).abs().max() < 0.011


def test_seed_decides():
    images = images_of([1, 2, 3] * 30)
    assert (make_folds.assign_folds(images, 5, 1) == make_folds.assign_folds(images, 5, 1)).all()
    assert (make_folds.assign_folds(images, 5, 1) != make_folds.assign_folds(images, 5, 2)).any()


@pytest.mark.parametrize(
    ("people", "expected"), [([1] * 30, "022122011101011210201202100202"), ([3] * 10, "222111222000000000111111222222")]
)
def test_folds_are_these(people, expected):
    """Written down, so that another version of a library that deals otherwise is noticed: runs would mix."""
    images = images_of(people)
    images.loc[3, "age"] = pd.NA
    folds = "".join(map(str, make_folds.assign_folds(images, 3, 42)))
    assert folds == expected


def test_too_few_positives_are_said():
    with pytest.raises(UserError, match="too many for 3 positive"):
        make_folds.assign_folds(images_of([1] * 9), 5, 42)


@pytest.mark.parametrize(("written", "age"), [("062Y", 62), ("62", 62), (" 62".strip(), 62), ("", None), ("6M", None)])
def test_age_as_it_is_written(written, age):
    labels = pd.DataFrame({"patientId": ["a"], "Target": [0]})
    headers = pd.DataFrame({"patientId": ["a"], "PatientAge": [written], "PatientSex": ["F"], "ViewPosition": ["AP"]})
    found = make_folds.describe_images(labels, None, headers)["age"].iloc[0]
    assert (found == age) if age else pd.isna(found)


@pytest.mark.skipif(not REAL.is_dir(), reason="the challenge's tables are not there")
def test_all_of_the_challenge(tmp_path, capsys):
    cfg = parse([f"input={REAL}", f"root={tmp_path}", f"working={tmp_path}"])
    make_folds.main(cfg)
    folds = pd.read_csv(cfg.folds_csv)
    assert list(folds.columns) == FOLD_COLUMNS
    assert len(folds) == 26684
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert (folds.groupby("fold")["target"].mean() - folds["target"].mean()).abs().max() < 0.001
    sizes = folds["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.01
    assert "0 people in more than one fold" in capsys.readouterr().out
