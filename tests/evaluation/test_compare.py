"""Runs side by side: the paired difference, what differs in settings, and what is left out with a reason."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.run_files import make_competition, make_predictions, make_run, words
from hypothesis import given, settings
from hypothesis import strategies as st

import compare
from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.evaluation.bootstrap import paired_interval, ratio_difference
from rsna.evaluation.metric import image_scores, keep_confident, mean_average_precision
from rsna.evaluation.runs import (
    differing_settings,
    read_settings,
    training_seconds,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three runs on one competition: a good one, a weak one, and the good one on half of the images only."""
    root = tmp_path_factory.mktemp("compared runs")
    _, labels = make_competition(root, 200)
    good = make_predictions(labels, 1, skill=1.0)
    make_run(root, good, "good", lr=0.01, tta="plain")
    make_run(root, make_predictions(labels, 2, skill=0.1), "weak", epochs=5, tta="plain")
    make_run(root, good[good["patientId"].isin(labels["patientId"].unique()[:100])], "half", tta="plain")
    return root, labels, good


def boxes_of(labels):
    return labels[labels["Target"] == 1].drop(columns="Target")


def test_the_difference_is_that_of_the_two_scores(world):
    """Without a draw: mAP of one minus mAP of the other, though other images count for each."""
    _, labels, good = world
    truth = boxes_of(labels)
    kept = [keep_confident(table, 0.6) for table in (good, make_predictions(labels, 2, skill=0.1))]
    scores = [image_scores(truth, table).mean(axis=1) for table in kept]
    assert len(scores[0]) != len(scores[1])
    people = pd.Series([f"p{k % 70}" for k in range(200)], index=labels["patientId"].unique())
    difference, low, high = paired_interval(*scores, people, 200, 1)
    assert difference == pytest.approx(np.subtract(*(mean_average_precision(truth, table) for table in kept)))
    assert low < difference < high
    again = paired_interval(*scores, people.sample(frac=1, random_state=1), 200, 1)
    assert again == (difference, low, high), "the order of the images changes nothing"
    turned = paired_interval(scores[1], scores[0], people, 200, 1)
    assert turned == pytest.approx((-difference, -high, -low))


def test_a_paired_interval_is_narrower_than_two_apart():
    """Two runs that differ by a constant: the difference is sure, however much the images vary."""
    rng = np.random.default_rng(0)
    first = pd.Series(rng.random(300), index=[f"i{k}" for k in range(300)])
    people = pd.Series([f"p{k}" for k in range(300)], index=first.index)
    difference, low, high = paired_interval(first + 0.1, first, people, 200, 0)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_people_are_resampled_not_images():
    """All images of a person say the same: the interval is as wide as the few people make it."""
    values = np.repeat(np.random.default_rng(1).random(10), 40)
    first = pd.Series(values, index=[f"i{k}" for k in range(400)])
    second = first * 0
    alone = pd.Series(first.index, index=first.index)
    shared = pd.Series(np.repeat([f"p{k}" for k in range(10)], 40), index=first.index)
    width = [np.diff(paired_interval(first, second, people, 400, 0)[1:])[0] for people in (alone, shared)]
    assert width[1] > 3 * width[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=1, max_size=10))
def test_a_run_without_a_counting_image_has_no_difference(rows):
    result = ratio_difference(np.array(rows, dtype=float))
    for (a, n, b, m), value in zip(rows, result, strict=True):
        assert np.isnan(value) if 0 in (n, m) else value == pytest.approx(a / n - b / m)


def test_nothing_in_common_is_no_number():
    none = pd.Series(dtype=float)
    assert np.isnan(paired_interval(none, none, pd.Series(dtype=object), 50, 0)).all()


def test_what_is_printed_and_written(world, capsys):
    root, _, _ = world
    compare.main(parse(words(root)))
    said = capsys.readouterr().out
    table = pd.read_csv(root / "working/compare.csv").set_index("run")
    assert table.index.tolist() == ["good", "weak", "half"], "the best of those with the most images, then the rest"
    assert np.isnan(table.loc["good", "difference"])
    assert table.loc["weak", "high"] < 0, "clearly worse"
    assert table.loc["weak", "difference"] == pytest.approx(table.loc["weak", "mAP"] - table.loc["good", "mAP"])
    assert table.loc["half", "shared images"] == 100
    assert table.loc["good", "seconds"] == 2 * 3 * 2.5
    assert table.loc["good", "megabytes"] == 2
    assert table.loc["good", "settings"] == "epochs=3 lr=0.01"
    assert table.loc["weak", "settings"] == "epochs=5 lr=0.001"
    assert "difference to good" in said
    assert f"{table.loc['good', 'mAP']:.4f} ± " in said
    assert "weak: epochs=5" in said
    assert "tta=" not in said, "what all share is not said"
    assert str(root / "working/compare.csv") in said


def test_settings_that_are_the_same_are_not_named():
    found = differing_settings({"a": {"lr": 1, "size": 2}, "b": {"lr": 1, "size": 3, "clip": 5}})
    assert found == {"a": {"size": 2}, "b": {"size": 3}}


def test_a_run_that_is_not_whole_is_left_out_with_its_reason(world, tmp_path, capsys):
    root = tmp_path / "<b>& two"
    _, labels = make_competition(root, 60)
    make_run(root, make_predictions(labels), "first")
    for name, harm in {
        "absent": lambda run: (run / "scores.json").unlink(),
        "old": lambda run: (run / "oof.csv").write_text((run / "oof.csv").read_text() + "x,,,,,\n"),
        "broken": lambda run: (run / "scores.json").write_text('{"oof": "x", "mAP": 1}'),
    }.items():
        harm(make_run(root, make_predictions(labels), name))
    (root / "working/notes").mkdir()
    compare.main(parse(words(root)))
    said = capsys.readouterr().out
    assert "absent is left out" in said
    assert "scores.json is of other predictions; run: ./run.sh evaluate name=old" in said
    assert "broken is left out" in said
    assert "is missing or makes no sense; delete it and run: ./run.sh evaluate name=broken" in said
    assert "notes" not in said
    assert pd.read_csv(root / "working/compare.csv")["run"].tolist() == ["first"]
    assert np.isnan(training_seconds(root / "working/notes"))


def test_broken_settings_are_named(tmp_path):
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0/config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not a settings file"):
        read_settings(tmp_path)


def test_without_any_run_the_command_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "src/compare.py"), f"root={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no run with scores; run: ./run.sh evaluate" in done.stderr
    assert "Traceback" not in done.stderr
