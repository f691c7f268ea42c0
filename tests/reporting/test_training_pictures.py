"""Curves over the epochs, and the comparison with the fast.ai post's scores."""

import pandas as pd
import pytest

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.reporting.training_pictures import compare_with_post, draw_histories, read_histories

EPOCHS = {"epoch": [1, 2], "phase": "all", "lr": 0.1, "train_loss": [2.0, 1.0], "valid_loss": [2.0, 1.5]}
EPOCHS |= {"accuracy": 0.75, "AUC": 0.6, "L1": None, "L1_post": None, "IoU": None, "mAP": None}


def write_history(root, name, **scores):
    folder = root / "working" / name / "fold0"
    folder.mkdir(parents=True)
    pd.DataFrame(EPOCHS | scores).to_csv(folder / "history.csv", index=False)


def test_a_model_without_boxes_has_dashes(tmp_path):
    write_history(tmp_path, "best_classifier")
    histories = read_histories(parse([f"root={tmp_path}", "name=best_classifier", "fold=0"]))
    text = compare_with_post(histories, all_negative=0.7)
    assert "accuracy 0.7500" in text
    assert "L1 - with the whole image" in text
    assert "L1 - and IoU - on positives, AUC 0.6000, mAP -" in text
    draw_histories(histories, "run best_classifier", tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_with_boxes_that_scores_0_shows_0(tmp_path):
    write_history(tmp_path, "best_detector", L1=50.0, L1_post=60.0, IoU=0.1, mAP=0.0)
    histories = read_histories(parse([f"root={tmp_path}", "name=best_detector", "fold=0"]))
    assert "L1 50.0 and IoU 0.1000 on positives, AUC 0.6000, mAP 0.0000" in compare_with_post(histories, 0.7)


def test_a_missing_history_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"history\.csv: no such file; run: \./run\.sh train .*name=none"):
        read_histories(parse([f"root={tmp_path}", "name=none", "fold=0"]))
