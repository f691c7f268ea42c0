"""Error analysis: parts add up exactly; subgroups, calibration, thinned curves."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.data.boxes import box_iou
from rsna.data.competition import BOX_COLUMNS, CLASSES, PREDICTION_COLUMNS
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.metric import IOU_THRESHOLDS, image_scores
from rsna.evaluation.subgroups import UNKNOWN, groups_of_images, scores_by_group

IMAGES = ("a", "b", "c", "d")


def table(rows, columns):
    types = dict.fromkeys(columns[1:], float)
    return pd.DataFrame(rows, columns=columns).astype({"patientId": object, **types})


def truth_of(*rows):
    return table(list(rows), ["patientId", *BOX_COLUMNS])


def predictions(*rows):
    return table(list(rows), PREDICTION_COLUMNS)


sides = st.integers(1, 12)
places = st.integers(0, 12)
true_rows = st.lists(st.tuples(st.sampled_from(IMAGES), places, places, sides, sides), max_size=8)
confidences = st.sampled_from([0.2, 0.5, 0.9])
predicted_rows = st.lists(st.tuples(st.sampled_from(IMAGES), confidences, places, places, sides, sides), max_size=8)
kinds = st.fixed_dictionaries({name: st.sampled_from([*CLASSES, "?"]) for name in IMAGES})


def overlap(first, second):
    corners = [np.array([x, y, x + width, y + height], dtype=float) for x, y, width, height in (first, second)]
    return float(box_iou(*corners))


def take(boxes, free, least):
    """Match boxes with the best free true box above `least`: number matched, unmatched boxes, true boxes left."""
    free, failed, n_taken = list(free), [], 0
    for box in boxes:
        found = [overlap(box, true) for true in free]
        if found and max(found) > least:
            free.pop(int(np.argmax(found)))
            n_taken += 1
        else:
            failed.append(box)
    return n_taken, failed, free


def parts_of_image(truth, boxes, kind, limit):
    """The parts of one image at one IoU threshold, as exact fractions, by the definition, box by box."""
    hits, failed, free = take(boxes, truth, limit)
    near, background, unseen = take(failed, free, analysis.NEAR_IOU)
    union = hits + len(failed) + len(free)
    counts = dict.fromkeys(analysis.PARTS, 0)
    if not truth:
        name = {CLASSES[0]: "on Normal", CLASSES[1]: "on Not Normal"}.get(kind, "class unknown")
        counts[next(part for part in analysis.PARTS if part.endswith(name))] = len(boxes)
    elif not boxes:
        counts["missed images"] = len(free)
    else:
        counts |= {"missed boxes": len(unseen), "localisation errors": 2 * near, "background boxes": len(background)}
    return {part: Fraction(count, union) for part, count in counts.items()}, Fraction(hits, union)


@settings(max_examples=300)
@given(true_rows, predicted_rows, kinds)
def test_parts_match_the_definition_and_add_up(true, predicted, kind):
    truth, kept = truth_of(*true), predictions(*predicted)
    parts, images = analysis.loss_parts(truth, kept, pd.Series(kind))
    counted = sorted({row[0] for row in [*true, *predicted]})
    if not counted:
        assert parts.isna().all(axis=None)
        return
    expected = {part: [Fraction(0)] * 8 for part in analysis.PARTS}
    scored = [Fraction(0)] * 8
    for name in counted:
        own_truth = [row[1:] for row in true if row[0] == name]
        own = [row[2:] for row in sorted(predicted, key=lambda row: -row[1]) if row[0] == name]
        for k, limit in enumerate(IOU_THRESHOLDS):
            lost, hit = parts_of_image(own_truth, own, kind[name], limit)
            assert sum(lost.values()) == 1 - hit, "exactly, in fractions"
            scored[k] += hit / len(counted)
            for part, value in lost.items():
                expected[part][k] += value / len(counted)
    for part, values in expected.items():
        assert parts.loc[part].to_numpy() == pytest.approx([float(value) for value in values], abs=1e-12)
        assert (images[part] > 0) == (max(values) > 0)
    by_iou = image_scores(truth, kept).mean().to_numpy()
    assert by_iou == pytest.approx([float(value) for value in scored], abs=1e-12)
    assert parts.sum().to_numpy() == pytest.approx(1 - by_iou, abs=1e-12)
    assert parts.to_numpy().sum() / 8 == pytest.approx(1 - by_iou.mean(), abs=1e-12)


def test_parts_by_hand():
    """A miss, a false alarm on Normal and one on Not Normal, and an image with a right, a near and a background box."""
    truth = truth_of(("a", 0, 0, 10, 10), ("b", 0, 0, 10, 10), ("b", 50, 0, 10, 10))
    kept = predictions(
        ("b", 0.9, 0, 0, 10, 10), ("b", 0.8, 50, 0, 10, 3), ("b", 0.7, 90, 90, 5, 5), ("c", 0.9, 0, 0, 1, 1),
        ("d", 0.9, 0, 0, 1, 1), ("d", 0.8, 0, 0, 1, 1),
    )  # fmt: skip
    parts, images = analysis.loss_parts(truth, kept, pd.Series({"c": CLASSES[0], "d": CLASSES[1]}))
    means = parts.mean(axis=1)
    assert means["missed images"] == pytest.approx(1 / 4)
    assert means["false alarms on Normal"] == means["false alarms on Not Normal"] == pytest.approx(1 / 4)
    assert means["localisation errors"] == pytest.approx(2 / 4 / 4), "a wrong box and the miss it stands for, of four"
    assert means["background boxes"] == pytest.approx(1 / 4 / 4)
    assert means["missed boxes"] == 0
    assert images["localisation errors"] == 1


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 2**31))
def test_bins_contain_every_image_once_and_the_interval_contains_the_fraction(confidences, seed):
    top = pd.Series(confidences)
    positive = np.random.default_rng(seed).random(len(top)) < 0.5
    bins = analysis.calibration(top, positive)
    assert bins["images"].sum() == len(top)
    assert (bins["share"] * bins["images"]).sum() == pytest.approx(positive.sum())
    assert (bins["low"] <= bins["share"] + 1e-12).all()
    assert (bins["share"] <= bins["high"] + 1e-12).all()
    assert 0 <= analysis.calibration_error(bins) <= 1


def test_calibration_of_known_confidences():
    """Confidence 0.25 is right in one of four images, confidence 0.75 in all."""
    top = pd.Series([0.25] * 4 + [0.75] * 4)
    positive = np.array([1, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    bins = analysis.calibration(top, positive, 2)
    assert bins["share"].tolist() == [0.25, 1.0]
    assert analysis.calibration_error(bins) == pytest.approx(0.125)
    low, high = analysis.wilson_interval(np.array([0.5]), np.array([100.0]))
    assert (low[0], high[0]) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # textbook values


def test_roc_and_where_the_threshold_lies():
    top = pd.Series([0.9, 0.8, 0.4, 0.3])
    curve, at = analysis.roc(top, np.array([True, False, True, False]), 0.5)
    assert at == (0.5, 0.5)
    assert curve[["false_alarms", "found"]].to_numpy()[-1].tolist() == [1, 1]
    nothing, nowhere = analysis.roc(top, np.ones(4, dtype=bool), 0.5)
    assert nothing.empty
    assert np.isnan(nowhere).all()


def test_overlaps_take_the_best_true_box_and_positives_only():
    truth = truth_of(("a", 0, 0, 10, 10), ("a", 100, 0, 10, 10))
    kept = predictions(("a", 0.9, 100, 0, 10, 5), ("a", 0.9, 100, 0, 10, 5), ("b", 0.9, 0, 0, 10, 10))
    assert analysis.overlaps(truth, kept).tolist() == [0.5, 0.5]
    assert len(analysis.overlaps(truth, kept.iloc[:0])) == 0


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1000, 20_000))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(seed, n):
    rng = np.random.default_rng(seed)
    curve = pd.DataFrame({"x": np.sort(rng.random(n)), "y": rng.normal(size=n).cumsum()})
    thinned = analysis.thin(curve, "x", "y", 400)
    assert len(thinned) <= 802
    assert thinned["x"].is_monotonic_increasing
    assert thinned["y"].agg(["min", "max"]).tolist() == curve["y"].agg(["min", "max"]).tolist()
    assert thinned.iloc[[0, -1]].to_numpy().tolist() == curve.iloc[[0, -1]].to_numpy().tolist()
    short = curve.head(50)
    assert analysis.thin(short, "x", "y", 400) is short


def test_coverage_counts_boxes_over_each_cell():
    cells = analysis.coverage(np.array([[0, 0, 0.5, 0.5], [0, 0, 1.0, 0.5]]), 4)
    assert cells.tolist() == [[1, 1, 0.5, 0.5], [1, 1, 0.5, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert analysis.coverage(np.zeros((0, 4)), 4).sum() == 0


def test_groups_contain_documented_values_only():
    """Whatever a header contains, only documented values are used."""
    folds = pd.DataFrame(
        {"view": ["AP", "PA", "Dr. Smith", np.nan], "sex": ["F", "M", "Jane Doe", ""], "age": [19, 20, 155, np.nan]},
        index=list(IMAGES),
    )
    geometry = pd.DataFrame({"scale_x": 0.5, "scale_y": 0.5, "pad_x": 0.0, "pad_y": 0.0}, index=list(IMAGES))
    truth = truth_of(("a", 0, 0, 20, 20), ("b", 90, 0, 20, 20), ("c", 0, 0, 10, 10), ("c", 150, 0, 40, 40))
    groups = groups_of_images(folds, truth, geometry, 100)
    assert groups["view"].tolist() == ["AP", "PA", UNKNOWN, UNKNOWN]
    assert groups["sex"].tolist() == ["F", "M", UNKNOWN, UNKNOWN]
    assert groups["age"].tolist() == ["0 to 19", "20 to 39", UNKNOWN, UNKNOWN]
    assert groups["side"].tolist()[:3] == ["image left only", "image right only", "both sides"]
    assert groups["side"].isna().tolist() == [False, False, False, True]
    assert groups["box size"].tolist()[2].startswith("large")


def test_scores_by_group_are_means_of_what_counts():
    groups = pd.DataFrame({"view": ["AP", "AP", "PA", "PA"]}, index=list(IMAGES))
    scores = pd.Series({"a": 1.0, "b": 0.0, "c": 0.25})  # d is a negative without a box
    images = pd.DataFrame(
        {
            "score": scores.reindex(list(IMAGES)),
            "top": [0.9, 0.8, 0.7, 0.1],
            "positive": [True, False, True, False],
            "with_box": [True, True, True, False],
            "person": ["p", "q", "r", "s"],
        }
    )
    table = scores_by_group(groups, images, 50, 1)
    assert table["mAP"].tolist() == [0.5, 0.25]
    assert table["AUC"].tolist() == [1.0, 1.0]
    assert table["with_box"].tolist() == [1.0, 0.5]
    assert table["low"].isna().tolist() == [False, True], "no interval from a single person"
