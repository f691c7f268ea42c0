"""The gate: how class probabilities change confidences, and how it is chosen out of fold."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.run_files import make_competition, make_predictions, make_run
from hypothesis import given
from hypothesis import strategies as st

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.data.competition import read_folds, read_predictions, read_truth
from rsna.evaluation.metric import of_images
from rsna.evaluation.scores import evaluate_run
from rsna.evaluation.threshold import Gate, best_score, cross_fit
from rsna.inference.gate import GATES, Fused, choose_gate, describe_gate, parse_gate

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
    gate, gain, by_fold = choose_gate(found, truth, fold_of)
    assert set(by_fold) == set(fold_of)
    assert gate.alpha < 1
    before, after = (best_score(table, truth) for table in (found.boxes, gate.apply(found.boxes, found.images)))
    assert after == pytest.approx(1), "all positives, nothing else"
    assert gain == pytest.approx(after - before, abs=0.05)
    assert gain > 0.3


def test_a_gate_of_noise_has_no_cross_fitted_gain():
    chosen = [choose_gate(*world(seed=seed, informative=False)) for seed in range(5)]
    assert np.mean([gain for _, gain, _ in chosen]) < 0.02
    assert all((gate, by_fold) == (Gate(), {}) for gate, gain, by_fold in chosen if gain <= 0), (
        "what does not carry over is not used"
    )
    assert any(gain <= 0 for _, gain, _ in chosen)


def test_with_a_single_fold_there_is_no_gain():
    found, truth, fold_of = world()
    gate, gain, by_fold = choose_gate(found, truth, fold_of * 0)
    assert gate.alpha < 1
    assert (gain, by_fold) == (None, {})
    assert describe_gate({"alpha": 0.5, "beta": 0.1, "gain": None}) == "gate alpha 0.5, beta 0.1, chosen out of fold"


@pytest.mark.parametrize(
    ("gain", "line"),
    [
        (-0.01, "no gate: no cross-fitted gain (-0.0100 mAP)"),
        (0.01, "no gate: the out-of-fold mAP is highest without one"),
        (None, "no gate: the out-of-fold mAP is highest without one"),
    ],
)
def test_the_reason_for_no_gate(gain, line):
    assert describe_gate({"alpha": 1.0, "beta": 0.0, "gain": gain}) == line


@pytest.mark.parametrize("text", ["none", "auto", "0.5,0.1", ".5,0", "1,0", "1.0,1"])
def test_valid_settings_of_gate(text):
    assert parse([f"gate={text}"]).gate == text


@pytest.mark.parametrize("text", ["0,0", "2,0", "0.5", "-1,0", "0.5,2", "yes", ""])
def test_invalid_settings_of_gate(text):
    with pytest.raises(UserError, match="gate="):
        parse([f"gate={text}"])


def test_the_cross_fitted_score_of_a_gated_run_takes_each_gate_from_the_other_folds(tmp_path):
    """As evaluate reads it from disk; the gain that ensemble prints is the difference to no gate."""
    _, labels = make_competition(tmp_path, 60)
    cfg = make_run(tmp_path, make_predictions(labels, skill=0.5))
    images = pd.read_csv(cfg.run_dir / "oof.csv", dtype={"patientId": str})["patientId"].drop_duplicates()
    truth = read_truth(Path(cfg.input))
    p = np.clip(images.isin(truth["patientId"]) * 0.4 + np.random.default_rng(0).random(len(images)) * 0.6, 0.01, 1)
    oof = Fused(read_predictions(cfg.run_dir / "oof.csv"), pd.DataFrame({"p_opacity": p.to_numpy()}, index=images))
    folds = read_folds(cfg.folds_csv, "make_folds").set_index("patientId")["fold"][images]
    plain, _ = cross_fit(oof.boxes, of_images(truth, images), folds)
    gate, gain, by_fold = choose_gate(oof, of_images(truth, images), folds)
    assert gate.alpha < 1
    gated = gate.apply(oof.boxes, oof.images).assign(ungated=oof.boxes["confidence"])
    gated.to_csv(cfg.run_dir / "oof.csv", index=False)
    oof.images.rename_axis("patientId").reset_index().to_csv(cfg.run_dir / "oof_images.csv", index=False)
    chosen = {str(fold): [own.alpha, own.beta] for fold, own in by_fold.items()}
    record(cfg, "ensemble", gate={"alpha": gate.alpha, "beta": gate.beta, "gain": gain, "by_fold": chosen})
    assert evaluate_run(cfg)["cross_fitted_mAP"] == pytest.approx(plain.mean() + gain)
    manifest = json.loads((cfg.run_dir / "ensemble.json").read_text())
    del manifest["gate"]["by_fold"]
    (cfg.run_dir / "ensemble.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"ensemble\.json: 'gate' is missing or not valid; .*run: \./run\.sh ensemble"):
        evaluate_run(cfg)
