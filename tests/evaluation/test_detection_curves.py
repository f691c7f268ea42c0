"""AP50 against COCO's own code, FROC against hand-worked cases and its definition."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsna.data.boxes import box_iou, xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS
from rsna.evaluation.detection_curves import FROC_RATES, detection_scores

TRUE_COLUMNS = ["patientId", *BOX_COLUMNS]
# a coarse grid, on which ties and an IoU of exactly 0.5 are frequent
SIDES = st.sampled_from([10, 20, 40])
BOXES = st.tuples(st.sampled_from([0, 10, 20]), st.sampled_from([0, 10]), SIDES, SIDES)
CONFIDENT = st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), BOXES)
IMAGES = st.lists(st.tuples(st.lists(BOXES, max_size=4), st.lists(CONFIDENT, max_size=6)), min_size=1, max_size=6)


def tables(images):
    """Truth and predictions of images (true boxes, predictions), which are named 000, 001, ..."""
    truth = [(f"{k:03}", *box) for k, (boxes, _) in enumerate(images) for box in boxes]
    found = [(f"{k:03}", confidence, *box) for k, (_, rows) in enumerate(images) for confidence, box in rows]
    empty = [(f"{k:03}", *[np.nan] * 5) for k, (_, rows) in enumerate(images) if not rows]
    return pd.DataFrame(truth, columns=TRUE_COLUMNS), pd.DataFrame(found + empty, columns=PREDICTION_COLUMNS)


def coco_ap50(images):
    """AP50 as pycocotools computes it: all areas, 100 boxes per image."""
    truth = [(k, box) for k, (boxes, _) in enumerate(images) for box in boxes]
    found = [(k, confidence, box) for k, (_, rows) in enumerate(images) for confidence, box in rows]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": k} for k in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": n, "image_id": k, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for n, (k, box) in enumerate(truth, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results = [
            {"image_id": k, "category_id": 1, "bbox": list(box), "score": confidence} for k, confidence, box in found
        ]
        scoring = COCOeval(coco, coco.loadRes(results), "bbox")
        scoring.evaluate()
        scoring.accumulate()
    return float(scoring.eval["precision"][0, :, 0, 0, -1].mean())


def score(images):
    return detection_scores(*tables(images), len(images))


@settings(max_examples=150)
@given(IMAGES)
def test_ap50_equals_pycocotools(images):
    if not any(boxes for boxes, _ in images):
        assert np.isnan(score(images)["AP50"])
    elif not any(rows for _, rows in images):  # which pycocotools refuses
        assert score(images)["AP50"] == 0
    else:
        assert score(images)["AP50"] == pytest.approx(coco_ap50(images), abs=1e-12)


def test_ap50_equals_pycocotools_with_more_boxes_than_it_counts():
    """Of 150 boxes on one image, matches after the hundredth do not count."""
    rng = np.random.default_rng(0)
    truth = [(20 * k, 0, 15, 15) for k in range(40)]
    rows = [(0.9 - k / 1000, (20 * int(rng.integers(40)), int(rng.integers(8)), 15, 15)) for k in range(150)]
    images = [(truth, rows), ([(0, 0, 9, 9)], [(0.85, (0, 0, 9, 9))])]
    assert score(images)["AP50"] == pytest.approx(coco_ap50(images), abs=1e-12)
    assert score([(truth, rows[:100]), images[1]])["AP50"] == score(images)["AP50"]


def test_the_order_of_rows_does_not_matter():
    """Not even for boxes of equal confidence on different images."""
    truth, found = tables([([(0, 0, 9, 9)], [(0.5, (0, 0, 9, 9))]), ([], [(0.5, (0, 0, 9, 9))])])
    scores = detection_scores(truth, found, 2)
    assert detection_scores(truth, found.iloc[::-1], 2) == scores
    assert scores["AP50"] == 1.0  # COCO breaks the tie by the image's name, here in its favour


BOX, FAR = (0, 0, 10, 10), (500, 500, 10, 10)
FROC_BY_HAND = {
    # 1 of 2 found without a false positive, 2 of 2 with 1 false positive in 4 images
    "a miss is found at a lower threshold": (
        [([BOX], [(0.9, BOX)]), ([BOX], [(0.5, BOX)]), ([], [(0.7, BOX)]), ([], [])],
        [0.5, 1, 1, 1, 1, 1, 1],
    ),
    # one box per image, half of them wrong: no rate above 1/2 exists
    "a rate that is not reached has the highest sensitivity": (
        [([BOX], [(0.9, BOX)]), ([BOX], [(0.8, FAR)])],
        [0.5] * 7,
    ),
    # four false positives on one image come before the hit: 2 per image
    "false positives are per image over all images": (
        [([BOX], [(0.1, BOX)]), ([], [(0.9 - k / 10, FAR) for k in range(4)])],
        [0, 0, 0, 0, 1, 1, 1],
    ),
    # a second box on the same true box is a false positive
    "the same box twice": ([([BOX, FAR], [(0.9, BOX), (0.8, BOX), (0.7, FAR)])], [0.5, 0.5, 0.5, 1, 1, 1, 1]),
    # no threshold can separate the match from the false positive
    "equal confidences are kept together": ([([BOX], [(0.5, BOX), (0.5, FAR)])], [0, 0, 0, 1, 1, 1, 1]),
    "an IoU of exactly .5 is no hit": ([([BOX], [(0.9, (0, 0, 10, 5))])], [0] * 7),
    "nothing predicted": ([([BOX], [])], [0] * 7),
}


@pytest.mark.parametrize("case", FROC_BY_HAND)
def test_froc_by_hand(case):
    images, expected = FROC_BY_HAND[case]
    found = score(images)["FROC"]
    assert [found[rate] for rate in FROC_RATES] == expected
    assert found["mean"] == pytest.approx(np.mean(expected))


def test_an_iou_of_exactly_half_matches_for_coco_but_not_for_froc():
    images = [([BOX], [(0.9, (0, 0, 10, 5))])]
    assert (score(images)["AP50"], score(images)["FROC"]["mean"]) == (1.0, 0.0)


@settings(max_examples=100)
@given(IMAGES.filter(lambda images: any(boxes for boxes, _ in images)))
def test_froc_is_the_best_of_all_thresholds_that_allow_the_rate(images):
    n_truth = sum(len(boxes) for boxes, _ in images)
    points = [slow_point(images, threshold) for threshold in (2, 0.9, 0.5, 0.2, 0.1)]
    found = score(images)["FROC"]
    for name, rate in FROC_RATES.items():
        best = max(hits for hits, false in points if false <= rate * len(images))
        assert found[name] == best / n_truth


def slow_point(images, threshold):
    """Matches and false positives among boxes with at least this confidence, box by box."""
    hits = false = 0
    for boxes, rows in images:
        free = list(boxes)[::-1]  # the last of equal overlaps first, as in COCO
        for _, box in sorted((row for row in rows if row[0] >= threshold), key=lambda row: -row[0]):
            overlaps = [float(box_iou(corners(box), corners(other))) for other in free]
            if overlaps and max(overlaps) > 0.5:
                free.pop(int(np.argmax(overlaps)))
                hits += 1
            else:
                false += 1
    return hits, false


def corners(box):
    return xywh_to_xyxy(np.array(box, dtype=float))
