"""Samples: the boxes of each image, from the labels to the tensors of a sample."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna.core.errors import UserError
from rsna.data.augment import Augmentation
from rsna.data.dataset import ImageDataset, Samples, check_inside, make_samples
from rsna.data.letterbox import write_png


def test_samples_are_joined_by_id():
    index = pd.DataFrame(
        {
            "patientId": ["b", "a"],
            "rows": 10,
            "cols": 20,
            "scale_x": 2.0,
            "scale_y": 2.0,
            "pad_x": 0,
            "pad_y": 10,
            "png_hash": "",
        }
    )
    truth = pd.DataFrame([("b", 1, 1, 2, 2), ("b", 0, 0, 4, 4)], columns=["patientId", "x", "y", "width", "height"])
    samples = make_samples(pd.Series(["a", "b"]), index, Path("c"), truth, [0, 2])
    assert samples.boxes_xyxy[0].shape == (0, 4)
    assert samples.boxes_xyxy[1].tolist() == [[0, 10, 8, 18], [2, 12, 6, 16]]
    with pytest.raises(UserError, match=r"1 images are not in it, first \.\./z: is their DICOM in input"):
        make_samples(pd.Series(["a", "../z"]), index, Path("c"), truth)


@pytest.mark.parametrize(
    ("right", "bottom", "leaves"), [(20, 10, False), (21, 11, False), (22, 10, True), (5, 12, True)]
)
def test_a_box_that_ends_beyond_its_image_is_named(right, bottom, leaves):
    """A box may end one pixel outside, as if pixels were counted from 1, but not further."""
    images = pd.DataFrame({"patientId": ["a", "b"], "rows": [1000, 10], "cols": [1000, 20]})
    truth = pd.DataFrame([("b", 1, 1, right - 1, bottom - 1)], columns=["patientId", "x", "y", "width", "height"])
    with pytest.raises(UserError, match=r"patientId b: the box ends at .*20 x 10") if leaves else nullcontext():
        check_inside(truth, images)


def test_boxes_are_sorted_by_decreasing_area_and_ties_keep_their_order():
    index = pd.DataFrame(
        {"patientId": list("abc"), "rows": 100, "cols": 100, "scale_x": 1.0, "scale_y": 1.0, "png_hash": ""}
    )
    rows = [("c", 0, 0, 10, 30), ("a", 5, 5, 10, 10), ("c", 50, 0, 20, 20), ("c", 9, 9, 30, 10), ("x", 0, 0, 50, 50)]
    truth = pd.DataFrame(rows, columns=["patientId", "x", "y", "width", "height"])
    samples = make_samples(pd.Series(list("abc")), index.assign(pad_x=0, pad_y=0), Path("c"), truth)
    assert [len(boxes) for boxes in samples.boxes_xyxy] == [1, 0, 3]
    assert samples.boxes_xyxy[2].tolist() == [[50, 0, 70, 20], [0, 0, 10, 30], [9, 9, 39, 19]]


def sample_with(tmp_path, boxes_xyxy, augmentation=None):
    write_png(np.full((64, 64), 90, np.uint8), tmp_path / "a.png")
    geometry, shapes = np.ones((1, 4)), np.full((1, 2), 64)
    samples = Samples(["a"], [tmp_path / "a.png"], [np.array(boxes_xyxy, float)], np.array([2]), geometry, shapes)
    return ImageDataset(samples, augmentation, (1,))


def test_a_sample_has_all_its_boxes(tmp_path):
    sample = sample_with(tmp_path, [[0, 0, 32, 16], [40, 40, 48, 64]])[0]
    assert sample["image"].shape == (1, 64, 64)
    assert sample["boxes"].tolist() == [[0.25, 0.125, 0.5, 0.25], [0.6875, 0.8125, 0.125, 0.375]]
    assert (sample["label"], sample["row"]) == (2, 0)
    assert sample_with(tmp_path, np.zeros((0, 4)))[0]["boxes"].shape == (0, 4)


def test_augmentation_keeps_the_order_of_boxes_and_empties_those_outside(tmp_path):
    """The image is shifted by up to half its side, so that some of the boxes in its corners leave it."""
    corners = [[x, y, x + 8, y + 8] for y in (0, 56) for x in (0, 56)]
    augmentation = Augmentation(flip=0.0, rotate=0.0, translate=0.5, scale=0.0, brightness_contrast=0.0)
    dataset = sample_with(tmp_path, corners, augmentation)
    outside = 0
    for epoch in range(20):
        boxes = dataset[epoch, 0]["boxes"].numpy()
        assert boxes.shape == (4, 4)
        kept = (boxes[:, 2:] > 0).all(axis=1)
        outside += int((~kept).sum())
        # left before right in each row
        assert (boxes[[0, 2], 0] < boxes[[1, 3], 0]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, :2] <= 1).all()
    assert outside > 20
