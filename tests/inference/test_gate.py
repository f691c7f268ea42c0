"""The gate: how class probabilities change confidences, and how it is chosen out of fold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.evaluation.threshold import best_score
from rsna.inference.gate import GATES, Fused, Gate, choose_gate, describe_gate, parse_gate

COLUMNS = ["patientId", "confidence", "x", "y", "width", "height"]


def world(n=120, folds=3, seed=0, informative=True):
    """Images of which every third has a box; confidences are noise, and p_opacity is the truth or noise."""
    rng = np.random.default_rng(seed)
    ids = [f"p{k}" for k in range(n)]
    positive = np.arange(n) % 3 == 0
    truth = pd.DataFrame(
        [(name, 10, 10, 50, 50) for name in np.array(ids)[positive]], columns=["patientId", *COLUMNS[2:]]
    )
    boxes = pd.DataFrame(
        [(name, c, 10, 10, 50, 50) for name, c in zip(ids, rng.uniform(0.2, 0.8, n), strict=True)], columns=COLUMNS
    )
    p = np.where(positive, 0.9, 0.1) if informative else rng.uniform(0.1, 0.9, n)
    images = pd.DataFrame(
        {"p_normal": 1 - p, "p_not_normal": 0.0, "p_opacity": p}, index=pd.Index(ids, name="patientId")
    )
    return Fused(boxes, images), truth, pd.Series(np.arange(n) // 3 % folds, index=ids)


def test_a_gated_confidence_by_hand():
    boxes = pd.DataFrame([("a", 0.25, 0, 0, 1, 1), ("b", np.nan, *[np.nan] * 4)], columns=COLUMNS)
    images = pd.DataFrame({"p_opacity": [0.6, 0.5], "p_not_normal": [0.4, 0.5]}, index=["a", "b"])
    gated = Gate(alpha=0.5, beta=0.1).apply(boxes, images)["confidence"]
    assert gated[0] == pytest.approx(np.sqrt(0.25 * 0.64))
    assert np.isnan(gated[1])


def test_without_a_gate_confidences_do_not_change():
    found, _, _ = world()
    assert parse_gate("none").apply(found.boxes, found.images) is found.boxes


def test_two_classes_have_no_beta():
    boxes = pd.DataFrame([("a", 0.25, 0, 0, 1, 1)], columns=COLUMNS)
    images = pd.DataFrame({"p_opacity": [0.64]}, index=["a"])
    assert Gate(0.5, 0.3).apply(boxes, images)["confidence"][0] == pytest.approx(0.4)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6), st.floats(0.01, 1), st.sampled_from(GATES))
def test_a_gate_keeps_the_order_within_an_image_and_the_range(confidences, p, gate):
    boxes = pd.DataFrame([("a", c, 0, 0, 1, 1) for c in confidences], columns=COLUMNS)
    images = pd.DataFrame({"p_opacity": [p], "p_not_normal": [1 - p]}, index=["a"])
    gated = gate.apply(boxes, images)["confidence"].to_numpy()
    order = np.argsort(confidences, kind="stable")
    assert (np.diff(gated[order]) >= 0).all()
    assert ((gated > 0) & (gated <= 1)).all()


def test_a_gate_that_knows_the_truth_is_chosen_and_its_gain_is_cross_fitted():
    found, truth, fold_of = world()
    gate, gain = choose_gate(found, truth, fold_of)
    assert gate.alpha < 1
    before, after = (best_score(table, truth) for table in (found.boxes, gate.apply(found.boxes, found.images)))
    assert after == pytest.approx(1), "all positives, nothing else"
    assert gain == pytest.approx(after - before, abs=0.05)
    assert gain > 0.3


def test_a_gate_of_noise_has_no_cross_fitted_gain():
    chosen = [choose_gate(*world(seed=seed, informative=False)) for seed in range(5)]
    assert np.mean([gain for _, gain in chosen]) < 0.02
    assert all(gate == Gate() for gate, gain in chosen if gain <= 0), "what does not carry over is not used"
    assert any(gain <= 0 for _, gain in chosen)


def test_with_a_single_fold_there_is_no_gain():
    found, truth, fold_of = world()
    gate, gain = choose_gate(found, truth, fold_of * 0)
    assert gate.alpha < 1
    assert gain is None
    assert describe_gate({"alpha": 0.5, "beta": 0.1, "gain": None}) == "gate alpha 0.5, beta 0.1, chosen out of fold"
    none = describe_gate({"alpha": 1.0, "beta": 0.0, "gain": -0.01})
    assert none == "no gate: none raises the out-of-fold mAP, cross-fitted gain -0.0100 mAP"


@pytest.mark.parametrize("text", ["none", "auto", "0.5,0.1", ".5,0", "1,0", "1.0,1"])
def test_valid_settings_of_gate(text):
    assert parse([f"gate={text}"]).gate == text


@pytest.mark.parametrize("text", ["0,0", "2,0", "0.5", "-1,0", "0.5,2", "yes", ""])
def test_invalid_settings_of_gate(text):
    with pytest.raises(UserError, match="gate="):
        parse([f"gate={text}"])
