"""What predict writes and ensemble fuses, with a model that needs no training."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.squares import SQUARES, BrightSquare, cached, make_competition

from rsna.core.artifacts import is_current, manifest_path, record
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.files import read_json
from rsna.data.cache import INDEX_CSV
from rsna.data.competition import read_predictions
from rsna.inference import predictor
from rsna.inference.ensemble import fuse_run, mean_images, read_views
from rsna.inference.submission import choose_point
from rsna.inference.tta import TtaTransform, parse_transforms


class TwoBoxes(BrightSquare):
    """Predicts the bright square and, with less confidence, a box in an empty corner."""

    def decode(self, light):
        boxes, scores, probabilities = super().decode(light)
        corner = torch.tensor([0.0, 0.0, 0.06, 0.06]).expand_as(boxes)
        return torch.cat([boxes, corner], dim=1), torch.cat([scores, scores / 2], dim=1), probabilities


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_competition(root)
    cached(parse([f"root={root}", "size=64", "n_folds=2"]))
    return root


@pytest.fixture
def config(world, tmp_path, monkeypatch):
    """Configs of a workspace with this model, which counts how often it is loaded."""
    root = tmp_path / "copy"
    shutil.copytree(world, root)
    loaded = []
    monkeypatch.setattr(predictor, "load_model", lambda *_: loaded.append(1) or TwoBoxes())

    def config(*words):
        cfg = parse([f"root={root}", "size=64", "n_folds=2", "name=two", *words])
        for fold in (0, 1):
            if not manifest_path(cfg, "train", fold).is_file():
                record(cfg, "train", fold)  # as if the network had been trained
        return cfg

    config.loaded = loaded
    return config


def predict(cfg):
    return [predictor.predict_fold(cfg, fold) for fold in cfg.fold_list]


def refuse(cfg, split):
    """Mark the first bright image of a split as one that could not be decoded; returns its patientId."""
    path = cfg.cache_dir / INDEX_CSV
    index = pd.read_csv(path, dtype=str)
    row = index.index[(index["split"] == split) & index["patientId"].isin(SQUARES)][0]
    index.loc[row, ["status", "scale_x", "scale_y", "pad_x", "pad_y"]] = ["refused", None, None, None, None]
    index.to_csv(path, index=False)
    return index.loc[row, "patientId"]


def test_each_view_is_written_unfused_and_a_refused_image_has_empty_rows(config, capsys):
    cfg = config("tta_scales=1.0,0.9")
    name = refuse(cfg, "test")
    assert name == "a"
    assert predict(cfg) == [True, True]
    assert f"1 images could not be decoded and get no box, such as {name}" in capsys.readouterr().out
    boxes = pd.read_csv(cfg.fold_dir(0) / "test.csv", dtype={"patientId": str})
    images = pd.read_csv(cfg.fold_dir(0) / "test_images.csv", dtype={"patientId": str})
    assert boxes.columns.tolist() == ["patientId", "view", "confidence", "x", "y", "width", "height"]
    assert images.columns.tolist() == ["patientId", "view", "p_normal", "p_not_normal", "p_opacity"]
    views = ["plain", "plain_0.9", "hflip", "hflip_0.9"]
    assert boxes["view"].unique().tolist() == images["view"].unique().tolist() == views
    assert (images.groupby("view")["patientId"].nunique() == 2 * len(SQUARES)).all()
    for table in (boxes, images):
        own = table[table["patientId"] == name]
        assert own["view"].tolist() == views
        assert own.drop(columns=["patientId", "view"]).isna().all(axis=None)
    counts = boxes[(boxes["view"] == "plain") & (boxes["confidence"] > 0.4)].groupby("patientId").size().to_dict()
    # the corner is outside of c and d, which are not square
    assert counts == {"b": 2, "c": 1, "d": 1, "e": 2}


def test_changing_the_fusion_needs_no_forward_pass(config):
    predict(config())
    assert fuse_run(config())
    assert not fuse_run(config())
    for word in ("max_boxes=2", "missing_weight=0.1", "wbf_iou=0.6"):
        assert predict(config(word)) == [False, False]
        assert fuse_run(config(word))
    assert len(config.loaded) == 2


def test_max_boxes_limits_what_is_fused_from_models_of_several_boxes(config):
    predict(config())
    for count in (1, 2):
        cfg = config(f"max_boxes={count}")
        fuse_run(cfg)
        for table in ("oof", "oof_no_tta", "test"):
            boxes = read_predictions(cfg.run_dir / f"{table}.csv")
            # the corner boxes of the two views are on opposite sides, so each keeps half of its confidence
            assert boxes.groupby("patientId").size().max() == count
            assert boxes[boxes["confidence"] > 0.9]["patientId"].tolist() == [
                n for n in boxes["patientId"].unique() if n in SQUARES
            ]


def test_box_scale_is_applied_once_by_the_submission(config):
    predict(config())
    areas = []
    for scale in (1.0, 0.5):
        cfg = config(f"box_scale={scale}", "threshold=0.3")
        fuse_run(cfg)
        fused = read_predictions(cfg.run_dir / "test.csv")
        boxes = choose_point(cfg, fused).apply(fused).set_index("patientId").loc[sorted(SQUARES)]
        areas.append(boxes["width"] * boxes["height"])
    np.testing.assert_allclose(areas[1], areas[0] / 4)


def test_only_test_keeps_the_validation_tables_and_records_all(config):
    predict(config())
    cfg = config("only_test=true", "fold=0")
    before = read_json(manifest_path(cfg, "predict", 0))
    valid = (cfg.fold_dir(0) / "valid.csv").read_bytes()
    # as in Kaggle's inference kernel: other test images, and no training images
    index = pd.read_csv(cfg.cache_dir / INDEX_CSV, dtype=str)
    index[(index["split"] == "test") & (index.index > 0)].to_csv(cfg.cache_dir / INDEX_CSV, index=False)
    (cfg.fold_dir(0) / "test.csv").unlink()
    assert predict(cfg) == [True]
    assert (cfg.fold_dir(0) / "valid.csv").read_bytes() == valid
    after = read_json(manifest_path(cfg, "predict", 0))
    assert after["inputs"]["cached images, train"] == before["inputs"]["cached images, train"] != "absent"
    assert after["outputs"].keys() == before["outputs"].keys()
    assert is_current(config("fold=0"), "predict", 0)


@pytest.mark.parametrize(
    ("words", "edit", "reason"),
    [
        (["tta=plain"], None, r"of other settings \(tta: plain,hflip -> plain\)"),
        ([], "valid.csv", r"valid\.csv: missing, or not as predict wrote it"),
        ([], "valid_images.csv", r"valid_images\.csv: missing, or not as predict wrote it"),
        ([], "predict.json", r"predict\.json: no such file"),
    ],
)
def test_only_test_is_refused_without_current_validation_tables(config, words, edit, reason):
    predict(config())
    cfg = config("only_test=true", "fold=0", *words)
    if edit:
        (cfg.fold_dir(0) / edit).unlink()
    with pytest.raises(UserError, match=f"{reason}.*only_test=false"):
        predict(cfg)
    assert (cfg.fold_dir(0) / "test.csv").is_file()


def test_a_fold_that_is_missing_or_edited_is_an_error_that_names_the_command(config):
    predict(config())
    fuse_run(config())
    folder = config().fold_dir(1)
    table = folder / "valid.csv"
    table.write_text(table.read_text().replace("0.", "0.0", 1))
    with pytest.raises(UserError, match=r"valid\.csv: not as predict wrote it; run: \./run\.sh predict .*fold=1"):
        fuse_run(config())
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"no finished predictions of fold 1; run: \./run\.sh train .*fold=1"):
        fuse_run(config())
    assert fuse_run(config("fold=0"))


def test_probabilities_of_runs_with_two_and_three_classes_are_averaged_where_they_share_a_class():
    three = pd.DataFrame({"p_normal": [0.1], "p_not_normal": [0.3], "p_opacity": [0.6]}, index=["a"])
    two = pd.DataFrame({"p_negative": [0.8], "p_opacity": [0.2]}, index=["a"])
    assert mean_images([three, two]).to_dict() == {"p_opacity": {"a": pytest.approx(0.4)}}


def test_names_of_views():
    found = parse_transforms("plain,hflip", "1.0,0.9")
    assert [transform.name for transform in found] == ["plain", "plain_0.9", "hflip", "hflip_0.9"]
    assert found[0] == TtaTransform()


@pytest.mark.parametrize("transform", parse_transforms("plain,hflip", "1.0,0.9,1.2"), ids=lambda t: t.name)
def test_inverse_maps_boxes_back_to_the_image(transform):
    """Corners of a bright box in the view are mapped back to those in the image; the flip is its own inverse."""
    image = torch.zeros(1, 1, 120, 120, dtype=torch.uint8)
    image[..., 36:72, 24:60] = 255
    rows, cols = (torch.nonzero(transform.forward(image)[0, 0].amax(dim=d) > 127)[:, 0] for d in (1, 0))
    box = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]) / 120
    np.testing.assert_allclose(transform.inverse(box), np.array([24, 36, 60, 72]) / 120, atol=0.7 / 120)


def test_a_view_table_is_read_by_view_in_order(tmp_path):
    path = tmp_path / "valid.csv"
    path.write_text("patientId,view,confidence,x,y,width,height\n00012,plain,0.5,1,2,3,4\n00012,hflip,,,,,\n")
    views = read_views(path)
    assert list(views) == ["plain", "hflip"]
    assert views["hflip"]["patientId"].tolist() == ["00012"]
    path.write_text("patientId,view,confidence,x,y,width,height\na,plain,2,1,2,3,4\n")
    with pytest.raises(UserError, match="from 0 to 1"):
        read_views(path)
