"""Labels and sample submission: good ones are read exactly, bad ones are named with file and line."""

import pandas as pd
import pytest

from rsna.core.errors import UserError
from rsna.data.competition import (
    SAMPLE_CSV,
    largest_box,
    read_classes,
    read_folds,
    read_labels,
    read_people,
    read_predictions,
    read_sample,
    truth_boxes,
)
from rsna.data.submission_format import parse_submission

HEADER = "patientId,x,y,width,height,Target\n"


@pytest.fixture
def labels_csv(tmp_path):
    def write(body, header=HEADER):
        path = tmp_path / "labels.csv"
        path.write_bytes((header + body).encode())
        return path

    return write


def test_reads_boxes_and_negatives(labels_csv):
    labels = read_labels(labels_csv("001,10,20.5,30,40,1\n001,1,2,3,4,1\n002,,,,,0\n"))
    assert labels["patientId"].tolist() == ["001", "001", "002"]
    truth = truth_boxes(labels)
    assert truth.to_numpy().tolist() == [["001", 10.0, 20.5, 30.0, 40.0], ["001", 1.0, 2.0, 3.0, 4.0]]


def test_byte_order_mark_and_windows_lines_are_read(labels_csv):
    labels = read_labels(labels_csv("a,1,2,3,4,1\r\n", header="\ufeff" + HEADER.replace("\n", "\r\n")))
    assert labels["patientId"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a,,,,,2\n", "line 2 .*Target is neither 0 nor 1"),
        ("a,,,,,0\nb,1,2,,4,1\n", "line 3 .*a positive needs"),
        ("b,,,,,1\n", "a positive needs"),
        ("b,1,2,3,4,0\n", "a negative has a box"),
        ("b,1,2,0,4,1\n", "the box is empty"),
        ("b,-1,2,3,4,1\n", "starts outside"),
        ("b,x,2,3,4,1\n", "not a number"),
        ("b,1,2,inf,4,1\n", "not a number"),
        ("b,1,2,3,4,1\nc,99999999999999999999999,2,3,4,1\n", "line 3 .*not a number, or too large"),
        ("b,1,2,3,4,99999999999999999999999\n", "not a number, or too large"),
        ("b,1,2,3,1e200,1\n", "not a number, or too large"),
        ("b,1,2,3,4,1,5\n", "more fields than the header"),
        ("b,1,2,3,4,1\nc,1,2,3,4,1,5\n", "line 3, saw 7"),
        ("b,1,2,3\n", "Target is neither"),
        (" ,,,,,0\n", "patientId is empty"),
        ("b,1,2,3,4,1\nb,1.0,2,3,4,1\n", "line 3 .*twice"),
        ("b,1,2,3,4,1\nb ,1,2,3,4,1\n", "line 3 .*twice"),
        ("b,1,2,3,4,1\nb,,,,,0\n", "both positive and negative"),
        ("b,1,2,3,4,1\nb,1,2,3,4,1\n", "line 3 .*twice"),
        (",,,,,0\n", "patientId is empty"),
        ("", "no rows"),
    ],
)
def test_bad_rows_are_named(labels_csv, body, message):
    with pytest.raises(UserError, match=message):
        read_labels(labels_csv(body))


def test_spaces_are_stripped_counted_and_reported(labels_csv, capsys):
    """There are spaces around 3 column names and 1 id; 4 fields have only spaces and count as empty."""
    labels = read_labels(
        labels_csv(" 007 , 1,2 ,3,4,1\n02, , , , ,0\n", header=" patientId , x,y,width,height,Target \n")
    )
    assert labels["patientId"].tolist() == ["007", "02"]
    assert truth_boxes(labels).to_numpy().tolist() == [["007", 1, 2, 3, 4]]
    assert "spaces cut off around 8 names" in capsys.readouterr().out
    read_labels(labels_csv("a,1,2,3,4,1\n"))
    assert capsys.readouterr().out == ""


