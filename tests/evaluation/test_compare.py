"""Comparison of runs: the paired difference, settings that differ, and runs that are left out with a reason."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.commands import run_command
from helpers.finished_run import copy_workspace
from helpers.finished_run import settings as settings_of
from helpers.run_files import make_competition, make_predictions, make_run, words
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.evaluation.bootstrap import paired_interval
from rsna.evaluation.metric import image_scores, keep_confident, mean_average_precision
from rsna.evaluation.runs import as_made, as_shown, differing_settings, find_runs, read_settings, training_seconds


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


def test_the_difference_is_the_difference_of_the_two_scores(world):
    """It is mAP minus mAP, even though different images count for each run."""
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


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    """For runs that differ by a constant the difference is certain, however much the images vary."""
    rng = np.random.default_rng(0)
    first = pd.Series(rng.random(300), index=[f"i{k}" for k in range(300)])
    people = pd.Series([f"p{k}" for k in range(300)], index=first.index)
    difference, low, high = paired_interval(first + 0.1, first, people, 200, 0)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_people_are_resampled_not_images():
    """If all images of a person have the same score, the interval is as wide as for one image per person."""
    values = np.repeat(np.random.default_rng(1).random(10), 40)
    first = pd.Series(values, index=[f"i{k}" for k in range(400)])
    second = first * 0
    alone = pd.Series(first.index, index=first.index)
    shared = pd.Series(np.repeat([f"p{k}" for k in range(10)], 40), index=first.index)
    width = [np.diff(paired_interval(first, second, people, 400, 0)[1:])[0] for people in (alone, shared)]
    assert width[1] > 3 * width[0]


counted = st.dictionaries(st.integers(0, 9), st.integers(0, 4), max_size=10)


@settings(max_examples=50)
@given(counted, counted)
def test_a_run_without_a_counting_image_has_no_difference(first, second):
    people = pd.Series([f"p{k // 2}" for k in range(10)], index=[f"i{k}" for k in range(10)])
    scores = [pd.Series({f"i{k}": value / 4 for k, value in own.items()}, dtype=float) for own in (first, second)]
    result = paired_interval(*scores, people, 20, 0)
    if first and second:
        assert result[0] == pytest.approx(scores[0].mean() - scores[1].mean())
    else:
        assert np.isnan(result).all()


def test_runs_without_common_images_have_no_difference():
    none = pd.Series(dtype=float)
    assert np.isnan(paired_interval(none, none, pd.Series(dtype=object), 50, 0)).all()


def compare(root):
    """Run the command; returns what it prints."""
    done = run_command("compare", *words(root))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_printed_and_written(world):
    root, _, _ = world
    printed = compare(root)
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
    assert "difference to good" in printed
    assert f"{table.loc['good', 'mAP']:.4f} ± " in printed
    assert "weak: epochs=5" in printed
    assert "tta=" not in printed, "settings that are the same are not listed"
    assert str(root / "working/compare.csv") in printed


def test_settings_that_do_not_differ_are_not_named():
    found = differing_settings({"a": {"lr": 1, "size": 2}, "b": {"lr": 1, "size": 3, "clip": 5}})
    assert found == {"a": {"size": 2}, "b": {"size": 3}}


def test_a_run_that_is_not_current_is_left_out_with_the_reason(tmp_path):
    root = tmp_path / "<b>& two"
    _, labels = make_competition(root, 60)
    make_run(root, make_predictions(labels), "first")
    for name, harm in {
        "absent": lambda run: (run / "scores.json").unlink(),
        "old": lambda run: (run / "oof.csv").write_text((run / "oof.csv").read_text() + "x,,,,,\n"),
        "broken": lambda run: (run / "scores.json").write_text('{"mAP": 1}'),
        "retrained": lambda run: (run / "fold0/best.pt").write_bytes(b"1"),
        "unscored": lambda run: (run / "evaluate.json").unlink(),
    }.items():
        harm(make_run(root, make_predictions(labels), name).run_dir)
    (root / "working/notes").mkdir()
    printed = compare(root)
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("NOTE")}
    assert list(lines) == ["absent", "broken", "old", "retrained", "unscored"]
    assert re.search(r"scores\.json: no such file; run: \./run\.sh evaluate .*name=absent", lines["absent"])
    assert re.search(r"scores\.json: not as evaluate wrote it; run: \./run\.sh evaluate .*name=broken", lines["broken"])
    assert re.search(r"oof\.csv: not as ensemble wrote it|made from another oof\.csv", lines["old"])
    assert "best.pt" in lines["retrained"]
    assert "evaluate has not finished" in lines["unscored"]
    assert "notes" not in printed
    assert pd.read_csv(root / "working/compare.csv")["run"].tolist() == ["first"]
    assert np.isnan(training_seconds(root / "working/notes"))


def test_a_run_is_compared_with_its_own_settings_and_folder(tmp_path):
    """Whatever the current settings are, and even after the workspace was moved."""
    _, labels = make_competition(tmp_path / "here", 40)
    cfg = make_run(tmp_path / "here", make_predictions(labels), epochs=5, checkpoint="last")
    (tmp_path / "here").rename(tmp_path / "there")
    now = parse([*words(tmp_path / "there"), "epochs=7", "n_folds=5", "fold=3", "lr=0.5"])
    made = as_made(now)
    assert (made.epochs, made.checkpoint, made.fold_list, made.lr) == (5, "last", [0, 1], cfg.lr)
    runs, refused = find_runs(now)
    assert [run.name for run in runs] == ["first"]
    assert not refused


def test_settings_that_the_run_replaces_are_named(tmp_path, capsys):
    _, labels = make_competition(tmp_path, 40)
    cfg = make_run(tmp_path, make_predictions(labels), epochs=5)
    assert as_shown(parse([*words(tmp_path), "epochs=7", "jobs=2", "threshold=0.3"])) == replace(
        as_made(cfg), jobs=2, threshold="0.3"
    )
    assert capsys.readouterr().out == f"epochs=7 has no effect here: {cfg.name} was made with epochs=5\n"


def test_a_run_with_members_does_not_repeat_their_settings(finished, tmp_path):
    """Its manifest names the members, whose manifests hold their settings; their size is part of its size."""
    root = copy_workspace(finished, tmp_path / "workspace") or tmp_path / "workspace"
    for member in ("detector", "single_box"):
        shutil.copytree(root / "working" / "first", root / "working" / f"both_{member}")
        for name in ("ensemble", "evaluate"):
            (root / "working" / f"both_{member}" / f"{name}.json").unlink()
    for name in ("ensemble", "evaluate", "make_submission"):
        result = run_command(name, *settings_of(root, "name=both", "members=detector,single_box:0.25"))
        assert result.returncode == 0, result.stderr
    for name in ("report", "summary", "compare"):
        result = run_command(name, f"root={root}", "size=64", "name=both")
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
    table = pd.read_csv(root / "working" / "compare.csv").set_index("run")
    assert table["megabytes"]["both"] == pytest.approx(2 * table["megabytes"]["first"])


def test_settings_of_the_model_are_settings_of_the_run(tmp_path):
    _, labels = make_competition(tmp_path, 40)
    cfg = make_run(tmp_path, make_predictions(labels), model_settings={"dropout": 0.25})
    assert read_settings(cfg.run_dir)["dropout"] == 0.25
    assert as_made(parse(words(tmp_path))).model_settings == {"dropout": 0.25}


def test_broken_manifests_are_named(tmp_path):
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0/train.json").write_text("{")
    with pytest.raises(UserError, match=r"train\.json: not JSON"):
        read_settings(tmp_path)


def test_without_any_run_the_command_to_run_is_named(tmp_path):
    done = run_command("compare", f"root={tmp_path}")
    assert done.returncode == 1
    assert "no run with scores; run: ./run.sh evaluate" in done.stderr
    assert "Traceback" not in done.stderr
