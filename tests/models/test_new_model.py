"""A new model is one file: a toy model with two boxes per image, defined here, trains, predicts and submits."""

import os
from collections import Counter
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
from helpers.run_files import make_competition
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert

from rsna.core.artifacts import is_current
from rsna.core.command_line import parse
from rsna.core.config import setting
from rsna.core.errors import UserError
from rsna.core.stages import FREE_TO_USERS
from rsna.data.competition import SAMPLE_CSV
from rsna.evaluation.scores import evaluate_run
from rsna.inference.ensemble import fuse_run
from rsna.inference.predictor import predict_fold
from rsna.inference.submission import write_submission
from rsna.models.checkpoint import load_checkpoint
from rsna.models.protocol import DetectionModel
from rsna.models.registry import build_model, register, settings_of
from rsna.training.fold import train_fold

WORDS = ["size=64", "n_folds=2", "encoder=resnet18", "weights=none", "epochs=1", "name=toy", "model=two_boxes"]
SEEN = Counter()  # number of boxes -> number of images that the loss has seen


@dataclass(frozen=True)
class Settings:
    """The own settings of model=two_boxes."""

    channels: int = setting(8, "channels of the one convolution")


@register("two_boxes", Settings)
class TwoBoxes(DetectionModel):
    """Predicts the two largest boxes and their scores from the mean of a small feature map."""

    def __init__(self, encoder, size, num_classes, settings):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, settings.channels, 7, stride=8), nn.ReLU())
        self.head = nn.Linear(settings.channels, 10 + num_classes)

    def forward(self, images):
        features = self.encoder(images.float() / 255).mean((2, 3))
        numbers = self.head(features).float()
        return {
            "boxes": numbers[:, :8].reshape(-1, 2, 4).sigmoid(),
            "scores": numbers[:, 8:10],
            "logits": numbers[:, 10:],
        }

    def loss(self, outputs, targets):
        SEEN.update(targets["mask"].sum(1).tolist())
        # a batch may have no image with a second box
        pad = (0, 0, 0, max(0, 2 - targets["boxes"].shape[1]))
        boxes = nn.functional.pad(targets["boxes"], pad)[:, :2]
        mask = nn.functional.pad(targets["mask"], pad[2:])[:, :2].float()
        box = ((outputs["boxes"] - boxes).abs().mean(2) * mask).sum() / mask.sum().clamp(min=1)
        score = binary_cross_entropy_with_logits(outputs["scores"], mask)
        label = cross_entropy(outputs["logits"], targets["label"])
        return {"loss": box + score + label, "l1": box.detach(), "score": score.detach()}

    def decode(self, outputs):
        boxes = box_convert(outputs["boxes"], "cxcywh", "xyxy")
        return boxes, outputs["scores"].sigmoid(), outputs["logits"].softmax(1)


def add_test_images(root, n=6):
    """Add test images and a sample submission to the competition of make_competition."""
    cache = root / "working/png_64"
    index = pd.read_csv(cache / "index.csv")
    test = index.head(n).assign(split="test", patientId=[f"test-{k}" for k in range(n)])
    pd.concat([index, test]).to_csv(cache / "index.csv", index=False)
    (cache / "test").mkdir()
    for name in test["patientId"]:
        os.link(cache / "image.png", cache / "test" / f"{name}.png")
    test[["patientId"]].assign(PredictionString="").to_csv(root / "input" / SAMPLE_CSV, index=False)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    make_competition(root, n=60)
    add_test_images(root)
    return parse([f"root={root}", "device=cpu", *WORDS, "channels=4"], settings_of)


@pytest.fixture(scope="module")
def trained(cfg):
    """The config of a run with both folds trained."""
    for fold in cfg.fold_list:
        train_fold(cfg, fold)
    return cfg


def test_its_settings_are_its_own(cfg):
    assert cfg.model_settings == {"channels": 4}
    with pytest.raises(UserError, match="there is no setting 'channels'"):
        parse(["channels=4"], settings_of)


def test_it_trains(trained):
    """The parts of its loss are in the history, and its checkpoint fits a new network."""
    assert SEEN[1] > 0
    assert SEEN[2] > 0, "both boxes of an image reach the model"
    for fold in trained.fold_list:
        assert is_current(trained, "train", fold)
        history = pd.read_csv(trained.fold_dir(fold) / "history.csv")
        assert list(history)[:9] == [
            *("epoch", "phase", "lr", "train_loss", "valid_loss"),
            *("train_l1", "train_score", "valid_l1", "valid_score"),
        ]
        model = build_model(trained, weights="none")
        saved = load_checkpoint(trained.fold_dir(fold) / "best.pt", trained, fold, ignore=FREE_TO_USERS)
        model.load_state_dict(saved["model"])
        boxes, scores, classes = model.decode(model(torch.zeros(3, 1, 64, 64, dtype=torch.uint8)))
        assert (boxes.shape, scores.shape, classes.shape) == ((3, 2, 4), (3, 2), (3, 3))


def test_a_trained_fold_is_current_and_resumes(trained, capsys):
    train_fold(trained, 0)
    assert "fold 0: current, 1 epochs" in capsys.readouterr().out
    history = trained.fold_dir(0) / "history.csv"
    content = history.read_bytes()
    history.unlink()
    train_fold(trained, 0)
    assert "fold 0: complete, 1 epochs" in capsys.readouterr().out
    assert history.read_bytes() == content
    assert is_current(trained, "train", 0)


def test_it_predicts_and_submits_two_boxes_per_image(trained):
    """Nothing between the model and Kaggle's format assumes one box."""
    # only identical boxes are merged, so that both boxes of an image are kept
    cfg = replace(trained, max_boxes=2, wbf_iou=0.99, missing_weight=0.0, threshold="0.0001", bootstrap=10)
    for fold in cfg.fold_list:
        assert predict_fold(cfg, fold)
        views = pd.read_csv(cfg.fold_dir(fold) / "test.csv").groupby(["patientId", "view"]).size()
        assert (views == 2).all()
        assert list(pd.read_csv(cfg.fold_dir(fold) / "test_images.csv"))[2:] == [
            "p_normal",
            "p_not_normal",
            "p_opacity",
        ]
    assert fuse_run(cfg)
    assert pd.read_csv(cfg.run_dir / "oof.csv").groupby("patientId").size().eq(2).all()
    assert evaluate_run(cfg)
    submission = write_submission(cfg)
    assert submission.images == submission.images_with_box == 6
    rows = pd.read_csv(cfg.submission_csv)["PredictionString"].str.split()
    assert {len(row) for row in rows} == {10}, "confidence x y width height, twice"
    assert all(is_current(cfg, name) for name in ("ensemble", "evaluate", "make_submission"))