def test_an_empty_file_is_reported_as_no_table(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(UserError, match=r"labels\.csv: not a CSV table with a header"):
        read_labels(tmp_path / "labels.csv")


def test_missing_column_and_file_are_named(labels_csv, tmp_path):
    with pytest.raises(UserError, match="column Target is missing"):
        read_labels(labels_csv("a,1,2,3,4\n", header="patientId,x,y,width,height\n"))
    with pytest.raises(UserError, match=r"no such file.*kaggle competitions download"):
        read_labels(tmp_path / "absent.csv")


def test_the_largest_box_by_area_is_the_first_if_tied():
    rows = [("a", 0, 0, 10, 10), ("b", 0, 0, 5, 5), ("a", 1, 1, 4, 30), ("b", 9, 9, 5, 5)]
    largest = largest_box(pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height"]))
    assert largest.to_numpy().tolist() == [["b", 0, 0, 5, 5], ["a", 1, 1, 4, 30]]


def test_people_and_classes(tmp_path):
    assert read_people(tmp_path) is None
    assert read_classes(tmp_path) is None
    mapping = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    mapping.write_text('[{"subset_img_id": "a", "img_id": "00001323_001.png"}]')
    people = read_people(tmp_path)
    assert people is not None
    assert people.to_dict() == {"a": "00001323"}
    mapping.write_text('[{"other": 1}]')
    with pytest.raises(UserError, match="expected a list of objects"):
        read_people(tmp_path)
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("patientId,class\na,Pneumonia\n")
    with pytest.raises(UserError, match="unknown class 'Pneumonia'"):
        read_classes(tmp_path)


def test_sample_keeps_its_order(tmp_path):
    (tmp_path / "stage_2_sample_submission.csv").write_text("patientId,PredictionString\nb,0.5 0 0 1 1\na,\n")
    assert read_sample(tmp_path) == ["b", "a"]


def test_ids_may_look_like_missing_values(labels_csv):
    assert read_labels(labels_csv("NA,1,2,3,4,1\nnull,,,,,0\nnan,,,,,0\n"))["patientId"].tolist() == [
        "NA",
        "null",
        "nan",
    ]


FOLDS = "patientId,fold,target,n_boxes,class,view,sex,age,group\n"
HUGE = ["99999999999999999999999", "-99999999999999999999999", "18446744073709551615", "1e19", "1e400", "inf", "-inf"]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("column", ["fold", "target", "n_boxes", "age"])
def test_folds_with_numbers_that_are_too_large_are_named(tmp_path, column, number):
    row = {"fold": "0", "target": "1", "n_boxes": "1", "age": "50"} | {column: number}
    line = "NA,{fold},{target},{n_boxes},,,,{age},null\n".format
    (tmp_path / "folds.csv").write_text(
        FOLDS + line(fold=0, target=0, n_boxes=0, age="") + line(**row).replace("NA", "b")
    )
    with pytest.raises(UserError, match=r"folds\.csv, line 3 \(patientId b\): "):
        read_folds(tmp_path / "folds.csv", "make_folds")


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("column", range(1, 6))
def test_predictions_with_numbers_that_are_too_large_are_named(tmp_path, column, number):
    row = ["a", "0.5", "1", "2", "3", "4"]
    row[column] = number
    (tmp_path / "t.csv").write_text("patientId,confidence,x,y,width,height\nNA,,,,,\n" + ",".join(row) + "\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3 \(patientId a\): a field is not a number, or too large"):
        read_predictions(tmp_path / "t.csv")
    (tmp_path / "s.csv").write_text("patientId,PredictionString\nNA,\na," + " ".join(row[1:]) + "\n")
    with pytest.raises(UserError, match=r"s\.csv, line 3 \(a\): "):
        parse_submission(tmp_path / "s.csv")


def test_a_sample_submission_without_rows_is_refused(tmp_path):
    (tmp_path / SAMPLE_CSV).write_text("patientId,PredictionString\n")
    with pytest.raises(UserError, match=r"stage_2_sample_submission\.csv: has no row; "):
        read_sample(tmp_path)
