"""Montages: every box is drawn in the right place, with captions below, one row per kind of image."""

import cv2
import numpy as np
import pandas as pd
import pytest
from helpers.run_files import make_competition, make_predictions, make_run, words

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.inference.tiles import BLUE, CAPTION, GAP, NAME, ORANGE, TILE, draw_tile, stack_rows
from rsna.reporting.montage import (
    PER_ROW,
    choose_results,
    choose_submitted,
    results_montage,
    submission_montage,
    write_montage,
)


def test_all_boxes_are_drawn_in_the_right_place():
    image = np.zeros((512, 512), np.uint8)
    boxes = np.array([[20, 40, 100, 200], [300, 300, 512, 512]], dtype=float)
    tile = draw_tile(image, [(boxes, BLUE), (boxes[:0], ORANGE)], "0.91 0.40", "best")
    assert tile.shape == (TILE + CAPTION, TILE, 3)
    blue = (tile == BLUE).all(axis=2)
    for x, y in ((10, 20), (50, 100), (150, 150), (255, 255)):
        assert blue[y, x], "a corner"
    assert not blue[60, 30], "boxes are outlines"
    assert not (tile[:TILE] == ORANGE).all(axis=2).any()
    assert tile[TILE:].any(), "the caption is below the image"


def test_a_name_as_long_as_a_uuid_has_a_line_of_its_own():
    tile = draw_tile(np.zeros((64, 64), np.uint8), [], name="0004cfab-14fd-4e49-80ba-63a80b6bddd6")
    assert tile.shape == (TILE + CAPTION + NAME, TILE, 3)
    line = tile[TILE + CAPTION - 2 :]
    assert line[:, TILE * 4 // 5 : -4].any()
    assert not line[:, -4:].any(), "it ends before the edge"
    assert not tile[:TILE].any()


def test_rows_of_different_lengths_are_padded():
    tile = draw_tile(np.full((64, 64), 255, np.uint8), [])
    montage = stack_rows([[tile] * 3, [tile]])
    assert montage.shape == (2 * (TILE + CAPTION), 3 * TILE + 2 * GAP, 3)
    assert not montage[TILE + CAPTION :, TILE:].any()


def test_rows_of_results():
    truth = pd.DataFrame({"patientId": ["a", "a", "b", "c"], "x": 0.0, "y": 0.0, "width": 10.0, "height": 10.0})
    truth.loc[1, "x"] = 50.0
    kept = pd.DataFrame(
        [("a", 0.9, 0.0), ("a", 0.8, 50.0), ("b", 0.7, 4.0), ("d", 0.3, 0.0), ("e", 0.5, 0.0)],
        columns=["patientId", "confidence", "x"],
    ).assign(y=0.0, width=10.0, height=10.0)
    rows = choose_results(truth, kept, ["a", "b", "c", "d", "e", "f"], 0)
    random = rows.pop("random")
    assert rows == {"best": ["a"], "worst": ["b"], "missed": ["c"], "false alarm": ["e", "d"]}
    assert len(set(random)) == PER_ROW


def test_rows_of_a_submission_share_no_confident_image():
    table = pd.DataFrame({"patientId": list("abcdef"), "confidence": [0.9, 0.8, 0.7, 0.6, 0.5, np.nan]})
    rows = choose_submitted(table, 0)
    assert rows["most confident"] == ["a", "b", "c", "d"]
    assert rows["least confident"] == ["e"]
    assert len(rows["random"]) == PER_ROW


def test_montage_of_a_run_is_deterministic_and_asks_for_current_files(tmp_path):
    _, labels = make_competition(tmp_path, 60)
    cfg = make_run(tmp_path, make_predictions(labels))
    montage = results_montage(cfg)
    assert montage.shape[1] == PER_ROW * TILE + (PER_ROW - 1) * GAP
    assert (montage == results_montage(cfg)).all()
    assert (montage == BLUE).all(axis=2).any()
    assert (montage == ORANGE).all(axis=2).any()
    path = tmp_path / "montage.png"
    write_montage(montage, path)
    found = cv2.imread(str(path)).astype(int)
    assert np.abs(found - montage).mean() < 4, "fewer colours, the same picture"
    blue = (montage == BLUE).all(axis=2)
    assert np.abs(found[blue] - BLUE).max() < 16
    with pytest.raises(UserError, match="none of the test images is there; nothing to draw"):
        submission_montage(cfg)
    cfg.submission_csv.write_text("patientId,PredictionString\nx,\n")
    with pytest.raises(UserError, match=r"first\.csv: not as make_submission wrote it"):
        submission_montage(cfg)
    with pytest.raises(UserError, match="evaluate has not finished; run: "):
        results_montage(parse(words(tmp_path, "other")))
