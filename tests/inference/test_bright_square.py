"""The real commands with a network that returns an image's bright square: the square must be predicted exactly.

For all cache sizes and test-time views, and for images that are not square: a view mapped back wrongly, half a pixel
lost at the border, or an average of two places would give a box beside its square.
"""

import numpy as np
import pandas as pd
import pytest
from helpers.squares import SQUARES, BrightSquare, cached, make_competition

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.data.competition import read_predictions
from rsna.data.submission_format import parse_submission
from rsna.evaluation.scores import evaluate_run
from rsna.inference import predictor
from rsna.inference.ensemble import fuse_run, read_views
from rsna.inference.submission import write_submission
from rsna.inference.tta import parse_transforms


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares")
    make_competition(root)
    return root


@pytest.fixture
def bright_network(monkeypatch):
    """Replace the trained network; everything else is real."""
    monkeypatch.setattr(predictor, "load_model", lambda *_: BrightSquare())


def assert_squares(table, limit):
    """limit: the tolerance for each image, in pixels of the original."""
    boxes = table[table["confidence"] > 0.5].set_index("patientId")
    assert sorted(boxes.index) == sorted(SQUARES), "one box each, none where it is dark"
    for name, (_, square) in SQUARES.items():
        found = boxes.loc[name, ["x", "y", "width", "height"]].to_numpy(dtype=float)
        assert np.abs(found - square).max() <= limit[name], (name, found, square)


VIEWS = ["tta=plain", "tta=plain,hflip", "tta=plain,hflip tta_scales=1.0,0.9,1.1"]
# the smallest size with each kind of view, and a usual size with all of them
TELLING = {(64, VIEWS[0]), (64, VIEWS[1]), (64, VIEWS[2]), (512, VIEWS[2])}


@pytest.mark.parametrize(
    ("size", "views"),
    [
        pytest.param(size, views, marks=[] if (size, views) in TELLING else pytest.mark.slow)
        for size in (64, 128, 256, 512)
        for views in VIEWS
    ],
)
def test_the_predicted_square_is_where_the_true_one_is(root, bright_network, size, views):
    words = [f"root={root}", f"size={size}", "n_folds=2", f"name=s{size}", "bootstrap=10", *views.split()]
    cfg = cached(parse(words))
    for fold in (0, 1):
        record(cfg, "train", fold)  # as if the network had been trained
    assert all(predictor.predict_fold(cfg, fold) for fold in (0, 1))
    assert fuse_run(cfg)
    # with other views of the same size, both may be current
    evaluate_run(cfg)
    write_submission(cfg)
    # half a pixel of the original; in a scaled view, interpolated grey levels give an edge to 0.1 cached pixels
    coarse = 0.1 / size if "scales" in views else 0
    limit = {name: max(0.5, coarse * max(shape)) for name, (shape, _) in SQUARES.items()}
    for name in ("oof", "test"):
        assert_squares(read_predictions(cfg.run_dir / f"{name}.csv"), limit)
        images = pd.read_csv(cfg.run_dir / f"{name}_images.csv").set_index("patientId")
        assert sorted(images.index[images["p_opacity"] > 0.5]) == sorted(SQUARES)
    # written with one decimal
    assert_squares(parse_submission(cfg.submission_csv), {name: value + 0.1 for name, value in limit.items()})
    views_of_test = read_views(cfg.fold_dir(0) / "test.csv")
    assert list(views_of_test) == [transform.name for transform in parse_transforms(cfg.tta, cfg.tta_scales)]
    for table in views_of_test.values():
        assert_squares(table, limit)
    # the second time everything is current
    assert not any([predictor.predict_fold(cfg, 0), fuse_run(cfg), evaluate_run(cfg), write_submission(cfg)])
