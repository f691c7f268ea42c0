"""Operating point, baselines and scores: the numbers that decide what is submitted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core.errors import UserError
from rsna.data.competition import PREDICTION_COLUMNS, read_predictions
from rsna.evaluation import scores as scoring
from rsna.evaluation.baselines import median_box, median_boxes
from rsna.evaluation.metric import mean_average_precision, threshold_sweep
from rsna.evaluation.scores import accuracy, corner_errors
from rsna.evaluation.threshold import (
    best_point,
    cross_fit,
    plateau,
    point_for_test,
    threshold_of_share,
    with_scaled_boxes,
)


def predictions(*rows):
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def truth_of(*rows):
    return pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height"])


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.5001, 0.9, np.nan]), min_size=1, max_size=20), st.floats(0, 1))
def test_the_share_is_as_close_as_ties_allow(confidences, share):
    table = predictions(*((f"i{k}", value, 0, 0, 1, 1) for k, value in enumerate(confidences)))
    threshold = threshold_of_share(table, share)
    filled = table["confidence"].fillna(0.0)
    reached = abs((filled >= threshold).mean() - share)
    possible = [abs((filled >= level).mean() - share) for level in (*filled, 2.0)]
    assert reached == pytest.approx(min(possible))


def test_threshold_of_a_fold_is_chosen_on_the_others():
    """Fold 0 alone would choose .5 and fold 1 would choose .2: each gets the other's."""
    truth = truth_of(("a", 0, 0, 9, 9), ("c", 0, 0, 9, 9))
    table = predictions(("a", 0.6, 0, 0, 9, 9), ("b", 0.4, 0, 0, 9, 9), ("c", 0.3, 0, 0, 9, 9), ("d", 0.1, 0, 0, 9, 9))
    fold_of = pd.Series({"a": 0, "b": 0, "c": 1, "d": 1})
    scores, points = cross_fit(table, truth, fold_of)
    assert {fold: point.threshold for fold, point in points.items()} == pytest.approx({0: 0.2, 1: 0.5})
    assert scores.to_dict() == {"a": 1.0, "b": 0.0, "c": 0.0}


def test_one_fold_has_no_cross_fitted_score():
    scores, points = cross_fit(predictions(), truth_of(), pd.Series({"a": 0}))
    assert scores.empty
    assert points == {}


def test_median_box_is_of_the_busier_side_and_of_other_folds():
    truth = truth_of(
        ("a", 100, 1, 10, 10), ("b", 110, 3, 12, 10), ("c", 120, 5, 14, 10), ("d", 800, 7, 90, 90), ("e", 500, 0, 9, 9)
    )
    assert median_box(truth.iloc[:4]) == {"x": 110, "y": 3, "width": 12, "height": 10}
    boxes = median_boxes(truth.iloc[:4], pd.Series({"c": 0, "z": 1})).set_index("patientId")
    assert boxes.loc["c", "x"] == 105  # not from c itself
    assert boxes.loc["z", "x"] == 110


def test_auc_and_iou_by_hand():
    truth = truth_of(("a", 0, 0, 10, 10), ("a", 0, 0, 2, 2), ("b", 0, 0, 10, 10))
    table = predictions(("a", 0.9, 0, 0, 10, 5), ("a", 0.2, 0, 0, 10, 10), ("b", *[np.nan] * 5), ("c", 0.1, 0, 0, 1, 1))
    assert scoring.iou_on_positives(table, truth) == pytest.approx(0.25)
    assert scoring.opacity_auc(table, truth) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0.5,1,2,3,", "line 2 .*a box needs"),
        ("a,,1,2,3,4", "a box needs"),
        ("a,high,1,2,3,4", "not a number"),
        ("a,inf,1,2,3,4", "not a number"),
        ("a,1.5,1,2,3,4", "from 0 to 1"),
        ("a,0.5,1,2,-3,4", "no area"),
        (",0.5,1,2,3,4", "patientId is empty"),
    ],
)
def test_broken_predictions_are_named(tmp_path, row, message):
    path = tmp_path / "p.csv"
    path.write_text("patientId,confidence,x,y,width,height\n" + row + "\n")
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_scaled_boxes_keep_their_centres():
    table = pd.DataFrame(
        {"patientId": ["a"], "confidence": [0.5], "x": [10.0], "y": [20.0], "width": [8.0], "height": [4.0]}
    )
    row = with_scaled_boxes(table, 0.5).iloc[0]
    assert row[["x", "y", "width", "height"]].tolist() == [12.0, 21.0, 4.0, 2.0]
    assert row["confidence"] == 0.5


