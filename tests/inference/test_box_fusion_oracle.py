"""Box fusion against the package `ensemble-boxes`, by the method's author, where both are the same by definition.

That is with one label, conf_type="avg", missing_weight=0, and one box per model in a cluster.
By design they differ otherwise:
- several boxes of one model in a cluster: the package adds up the first n_models, here the model counts once, with
  its highest confidence;
- missing_weight > 0: the package has nothing like it;
- boxes of equal confidence: the package takes the last first, here the first (so the confidences here are distinct);
- a confidence of 0: the package divides by zero, here the box counts with equal weight.
The package keeps fused boxes in float32, so that they agree to seven digits, and where an overlap is within 1e-5 of the
limit the two may cluster differently.
"""

import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion

from rsna.core.config import FusionSettings
from rsna.inference.box_fusion import Votes, fuse_boxes

SITES = np.array([[0.05, 0.1], [0.55, 0.1], [0.05, 0.6], [0.55, 0.6]])  # no box of one overlaps with one of another


def random_case(rng):
    """Boxes (n, 4) xyxy in [0, 1], confidences, models: at most one box of each model at each of four sites."""
    n_models = int(rng.integers(1, 8))
    present = rng.random((n_models, len(SITES))) < rng.uniform(0.2, 1)
    model, site = np.nonzero(present)
    corner = SITES[site] + rng.uniform(0, 0.12, (len(site), 2))
    boxes = np.hstack([corner, corner + rng.uniform(0.1, 0.28, (len(site), 2))])
    confidence = rng.permutation(np.linspace(0.02, 0.98, len(site)))
    return boxes, confidence, model, n_models


def fuse_with_package(boxes, confidence, model, weights, iou):
    of_model = [np.flatnonzero(model == k) for k in range(len(weights))]
    fused, scores, _ = weighted_boxes_fusion(
        [boxes[rows].tolist() for rows in of_model],
        [confidence[rows].tolist() for rows in of_model],
        [[0] * len(rows) for rows in of_model],
        weights=weights,
        iou_thr=iou,
        conf_type="avg",
    )
    return fused, scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("iou", [0.3, 0.4, 0.55])
def test_equals_the_package_on_a_thousand_random_images(iou, weighted):
    rng = np.random.default_rng(int(100 * iou))
    clusters = merged = 0
    for _ in range(1000):
        boxes, confidence, model, n_models = random_case(rng)
        if not len(boxes):
            continue
        weights = rng.uniform(0.1, 3, n_models) if weighted else np.ones(n_models)
        votes = Votes(boxes, confidence, model, np.zeros(len(boxes), dtype=int))
        ours, scores, _ = fuse_boxes(votes, weights, FusionSettings(wbf_iou=iou, missing_weight=0))
        theirs, their_scores = fuse_with_package(boxes, confidence, model, weights, iou)
        assert len(ours) == len(theirs)
        # both by decreasing confidence, ties by position
        order = np.lexsort([*ours.T.round(4), -scores.round(6)])
        other = np.lexsort([*theirs.T.round(4), -their_scores.round(6)])
        np.testing.assert_allclose(scores[order], their_scores[other], atol=1e-6)
        np.testing.assert_allclose(ours[order], theirs[other], atol=1e-6)
        clusters += len(ours)
        merged += len(boxes) - len(ours)
    assert clusters > 1000
    assert merged > 1000


def test_a_model_with_two_boxes_in_a_cluster_counts_once_unlike_in_the_package():
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52]])
    confidence, model = np.array([0.8, 0.6]), np.array([0, 0])
    votes = Votes(boxes, confidence, model, np.zeros(2, dtype=int))
    _, ours, _ = fuse_boxes(votes, np.ones(2), FusionSettings(missing_weight=0))
    _, theirs = fuse_with_package(boxes, confidence, model, np.ones(2), 0.4)
    assert ours == pytest.approx([0.4])
    assert theirs == pytest.approx([0.7])
