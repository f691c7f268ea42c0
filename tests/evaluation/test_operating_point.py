"""The operating point: which images it is chosen on, the smoothed curves, and the prior of the test images."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.run_files import make_competition, make_predictions, make_run, words
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna.core.artifacts import current_manifest, is_current, record
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.files import read_json
from rsna.data.competition import BOX_COLUMNS
from rsna.evaluation import operating_point
from rsna.evaluation.metric import keep_confident, mean_average_precision
from rsna.evaluation.operating_point import (
    Images,
    calibration_images,
    make_grid,
    measure,
    measure_part,
    read_ids,
    scales_to_try,
)
from rsna.evaluation.prior import count_bins, em_prior, estimate_prior, mean_score
from rsna.evaluation.runs import read_run
from rsna.evaluation.scores import evaluate_run
from rsna.evaluation.threshold import best_threshold, point_for_test, with_scaled_boxes
from rsna.inference.submission import choose_point, threshold_for_prior


def simulate(n, prior, seed=0):
    """One box per image with log-odds around 0.5 (positive) or -2, and the truth."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < prior
    ids = np.array([f"{seed}-{k}" for k in range(n)])
    odds = np.where(positive, 0.5, -2.0) + rng.normal(0, 1.2, n)
    truth = pd.DataFrame({"patientId": ids, "x": 300.0, "y": 300.0, "width": 200.0, "height": 200.0})
    boxes = truth.assign(confidence=1 / (1 + np.exp(-odds)), x=300 + rng.normal(0, 25, n))
    return Images(boxes, truth[positive].reset_index(drop=True), pd.Series(ids, index=ids))


@settings(max_examples=20)
@given(st.floats(0.08, 0.6), st.integers(0, 1000))
def test_em_recovers_the_prior_of_calibrated_probabilities(prior, seed):
    rng = np.random.default_rng(seed)
    score = np.where(rng.random(8000) < prior, 1.5, -1.5) + rng.normal(0, 1.5, 8000)
    odds = np.exp(2 * 1.5 * score / 1.5**2)  # the ratio of the two normal densities
    share = np.array(0.25)
    probability = odds * share / (odds * share + 1 - share)
    assert em_prior(probability, share, np.full(8000, 1 / 8000)) == pytest.approx(prior, abs=0.03)


@pytest.mark.parametrize("prior", [0.1, 0.25, 0.5])
def test_prior_is_estimated_from_the_confidences_of_the_folds(prior):
    known, test = simulate(4000, 0.25), simulate(3000, prior, seed=1)
    top = known.predictions.set_index("patientId")["confidence"]
    bins = count_bins(top, top.index.isin(known.truth["patientId"]))
    assert sum(bins["positives"]) + sum(bins["negatives"]) == 4000
    folds = pd.concat([test.predictions.assign(fold=k) for k in (0, 3)])
    found, low, high = estimate_prior(bins, folds, 100, 1)
    assert low < found < high
    assert found == pytest.approx(prior, abs=0.04)
    assert low - 0.02 < prior < high + 0.02
    assert estimate_prior(bins, folds, 100, 1) == [found, low, high], "one seed, one interval"


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
def test_curves_without_smoothing_are_the_metric(seed, level):
    """At the share of the images themselves mean_score is their mAP: weights of 1 change nothing."""
    images = simulate(40, 0.4, seed)
    if images.truth.empty:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_point, "BANDWIDTH", 0.0)
        surface = measure(images, make_grid(images.predictions), (0.8, 1.0))
    k = int(level * (len(surface.thresholds) - 1))
    for row, scale in enumerate((0.8, 1.0)):
        kept = keep_confident(with_scaled_boxes(images.predictions, scale), surface.thresholds[k])
        assert surface.scores[0, row, k] == pytest.approx(mean_average_precision(images.truth, kept))


