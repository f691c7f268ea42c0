"""The metric against hand-worked cases, a simple reference implementation, and its invariants."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.data.competition import PREDICTION_COLUMNS
from rsna.evaluation.bootstrap import interval, paired_interval
from rsna.evaluation.metric import IOU_THRESHOLDS, image_scores, keep_confident, mean_average_precision, threshold_sweep
from rsna.evaluation.threshold import best_threshold


def truth_table(rows):
    return pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height"])


def prediction_table(rows):
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


HAND_WORKED = {
    "IoU exactly .5 is no match at .5": ([("a", 0, 0, 100, 100)], [("a", 0.9, 0, 0, 100, 50)], 0.25),
    "IoU exactly .75 is no match at .75": ([("a", 0, 0, 20, 20)], [("a", 0.9, 0, 0, 20, 15)], 0.875),
    "shifted": ([("a", 0, 0, 10, 10)], [("a", 0.9, 4, 0, 10, 10)], 0.125),
    "each takes the best that is left": (
        [("a", 0, 0, 100, 100), ("a", 100, 0, 104, 100)],
        [("a", 0.9, 0, 0, 204, 100), ("a", 0.8, 0, 0, 100, 100)],
        0.583333,
    ),
    "the same box twice": ([("a", 5, 5, 10, 10)], [("a", 0.9, 5, 5, 10, 10), ("a", 0.8, 5, 5, 10, 10)], 0.5),
    "false alarms on a negative": (
        [("b", 5, 5, 10, 10)],
        [("a", 0.9, 0, 0, 9, 9), ("a", 0.8, 0, 0, 5, 5), ("a", 0.7, 1, 1, 3, 3), ("b", 0.9, 5, 5, 10, 10)],
        0.5,
    ),
    "nothing predicted": ([("a", 0, 0, 9, 9)], [], 0.0),
    "an empty row is no box": ([("a", 0, 0, 9, 9)], [("a", 0.9, 0, 0, 9, 9), ("b", *[np.nan] * 5)], 1.0),
}


@pytest.mark.parametrize("case", HAND_WORKED)
def test_hand_worked(case):
    truth, predictions, expected = HAND_WORKED[case]
    assert mean_average_precision(truth_table(truth), prediction_table(predictions)) == pytest.approx(
        expected, abs=1e-6
    )


def test_thresholds_are_exact():
    assert IOU_THRESHOLDS.tolist() == [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]


@pytest.mark.parametrize("k", range(8))
def test_iou_equal_to_a_threshold_is_no_match(k):
    percent = 40 + 5 * k
    score = mean_average_precision(
        truth_table([("a", 0, 0, 10, 100)]), prediction_table([("a", 1.0, 0, 0, 10, percent)])
    )
    assert score == k / 8


def random_image(name, rng):
    """Truth and predictions of one image, on a coarse grid, so that ties and an IoU equal to a threshold are frequent.

    A third of the predictions are a true box with its height cut to k/20.
    """
    truth = [(name, *rng.integers(0, 40, 2), *rng.integers(1, 5, 2) * 20) for _ in range(rng.integers(0, 5))]
    predictions = []
    for _ in range(rng.integers(0, 6)):
        box = (*rng.integers(0, 40, 2), *rng.integers(1, 5, 2) * 20)
        if truth and rng.random() < 1 / 3:
            x, y, width, height = truth[rng.integers(len(truth))][1:]
            box = (x, y, width, height * rng.integers(7, 16) // 20)
        predictions.append((name, rng.choice([0.2, 0.4, 0.6, 0.8]), *box))
    return truth, predictions


def test_ten_thousand_random_images_score_as_defined():
    """All in one table, checked for each image and threshold."""
    rng = np.random.default_rng(0)
    cases = {f"i{k:05d}": random_image(f"i{k:05d}", rng) for k in range(10_000)}
    truth = truth_table([row for rows, _ in cases.values() for row in rows])
    predictions = prediction_table([row for _, rows in cases.values() for row in rows])
    scores = image_scores(truth, predictions)
    assert sorted(scores.index) == sorted(name for name, (rows, found) in cases.items() if rows or found)
    on_threshold = ties = 0
    for name, found in zip(scores.index, scores.to_numpy(), strict=True):
        rows, predicted = cases[name]
        np.testing.assert_array_equal(found, slow_scores(rows, predicted), err_msg=name)
        overlaps = [slow_iou(p[2:], t[1:]) for p in predicted for t in rows]
        on_threshold += any(overlap in IOU_THRESHOLDS for overlap in overlaps)
        ties += len({row[1] for row in predicted}) < len(predicted)
    assert on_threshold > 1000
    assert ties > 1000


def slow_scores(truth, predictions):
    """The score of one image at each IoU threshold, by the definition."""
    scores = []
    for t in [k / 100 for k in range(40, 80, 5)]:
        left, hits = [row[1:] for row in truth], 0
        for row in sorted(predictions, key=lambda row: -row[1]):
            overlaps = [slow_iou(row[2:], other) for other in left]
            if overlaps and max(overlaps) > t:
                left.pop(overlaps.index(max(overlaps)))
                hits += 1
        scores.append(hits / (len(predictions) + len(truth) - hits))
    return scores


def test_no_image_counts():
    assert np.isnan(mean_average_precision(truth_table([]), prediction_table([])))


def test_a_missing_number_is_refused():
    with pytest.raises(ValueError, match="empty field"):
        mean_average_precision(truth_table([]), prediction_table([("a", 0.5, 0, 0, np.nan, 3)]))


def slow_map(truth, predictions):
    """The definition, image by image and box by box."""
    scores = []
    for image in {row[0] for row in [*truth, *predictions]}:
        scores += slow_scores(
            [row for row in truth if row[0] == image], [row for row in predictions if row[0] == image]
        )
    return float(np.mean(scores)) if scores else float("nan")


def slow_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


# with small whole numbers, ties and IoUs equal to a threshold are frequent
BOX = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8), st.integers(1, 8))
IMAGE = st.sampled_from("abcd")
TRUTH = st.lists(st.tuples(IMAGE, BOX).map(lambda v: (v[0], *v[1])), max_size=10)
CONFIDENCE = st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9])
PREDICTIONS = st.lists(st.tuples(IMAGE, CONFIDENCE, BOX).map(lambda v: (v[0], v[1], *v[2])), max_size=12)


@settings(max_examples=200)
@given(TRUTH, PREDICTIONS)
def test_the_metric_equals_its_definition(truth, predictions):
    fast = mean_average_precision(truth_table(truth), prediction_table(predictions))
    assert fast == pytest.approx(slow_map(truth, predictions), abs=1e-12, nan_ok=True)


@settings(max_examples=200)
@given(TRUTH, PREDICTIONS)
def test_sweep_equals_scoring_each_threshold(truth, predictions):
    truth, predictions = truth_table(truth), prediction_table(predictions)
    sweep = threshold_sweep(truth, predictions)
    assert len(sweep) == predictions["confidence"].nunique() + 1
    for row in sweep.itertuples():
        kept = keep_confident(predictions, row.threshold)
        assert len(kept) == row.n_boxes
        direct = mean_average_precision(truth, kept)
        assert row.score == pytest.approx(0.0 if np.isnan(direct) else direct, abs=1e-12)


@settings(max_examples=100)
@given(TRUTH, PREDICTIONS, st.randoms())
def test_order_of_truth_rows_and_of_images_does_not_matter(truth, predictions, random):
    before = mean_average_precision(truth_table(truth), prediction_table(predictions))
    random.shuffle(truth)
    predictions = sorted(predictions, key=lambda row: row[0], reverse=True)
    after = mean_average_precision(truth_table(truth), prediction_table(predictions))
    # if a prediction overlaps two true boxes equally, the first in the file is matched; only then may scores differ
    overlaps = [[slow_iou(p[2:], t[1:]) for t in truth if t[0] == p[0]] for p in predictions]
    if all(len(set(values)) == len(values) for values in overlaps):
        assert after == pytest.approx(before, abs=1e-12, nan_ok=True)


def test_sweep_finds_the_best_threshold():
    truth = truth_table([("a", 0, 0, 10, 10), ("b", 0, 0, 10, 10)])
    predictions = prediction_table(
        [("a", 0.9, 0, 0, 10, 10), ("b", 0.6, 0, 0, 10, 10), ("c", 0.4, 0, 0, 5, 5), ("d", 0.2, 0, 0, 5, 5)]
    )
    sweep = threshold_sweep(truth, predictions)
    assert best_threshold(sweep) == pytest.approx(0.5)
    assert sweep["score"].tolist() == pytest.approx([0, 0.5, 1, 2 / 3, 0.5])


def test_single_box_ceiling():
    """A perfect largest box and no other scores 1 on images with one box, and 1/2 on images with two."""
    truth = truth_table([("a", 0, 0, 10, 10), ("b", 0, 0, 10, 10), ("b", 50, 0, 5, 5)])
    predictions = prediction_table([("a", 1, 0, 0, 10, 10), ("b", 1, 0, 0, 10, 10)])
    assert image_scores(truth, predictions).mean(axis=1).to_dict() == {"a": 1.0, "b": 0.5}


def test_bootstrap_resamples_people():
    """Twenty images of one person are one observation: the interval must be as wide as with one image per person."""
    people = pd.Series([f"p{k}" for k in range(20)], index=[f"i{k}" for k in range(20)])
    scores = pd.Series(np.tile([0.0, 1.0], 10), index=people.index)
    low, high = interval(scores, people, 500, seed=1)
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8
    many = pd.concat([scores.rename(lambda name, k=k: f"{name}-{k}") for k in range(20)])
    owners = pd.Series([people[name.split("-")[0]] for name in many.index], index=many.index)
    assert interval(many, owners, 500, seed=1) == pytest.approx((low, high), abs=0.05)
    assert interval(scores, people, 500, seed=1) == (low, high)


def slow_intervals(first, second, people, n_resamples, seed):
    """Draw people one resample at a time, with the same generator and so the same draws."""
    names = sorted(people.unique())
    table = np.array(
        [
            [f(scores[people.reindex(scores.index) == name]) for scores in (first, second) for f in (np.sum, len)]
            for name in names
        ]
    )
    rng = np.random.default_rng(seed)
    sums = np.array([table[rng.integers(0, len(names), len(names))].sum(axis=0) for _ in range(n_resamples)])
    means = sums[:, [0, 2]] / sums[:, [1, 3]]
    return np.quantile(means[:, 0], [0.025, 0.975]), np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])


def test_intervals_equal_drawing_people_one_resample_at_a_time():
    rng = np.random.default_rng(3)
    ids = [f"i{k:03d}" for k in range(90)]
    people = pd.Series([f"p{k:02d}" for k in np.sort(rng.integers(0, 40, 90))], index=ids)
    first, second = pd.Series(rng.random(90), index=ids), pd.Series(rng.random(90), index=ids)
    alone, paired = slow_intervals(first, second, people, 200, 7)
    assert interval(first, people, 200, seed=7) == pytest.approx(alone)
    difference, *limits = paired_interval(first, second, people, 200, seed=7)
    assert difference == pytest.approx(first.mean() - second.mean())
    assert limits == pytest.approx(paired)


def test_one_person_has_an_interval_of_zero_width():
    scores, people = pd.Series({"a": 0.2, "b": 0.6}), pd.Series({"a": "p", "b": "p"})
    assert interval(scores, people, 100, seed=1) == pytest.approx((0.4, 0.4))
    assert paired_interval(scores, scores, people, 100, seed=1) == (0.0, 0.0, 0.0)


def test_a_pair_without_images_has_no_interval():
    nothing = pd.Series(dtype=float)
    assert np.isnan(paired_interval(nothing, nothing, pd.Series(dtype=object), 100, seed=1)).all()
