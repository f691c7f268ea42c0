"""weights=<run>/fold<k>/best.pt: a checkpoint that was trained on people of the validation fold is refused."""

import re

import pandas as pd
import pytest
import torch
from helpers.run_files import make_competition

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.registry import settings_of
from rsna.training.fold import train_fold

WORDS = ["size=64", "n_folds=2", "encoder=resnet18", "epochs=1", "model=classifier", "device=cpu", "fold=0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A workspace in which fold 0 is trained, and its checkpoint."""
    root = tmp_path_factory.mktemp("first")
    make_competition(root, n=40)
    cfg = parse([f"root={root}", "weights=none", *WORDS], settings_of)
    train_fold(cfg, 0)
    return cfg, cfg.fold_dir(0) / "best.pt"


def second(tmp_path, weights, rename):
    """The same images in another workspace, with people renamed by `rename`; weights: the initial weights."""
    make_competition(tmp_path, n=40, edit=lambda folds: folds.assign(group=folds["group"].map(rename)))
    return parse([f"root={tmp_path}", f"weights={weights}", *WORDS], settings_of)


def test_a_checkpoint_knows_its_people(first):
    cfg, path = first
    folds = pd.read_csv(cfg.folds_csv, dtype=str)
    trained_on = set(folds.loc[folds["fold"] != "0", "group"])
    assert set(torch.load(path, weights_only=True)["people"]) == trained_on


def test_the_encoder_starts_from_the_checkpoint_and_people_add_up(first, tmp_path, capsys):
    _, path = first
    cfg = second(tmp_path, path, lambda group: f"other-{group}")
    train_fold(cfg, 0)
    assert re.search(r"IoU -  mAP -\n.*best epoch 1 \(loss \d", capsys.readouterr().out), "it has no score of boxes"
    people = set(torch.load(cfg.fold_dir(0) / "best.pt", weights_only=True)["people"])
    assert people > set(torch.load(path, weights_only=True)["people"])
    assert any(name.startswith("other-") for name in people)


def test_people_of_the_validation_fold_are_refused(first, tmp_path):
    cfg, path = first
    held_out = pd.read_csv(cfg.folds_csv, dtype=str).query("fold == '0'")["group"].iloc[0]
    trained_on = torch.load(path, weights_only=True)["people"][0]
    cfg = second(tmp_path, path, lambda group: trained_on if group == held_out else f"other-{group}")
    with pytest.raises(
        UserError, match=f"was trained on 1 people .* such as '{trained_on}': the scores would be too high"
    ):
        train_fold(cfg, 0)
    assert not (cfg.fold_dir(0) / "last.pt").exists()


def test_a_broken_checkpoint_is_one_line(first, tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(first[1].read_bytes()[:3000])
    with pytest.raises(UserError, match=r"broken\.pt: cannot be read as plain tensors"):
        train_fold(second(tmp_path, broken, str), 0)
