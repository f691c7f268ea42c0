"""Checkpoints: refused if made with other settings, never run as code, the same bytes for the same content."""

import os

import pytest
import torch

from rsna.core.artifacts import current_manifest
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.backbone import make_encoder
from rsna.models.checkpoint import load_checkpoint, save_checkpoint


class Hostile:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    torch.save({"model": Hostile(str(tmp_path / "owned"))}, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match="plain tensors"):
        make_encoder("resnet18", str(tmp_path / "hostile.pt"))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "hostile.pt", parse([f"root={tmp_path}"]), 0)
    assert not (tmp_path / "owned").exists()


def config(root, *words):
    return parse([f"root={root}", "weights=none", *words])


def test_a_checkpoint_of_other_settings_names_them(tmp_path):
    path, trained = tmp_path / "last.pt", config(tmp_path, "size=512", "lr=0.1")
    save_checkpoint({"manifest": current_manifest(trained, "train", 1), "fold": 1}, path)
    assert load_checkpoint(path, trained, 1)["fold"] == 1
    with pytest.raises(UserError, match="size: 512 -> 64"):
        load_checkpoint(path, config(tmp_path, "size=64", "lr=0.1"), 1)
    with pytest.raises(UserError, match="fold: 1 -> 0"):
        load_checkpoint(path, trained, 0)
    other = config(tmp_path, "size=512", "lr=0.2")
    with pytest.raises(UserError, match=r"lr: 0\.1 -> 0\.2"):
        load_checkpoint(path, other, 1)
    assert load_checkpoint(path, other, 1, ignore=["lr"])["fold"] == 1


def test_a_checkpoint_of_other_folds_names_them(tmp_path):
    cfg = config(tmp_path)
    cfg.folds_csv.parent.mkdir()
    cfg.folds_csv.write_text("one")
    save_checkpoint({"manifest": current_manifest(cfg, "train", 0), "fold": 0}, tmp_path / "last.pt")
    cfg.folds_csv.write_text("another")
    with pytest.raises(UserError, match=r"folds/folds\.csv: \w+ -> \w+"):
        load_checkpoint(tmp_path / "last.pt", cfg, 0)


def test_a_checkpoint_of_an_earlier_version_names_the_command(tmp_path):
    save_checkpoint({"made_from": {}, "fold": 0}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"not a checkpoint of this version .*run: \./run\.sh train"):
        load_checkpoint(tmp_path / "last.pt", config(tmp_path), 0)


def test_a_checkpoint_has_the_same_bytes_whether_its_run_was_stopped_or_not(tmp_path):
    """Rows read from a file share no strings and tuples with those of this process."""
    rows = [{"epoch": epoch, "phase": "".join(["a", "ll"])} for epoch in (1, 2)]
    groups = [{"betas": (0.9, 0.99), "phase": "all"}] * 2
    cfg = config(tmp_path)
    head = {"manifest": current_manifest(cfg, "train", 0), "fold": 0}
    save_checkpoint({**head, "history": rows[:1], "groups": groups}, tmp_path / "half.pt")
    half = load_checkpoint(tmp_path / "half.pt", cfg, 0)
    save_checkpoint({**head, "history": rows, "groups": groups}, tmp_path / "straight.pt")
    half["history"].append(rows[1])
    save_checkpoint(half, tmp_path / "stopped.pt")
    assert (tmp_path / "straight.pt").read_bytes() == (tmp_path / "stopped.pt").read_bytes()