def test_weighting_for_another_prior_equals_a_set_with_that_prior():
    """A set with each positive three times has the curve that mean_score computes for its prior."""
    images = simulate(300, 0.2)
    copies = [images]
    for k in (1, 2):
        own = images.predictions["patientId"].isin(images.truth["patientId"])
        tables = (images.predictions[own], images.truth)
        boxes, truth = (table.assign(patientId=table["patientId"] + f"+{k}") for table in tables)
        copies.append(Images(boxes, truth, pd.Series(boxes["patientId"].to_numpy(), index=boxes["patientId"])))
    tripled = Images(*(pd.concat([copy[k] for copy in copies], ignore_index=k < 2) for k in range(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_point, "BANDWIDTH", 0.0)
        grid = make_grid(images.predictions)
        one, three = (measure(found, grid, (1.0,)) for found in (images, tripled))
    weighted = mean_score(one.found, one.false_alarms, three.share)
    np.testing.assert_allclose(weighted, three.scores, rtol=1e-9)


def test_curves_of_a_part_lie_between_its_own_and_those_of_all():
    """Nearer to its own the more images it has; the fraction of positives is the part's own."""
    every = simulate(2000, 0.2)
    grid = make_grid(every.predictions)
    distances = []
    for n in (40, 400):
        ids = every.people.index[:n]
        part = Images(*(table[table["patientId"].isin(ids)] for table in every[:2]), every.people[ids])
        own, common = (measure(images, grid, (1.0,)) for images in (part, every))
        pulled = measure_part(part, every, grid, (1.0,))
        assert pulled.share == own.share
        for name in ("found", "false_alarms"):
            curves = np.stack([getattr(surface, name) for surface in (own, common)])
            assert (getattr(pulled, name) >= curves.min(axis=0) - 1e-12).all()
            assert (getattr(pulled, name) <= curves.max(axis=0) + 1e-12).all()
        gap = np.abs(own.found - common.found).sum()
        distances.append(np.abs(pulled.found - own.found).sum() / gap)
    assert distances[1] < distances[0] < 1


def test_test_like_images_are_the_last_by_first_appearance():
    """Ids that look like numbers or like nothing stay what they are."""
    ids = ["00012", "a", "b", "c", "d", "e", "f", "g", "nan", "1e5"]
    images = simulate(10, 0.5)
    names = dict(zip(images.people.index, ids, strict=True))
    tables = (table.assign(patientId=table["patientId"].map(names)) for table in images[:2])
    every = Images(*tables, pd.Series(ids, index=ids))
    every = every._replace(truth=every.predictions[every.predictions["patientId"].isin(["nan", "a"])])
    labelled = pd.Index(pd.Series([*ids, "a", "00012"]).unique())  # a second box does not change the order
    found, message = calibration_images(every, "test_like", labelled)
    assert sorted(found.predictions["patientId"]) == ["1e5", "nan"]
    assert message == "the last 2 images of stage_2_train_labels.csv"
    assert calibration_images(every, "auto", labelled)[0] is every, "not the challenge's own labels"


def test_ids_in_a_file_are_text(tmp_path):
    ids = pd.Index(["nan", "1e5", "00012"])
    for lines in ("nan\n1e5\n00012", "\ufeffpatientId\r\n nan\r\n1e5\r\n\r\n00012\r\n"):
        (tmp_path / "ids.csv").write_text(lines, encoding="utf-8")
        assert read_ids(tmp_path / "ids.csv", ids, ids).tolist() == ids.tolist()
    with pytest.raises(UserError, match="line 3: patientId 1e5 has no out-of-fold prediction"):
        read_ids(tmp_path / "ids.csv", ids, ids[[0, 2]])
    (tmp_path / "ids.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file with one patientId per line"):
        read_ids(tmp_path / "ids.csv", ids, ids)


def test_the_challenges_labels_choose_their_last_thousand():
    labelled = pd.Index([f"{k:05d}" for k in range(26_684)])
    images = simulate(26_684, 0.3)
    tables = (table.assign(patientId=table["patientId"].str[2:].str.zfill(5)) for table in images[:2])
    found, _ = calibration_images(Images(*tables, pd.Series(labelled, index=labelled)), "auto", labelled)
    assert found.people.tolist() == labelled[-1000:].tolist()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    _, labels = make_competition(folder, 80)
    make_run(folder, make_predictions(labels))
    return folder


def test_a_file_of_ids_is_one_of_the_inputs(root, tmp_path):
    ids = pd.read_csv(root / "input/stage_2_train_labels.csv", dtype={"patientId": str})["patientId"].unique()
    file = tmp_path / "ids.csv"
    file.write_text("patientId\n" + "\n".join(ids[:40]) + "\n")
    cfg = parse(words(root, "first", f"calibrate={file}"))
    point = evaluate_run(cfg)["operating_point"]
    assert (point["images"], point["positives"], point["chosen_on"]) == (40, 8, "the images of ids.csv")
    low, high = point["intervals"][0]
    assert low <= point["threshold"] <= high
    assert is_current(cfg, "evaluate")
    assert str(tmp_path) not in (cfg.run_dir / "evaluate.json").read_text()
    file.write_text("patientId\n" + "\n".join(ids[:41]) + "\n")
    assert not is_current(cfg, "evaluate")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["patientId", "{0}", "nobody"], r"ids\.csv, line 3: patientId nobody is not in stage_2_train_labels"),
        (["patientId", "{0}", "{1}"], r"calibrate=.*ids\.csv: of the images of ids\.csv 2 have .* and 1 an opacity"),
        (["{0}", "", "1e5"], r"ids\.csv, line 3: patientId 1e5 is not in"),
        (["patientId"], r"ids\.csv: of the images of ids\.csv 0 have"),
    ],
)
def test_ids_that_cannot_be_used_are_named(root, tmp_path, lines, message):
    ids = pd.read_csv(root / "input/stage_2_train_labels.csv", dtype={"patientId": str})["patientId"].unique()
    file = tmp_path / "ids.csv"
    file.write_text("\n".join(lines).format(*ids) + "\n")
    if message.endswith("1 an opacity"):
        file.write_text(f"patientId\n{ids[0]}\n{ids[5]}\n")
        message = message.replace("1 an", "2 an")
    with pytest.raises(UserError, match=message) as error:
        evaluate_run(parse(words(root, "first", f"calibrate={file}")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["calibrate=nowhere.csv", "box_scale=big", "box_scale=3", "prior=2", "prior=some"])
def test_invalid_settings_are_refused(word):
    with pytest.raises(UserError, match=word.split("=")[0]):
        parse([word])


def test_box_scale_auto_shrinks_boxes_that_are_too_large(root, tmp_path):
    _, labels = make_competition(tmp_path, 80)
    large = with_scaled_boxes(make_predictions(labels), 1 / 0.8)[["patientId", "confidence", *BOX_COLUMNS]]
    cfg = make_run(tmp_path, large, box_scale="auto", calibrate="test_like")
    scores = read_json(cfg.run_dir / "scores.json")
    assert scores["box_scale"] in (0.75, 0.8, 0.85)
    assert scales_to_try("auto", on_all=True) == (1.0,), "the boxes of all images are those of the training"
    kept = read_run(cfg).kept
    original = large.set_index("patientId").loc[kept["patientId"], "width"].to_numpy()
    np.testing.assert_allclose(kept["width"], original * scores["box_scale"])
    with pytest.raises(UserError, match=r"scores\.json: made with box_scale=auto, and now box_scale=1\.0; run: "):
        choose_point(replace(cfg, box_scale="1.0"), large)
    with pytest.raises(UserError, match=r"made with calibrate=test_like, and now calibrate=all; run: "):
        choose_point(replace(cfg, calibrate="all"), large)
    assert choose_point(replace(cfg, threshold="0.5", calibrate="auto"), large).box_scale == scores["box_scale"]
    assert choose_point(replace(cfg, threshold="0.5", box_scale="0.9"), large).box_scale == 0.9


def test_the_threshold_follows_the_prior(root):
    cfg = parse(words(root, "first"))
    evaluate_run(cfg)
    scores = read_json(cfg.run_dir / "scores.json")
    oof = pd.read_csv(cfg.run_dir / "oof.csv", dtype={"patientId": str}).assign(fold=0)
    rare, common = (threshold_for_prior(replace(cfg, prior=p), scores, oof)[0] for p in ("0.05", "0.6"))
    assert rare > common
    assert threshold_for_prior(replace(cfg, prior="none"), scores, oof) == (scores["threshold"], "")
    same, why = threshold_for_prior(cfg, scores, oof)
    assert same == scores["threshold"]
    assert "not corrected" in why
    positive = oof["patientId"].isin(read_positive(root))
    many = pd.concat([oof, *(oof[positive].assign(patientId=oof["patientId"] + str(k)) for k in range(8))])
    corrected, why = threshold_for_prior(cfg, scores, many)
    assert corrected < scores["threshold"]
    assert "The threshold is corrected from " in why
    assert point_for_test(many.drop(columns="fold"), many, corrected, 0.9).box_scale == 0.9


def read_positive(root):
    labels = pd.read_csv(root / "input/stage_2_train_labels.csv", dtype={"patientId": str})
    return labels.loc[labels["Target"] == 1, "patientId"]


def test_each_command_depends_on_the_settings_it_uses(root):
    cfg = parse(words(root, "first"))
    evaluate_run(cfg)
    record(cfg, "make_submission", threshold=0.4, threshold_from="", images=1, images_with_box=1)
    for name, own in {"evaluate": {"calibrate", "box_scale"}, "make_submission": {"box_scale", "prior"}}.items():
        assert is_current(cfg, name)
        for key, value in {"calibrate": "test_like", "box_scale": "0.9", "prior": "0.3", "shift": True}.items():
            assert is_current(replace(cfg, **{key: value}), name) == (key not in own), (name, key)
    assert "box_scale" not in current_manifest(cfg, "ensemble")["settings"]


def test_on_all_images_the_threshold_is_the_best_of_the_sweep(root):
    cfg = parse(words(root, "first"))
    evaluate_run(cfg)
    sweep = pd.read_csv(cfg.run_dir / "threshold.csv")
    scores = read_json(cfg.run_dir / "scores.json")
    assert scores["threshold"] == pytest.approx(best_threshold(sweep), abs=1e-12)
    assert scores["operating_point"]["intervals"] is None
