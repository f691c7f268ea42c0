"""Box fusion, and the cases in which a plain mean would fail."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core.config import FusionSettings
from rsna.core.errors import UserError
from rsna.data.competition import PREDICTION_COLUMNS
from rsna.inference import box_fusion
from rsna.inference.box_fusion import Votes, fuse_boxes, fuse_tables

LEFT, RIGHT = (100.0, 300.0, 200.0, 300.0), (600.0, 300.0, 220.0, 320.0)  # xywh: one in each lung


def rule(max_boxes):
    return FusionSettings(wbf_iou=0.4, missing_weight=0.75, max_boxes=max_boxes)


def table_of(*rows):
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


@pytest.mark.parametrize("at_once", [1, 7, 5000])
def test_fusing_images_together_equals_fusing_each_alone(monkeypatch, at_once):
    monkeypatch.setattr(box_fusion, "IMAGES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    names = rng.permutation([f"i{k}" for k in range(40)])
    tables = []
    for _ in range(3):
        rows = np.repeat(names, rng.integers(1, 6, len(names)))
        boxes = np.column_stack([rng.choice([100, 500], (len(rows), 2)), rng.uniform(100, 300, (len(rows), 2))])
        boxes[:, :2] += rng.normal(0, 40, (len(rows), 2))
        tables.append(table_of(*zip(rows, rng.choice([0.0, 0.3, 0.5, 0.9], len(rows)), *boxes.T, strict=True)))
    together = fuse_tables(tables, rule(3), [1, 0.5, 2])
    assert together["patientId"].value_counts().max() == 3
    alone = [
        fuse_tables([table[table["patientId"] == name] for table in tables], rule(3), [1, 0.5, 2]) for name in names
    ]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), check_exact=True)


def test_views_that_disagree_are_not_averaged_between_the_lungs():
    fused = fuse_tables([table_of(("a", 0.8, *LEFT)), table_of(("a", 0.6, *RIGHT))], rule(1))
    assert fused[["x", "y", "width", "height"]].iloc[0].tolist() == pytest.approx(LEFT)
    assert fused["confidence"].iloc[0] == pytest.approx((0.8 + 0.75 * 0.6) / 2)


def test_disagreement_lowers_the_confidence_at_missing_weight_0_but_not_at_1():
    tables = [table_of(("a", 0.8, *LEFT)), table_of(("a", 0.6, *RIGHT))]
    confidences = [
        fuse_tables(tables, FusionSettings(missing_weight=weight))["confidence"].iloc[0] for weight in (0.0, 1.0)
    ]
    assert confidences == pytest.approx([0.4, 0.7])


def test_views_that_agree_are_averaged_by_confidence():
    other = (140.0, 300.0, 200.0, 300.0)
    fused = fuse_tables([table_of(("a", 0.9, *LEFT)), table_of(("a", 0.3, *other))], rule(1))
    assert fused["x"].iloc[0] == pytest.approx(110)
    assert fused["confidence"].iloc[0] == pytest.approx(0.6)


def test_the_highest_total_confidence_beats_the_single_most_confident_box():
    tables = [table_of(("a", 0.5, *LEFT)), table_of(("a", 0.6, *RIGHT)), table_of(("a", 0.4, *LEFT))]
    fused = fuse_tables(tables, rule(1))
    assert fused["x"].iloc[0] == pytest.approx(100)
    assert fused["confidence"].iloc[0] == pytest.approx((0.5 + 0.4 + 0.75 * 0.6) / 3)


def test_model_without_box_lowers_the_confidence():
    empty = table_of(("a", *[np.nan] * 5))
    assert fuse_tables([table_of(("a", 0.8, *LEFT)), empty], rule(1))["confidence"].iloc[0] == pytest.approx(0.4)
    both = fuse_tables([empty, empty], rule(1))
    assert both["patientId"].tolist() == ["a"]
    assert both["confidence"].isna().all()


def test_two_boxes_of_one_model_count_once():
    near = (105.0, 305.0, 200.0, 300.0)
    fused = fuse_tables([table_of(("a", 0.8, *LEFT), ("a", 0.7, *near)), table_of(("a", *[np.nan] * 5))], rule(2))
    assert fused["confidence"].tolist() == pytest.approx([0.4])


def test_max_boxes_allows_several_boxes():
    fused = fuse_tables([table_of(("a", 0.8, *LEFT)), table_of(("a", 0.6, *RIGHT))], rule(2))
    assert fused["confidence"].tolist() == pytest.approx([0.625, (0.6 + 0.75 * 0.8) / 2])


def test_tables_of_other_images_are_refused():
    with pytest.raises(UserError, match="2 images are in one table"):
        fuse_tables([table_of(("a", 0.8, *LEFT)), table_of(("b", 0.8, *LEFT))], rule(1))


def test_order_of_images_is_kept():
    table = table_of(("b", 0.1, *LEFT), ("a", 0.9, *LEFT), ("c", *[np.nan] * 5))
    assert fuse_tables([table, table.iloc[::-1]], rule(1))["patientId"].tolist() == ["b", "a", "c"]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.01, 1), st.floats(0, 500), st.floats(0, 500), st.floats(1, 300)),
        min_size=1,
        max_size=12,
    )
)
def test_fused_boxes_lie_within_the_input_boxes(rows):
    model_of = np.array([row[0] for row in rows])
    confidence = np.array([row[1] for row in rows])
    boxes = np.array([[x, y, x + side, y + side] for _, _, x, y, side in rows])
    votes = Votes(boxes, confidence, model_of, np.zeros(len(boxes), dtype=int))
    fused, total, _ = fuse_boxes(votes, np.ones(4), FusionSettings())
    assert 1 <= len(fused) <= len(rows)
    assert (fused >= boxes.min(axis=0) - 1e-9).all()
    assert (fused <= boxes.max(axis=0) + 1e-9).all()
    assert (total > 0).all()
    assert (total <= confidence.max() + 1e-12).all()


def test_identical_models_change_nothing():
    table = table_of(("a", 0.37, *LEFT), ("b", 0.9, *RIGHT))
    pd.testing.assert_frame_equal(fuse_tables([table] * 5, rule(1)), table)


@given(st.floats(0.01, 100))
def test_only_the_ratio_of_weights_counts(factor):
    tables = [table_of(("a", 0.8, *LEFT)), table_of(("a", 0.6, *RIGHT)), table_of(("a", 0.5, *LEFT))]
    once = fuse_tables(tables, rule(2), [1, 0.25, 0.5])
    scaled = fuse_tables(tables, rule(2), [factor, factor / 4, factor / 2])
    pd.testing.assert_frame_equal(once, scaled)
    pd.testing.assert_frame_equal(fuse_tables(tables, rule(2), [factor] * 3), fuse_tables(tables, rule(2)))


def test_a_run_with_weight_a_quarter_moves_a_box_by_a_fifth():
    shifted = [LEFT[0] + 10, *LEFT[1:]]
    fused = fuse_tables([table_of(("a", 0.8, *LEFT)), table_of(("a", 0.8, *shifted))], rule(1), [1, 0.25])
    assert fused["x"].iloc[0] == pytest.approx(LEFT[0] + 2)
    assert fused["confidence"].iloc[0] == pytest.approx(0.8)
    alone = fuse_tables([table_of(("a", 0.8, *LEFT)), table_of(("a", *[np.nan] * 5))], FusionSettings(), [1, 0.25])
    assert alone["confidence"].iloc[0] == pytest.approx(0.64), "a run without a box counts with its weight"
