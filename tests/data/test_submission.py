"""The submission: Kaggle must accept it; what it would reject or score wrongly is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.tables import write_table
from rsna.data.competition import PREDICTION_COLUMNS
from rsna.data.submission_format import check_submission, format_submission, parse_submission
from rsna.evaluation.score_text import score_file


def shapes_of(ids, rows=1024, cols=1024):
    return pd.DataFrame({"rows": rows, "cols": cols}, index=pd.Index(list(ids), name="patientId"))


def predictions(*rows):
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def test_format_by_hand(tmp_path):
    table = predictions(("b", 0.91234, 10, 20, 30.04, 40), ("b", 0.5, 0, 0, 5, 5))
    text = format_submission(table, ["a", "b"], shapes_of("ab"))
    assert text.columns.tolist() == ["patientId", "PredictionString"]
    assert text.to_numpy().tolist() == [["a", ""], ["b", "0.9123 10.0 20.0 30.0 40.0 0.5000 0.0 0.0 5.0 5.0"]]
    write_table(text, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "a,"
    assert check_submission(tmp_path / "s.csv", ["a", "b"], shapes_of("ab"))["confidence"].isna().sum() == 1


def test_nothing_predicted_is_a_valid_submission(tmp_path):
    write_table(format_submission(predictions(), ["a", "b"], shapes_of("ab")), tmp_path / "s.csv")
    assert check_submission(tmp_path / "s.csv", ["a", "b"], shapes_of("ab"))["patientId"].tolist() == ["a", "b"]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.floats(0, 1),
            st.floats(-50, 1100),
            st.floats(-50, 1100),
            st.floats(0.01, 2000),
            st.floats(0.01, 2000),
        ),
        max_size=6,
    ),
    st.integers(1, 1200),
    st.integers(1, 1200),
)
def test_whatever_was_predicted_passes_the_check(tmp_path_factory, rows, height, width):
    path = tmp_path_factory.mktemp("s") / "s.csv"
    shapes = shapes_of(["b", "a"], height, width)
    write_table(format_submission(predictions(*rows), ["b", "a"], shapes), path)
    assert len(check_submission(path, ["b", "a"], shapes).dropna()) == len(rows)


@settings(max_examples=50)
@given(st.floats(0, 900), st.floats(0, 900), st.floats(1, 124), st.floats(1, 124), st.floats(0.001, 1))
def test_boxes_inside_the_image_change_by_at_most_a_tenth_of_a_pixel(tmp_path_factory, x, y, width, height, confidence):
    path = tmp_path_factory.mktemp("s") / "s.csv"
    write_table(format_submission(predictions(("a", confidence, x, y, width, height)), ["a"], shapes_of("a")), path)
    back = parse_submission(path).iloc[0]
    assert back["confidence"] == pytest.approx(confidence, abs=0.00006)
    assert back[["x", "y"]].to_numpy(dtype=float) == pytest.approx([x, y], abs=0.051)
    assert back[["x", "y"]].to_numpy(dtype=float) + back[["width", "height"]].to_numpy(dtype=float) == pytest.approx(
        np.array([x + width, y + height]), abs=0.11
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,0.5 1 2 3\n", "line 2 .*repeated"),
        ("a,0.5 1 2 3 x\n", "line 2 .*repeated"),
        ("a,1.5 1 2 3 4\n", "confidence"),
        ("a,0 1 2 3 4\n", "confidence"),
        ("a,0.5 1 2 0 4\n", "without area"),
        ("a,0.5 1 2 nan 4\n", "without area"),
        ("a,\na,\n", "line 3.*was there before"),
        (",0.5 1 2 3 4\n", "patientId is empty"),
    ],
)
def test_broken_submissions_are_named(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text("patientId,PredictionString\n" + text)
    with pytest.raises(UserError, match=message):
        parse_submission(path)


@pytest.fixture
def score(tmp_path, capsys):
    """Run the command on a submission's text; image a has a true box, image b has none."""

    def run(text):
        (tmp_path / "labels.csv").write_text("patientId,x,y,width,height,Target\na,0,0,100,100,1\nb,,,,,0\n")
        (tmp_path / "s.csv").write_text("patientId,PredictionString\n" + text)
        words = [f"predictions={tmp_path / 's.csv'}", f"labels={tmp_path / 'labels.csv'}", f"root={tmp_path}"]
        score_file(parse(words))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,0.5 1 2 3\nb,\n", r"s\.csv, line 2 \(a\): not 'confidence x y width height'"),
        ("a,\nb,1.01 1 2 3 4\n", r"line 3 \(b\): confidence not in"),
        ("a,\nz,\n", "1 images have no row in .*labels.csv, such as z"),
        ("a,\n../../a,\n", r"such as \.\./\.\./a"),
        ("", "no image counts"),
        ("b,\n", "no image counts"),
    ],
)
def test_submissions_that_cannot_be_scored_are_named(score, text, message):
    with pytest.raises(UserError, match=message):
        score(text)


def test_a_submission_is_scored_and_missing_images_are_counted(score):
    assert "mAP 0.5000" in score("a,0.9 0 0 100 100\nb,0.2 5 5 5 5\n")
    alone = score("a,0.9 0 0 100 100\n")
    assert "mAP 1.0000" in alone
    assert "scored 1 images; 1 labelled images are not in" in alone


def test_images_that_are_not_in_the_sample_are_refused(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("patientId,PredictionString\na,\nb,\n")
    for ids in (["a"], ["a", "b", "c"], ["b", "a"]):
        with pytest.raises(UserError, match="sample submission"):
            check_submission(path, ids, shapes_of(ids))


def test_a_box_outside_its_image_is_refused(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("patientId,PredictionString\na,0.5 1000 0 100 100\n")
    with pytest.raises(UserError, match="leaves its image"):
        check_submission(path, ["a"], shapes_of("a"))
    with pytest.raises(UserError, match="not in the sample"):
        format_submission(predictions(("z", 0.5, 0, 0, 1, 1)), ["a"], shapes_of("a"))
