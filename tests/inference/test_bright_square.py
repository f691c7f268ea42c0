"""A network that returns the picture's bright square, through the real stages: the square must come out again.

Whatever the cache's size and the test-time views, and for pictures that are not square: a view undone wrongly, half
a pixel lost at the border or an average of places would show here as a box beside its square.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.dicom_files import write_dicom
from torch import nn

import cache_images
import ensemble
import evaluate
import make_folds
import make_submission
import predict
from rsna.core.config import parse
from rsna.data.competition import (
    LABEL_COLUMNS,
    LABELS_CSV,
    SAMPLE_CSV,
    TEST_IMAGES,
    TRAIN_IMAGES,
    read_predictions,
    read_sample,
)
from rsna.data.submission_format import parse_submission
from rsna.inference.tta import parse_transforms

DARK, BRIGHT = 20, 220
# rows, cols; square x, y, width, height. On multiples of the cached pixel at size 64; none leaves the view at zoom 1.1
SQUARES = {
    "a": ((1024, 1024), (128, 256, 320, 224)),
    "b": ((1024, 1024), (640, 96, 256, 512)),
    "c": ((1024, 512), (32, 480, 160, 352)),
    "d": ((512, 1024), (576, 64, 384, 160)),
    "e": ((2048, 2048), (1024, 1024, 640, 512)),
}


class BrightSquare(nn.Module):
    """The edges follow from the light in the middle row and column, finer than a pixel; dark pictures have none."""

    def forward(self, images):
        return (images[:, 0].float() - DARK).clamp(min=0) / (BRIGHT - DARK)

    def decode(self, light):
        size = light.shape[-1]
        at = torch.arange(size) + 0.5
        edges = []
        for axis in (1, 2):
            profile = light.amax(dim=axis)
            width = profile.sum(dim=1)
            centre = (profile * at).sum(dim=1) / width.clamp(min=1e-6)
            edges.append((centre - width / 2, centre + width / 2))
        (left, right), (top, bottom) = edges
        return torch.stack([left, top, right, bottom], dim=1)[:, None] / size, light.amax(dim=(1, 2))[:, None]


def picture(shape, square=None):
    """(rows, cols) uint8: dark with one darker corner, so that it is of more than one grey; the square bright."""
    image = np.full(shape, DARK, np.uint8)
    image[: shape[0] // 4, : shape[1] // 4] = DARK // 2
    if square:
        x, y, width, height = square
        image[y : y + height, x : x + width] = BRIGHT
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Each square once to train on and once to test on, and a dark picture for each."""
    root = tmp_path_factory.mktemp("squares")
    rows, ids = [], []
    for split in (TRAIN_IMAGES, TEST_IMAGES):
        (root / "input" / split).mkdir(parents=True)
        for name, (shape, square) in SQUARES.items():
            write_dicom(root / "input" / split / f"{name}.dcm", picture(shape, square))
            write_dicom(root / "input" / split / f"dark_{name}.dcm", picture(shape))
    for name, (_, square) in SQUARES.items():
        rows += [(name, *square, 1), (f"dark_{name}", *[None] * 4, 0)]
        ids += [name, f"dark_{name}"]
    pd.DataFrame(rows, columns=LABEL_COLUMNS).to_csv(root / "input" / LABELS_CSV, index=False)
    sample = pd.DataFrame({"patientId": ids, "PredictionString": "0.5 0 0 100 100"})
    sample.to_csv(root / "input" / SAMPLE_CSV, index=False)
    return root


@pytest.fixture
def bright_network(monkeypatch):
    """Stands where the trained network stands; all else is as it is."""
    monkeypatch.setattr(predict, "check_finished", lambda *_: None)
    monkeypatch.setattr(predict, "load_checkpoint", lambda *_: {"model": {}})
    monkeypatch.setattr(predict, "build_model", lambda *_, **__: BrightSquare())


def assert_squares(table, limit):
    """limit: in pixels of the original, of each name."""
    boxes = table[table["confidence"] > 0.5].set_index("patientId")
    assert sorted(boxes.index) == sorted(SQUARES), "one box each, none where it is dark"
    for name, (_, square) in SQUARES.items():
        found = boxes.loc[name, ["x", "y", "width", "height"]].to_numpy(dtype=float)
        assert np.abs(found - square).max() <= limit[name], (name, found, square)


@pytest.mark.parametrize("views", ["tta=plain", "tta=plain,hflip", "tta=plain,hflip tta_scales=1.0,0.9,1.1"])
@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_the_square_comes_out_where_it_is(root, bright_network, size, views):
    cfg = parse([f"root={root}", f"size={size}", "n_folds=2", f"name=s{size}", "bootstrap=10", *views.split()])
    for stage in (make_folds, cache_images, predict, ensemble, evaluate, make_submission):
        stage.main(cfg)
    # half a pixel of the original; grey levels that a zoomed view interpolated tell an edge to a tenth of the cache's
    coarse = 0.1 / size if "scales" in views else 0
    limit = {name: max(0.5, coarse * max(shape)) for name, (shape, _) in SQUARES.items()}
    for name in ("oof", "test"):
        assert_squares(read_predictions(cfg.run_dir / f"{name}.csv"), limit)
    # written with one decimal
    assert_squares(parse_submission(cfg.submission_csv), {name: value + 0.1 for name, value in limit.items()})
    tables = predict.predict_images(cfg, BrightSquare(), read_sample(root / "input"), "test", "each view alone")
    assert len(tables) == len(parse_transforms(cfg.tta, cfg.tta_scales))
    for table in tables:
        assert_squares(table, limit)