def test_accuracy_counts_images_not_boxes():
    truth = pd.DataFrame({"patientId": ["a", "a", "b"]})
    rows = [("a", 0.6), ("a", 0.2), ("b", 0.5), ("c", np.nan), ("d", 0.7)]
    assert accuracy(pd.DataFrame(rows, columns=["patientId", "confidence"]), truth) == 0.5


def test_corner_errors_by_hand():
    """A box off by 0.1 at each corner, and a negative answered with the left half of the image."""
    predicted = np.array([[0.2, 0.2, 0.6, 0.6], [0.0, 0.0, 0.5, 1.0]])
    true = np.array([[0.1, 0.1, 0.5, 0.5], [np.nan] * 4])
    errors = corner_errors(predicted, true)
    assert errors["L1"] == pytest.approx(51.2)
    assert errors["L1_post"] == pytest.approx((51.2 + 512 * 0.125) / 2)


def test_best_point_is_the_best_of_all_thresholds_and_scales():
    truth = truth_of(("a", 100, 100, 80, 80), ("b", 300, 300, 80, 80))
    table = predictions(("a", 0.9, 90, 90, 100, 100), ("b", 0.6, 290, 290, 100, 100), ("c", 0.3, 0, 0, 9, 9))
    point = best_point(table, truth, (1.0, 0.8))
    assert (point.box_scale, point.threshold) == (0.8, pytest.approx(0.45))
    assert mean_average_precision(truth, point.apply(table)) == 1.0
    assert best_point(table, truth).box_scale == 1.0


def test_test_images_get_as_many_boxes_as_single_folds_give():
    """Two folds give 3 and 1 of 4 images a box at .5: two images get one, whatever the fused confidences are."""
    by_fold = pd.concat(
        [
            predictions(*((name, value, 0, 0, 9, 9) for name, value in zip("abcd", values, strict=True))).assign(
                fold=fold
            )
            for fold, values in enumerate([(0.9, 0.8, 0.7, 0.1), (0.6, 0.4, 0.3, 0.2)])
        ]
    )
    fused = predictions(*((name, value, 0, 0, 9, 9) for name, value in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)))
    point = point_for_test(fused, by_fold, 0.5)
    assert sorted(point.apply(fused)["patientId"]) == ["a", "b"]
    assert point.how_chosen.startswith("single folds give 50.0% of the test images a box at 0.5000")


def test_plateau_is_the_stretch_around_the_best_threshold():
    sweep = pd.DataFrame({"threshold": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "score": [0.97, 0.5, 0.98, 1.0, 0.96, 0.2]})
    assert plateau(sweep).tolist() == [0.7, 0.6, 0.5]


def test_images_with_several_true_and_predicted_boxes_are_scored():
    """Two true boxes, both found, the smaller with more confidence: mAP counts both, IoU looks at the first one."""
    truth = truth_of(("a", 0, 0, 100, 100), ("a", 300, 300, 50, 50), ("b", 0, 0, 10, 10))
    table = predictions(("a", 0.9, 300, 300, 50, 50), ("a", 0.8, 0, 0, 100, 100), ("b", 0.7, 0, 0, 10, 10))
    people = pd.Series({"a": "p", "b": "q", "c": "r"})
    found = scoring.describe(table, truth, people, 20, 1)
    assert found["mAP"] == 1.0
    assert (found["images"], found["positives"], found["with_box"]) == (3, 2, pytest.approx(2 / 3))
    assert scoring.iou_on_positives(table, truth) == 0.5
    assert best_point(table, truth).threshold <= 0.7
    assert threshold_sweep(truth, table)["score"].max() == 1.0
