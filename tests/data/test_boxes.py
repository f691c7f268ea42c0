"""Geometry of boxes: they must be right after flips, rotations and resizing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna.data.augment import Augmentation, warp
from rsna.data.boxes import (
    affine_boxes,
    box_area,
    box_iou,
    clip_boxes,
    cxcywh_to_xyxy,
    hflip_boxes,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

side = st.floats(0.5, 500, allow_nan=False)
corner = st.floats(-200, 1000, allow_nan=False)
boxes = st.tuples(corner, corner, side, side).map(lambda b: xywh_to_xyxy(np.array(b, dtype=float)))


@given(boxes)
def test_conversions_are_inverse_to_each_other(box):
    assert xywh_to_xyxy(xyxy_to_xywh(box)) == pytest.approx(box)
    assert cxcywh_to_xyxy(xyxy_to_cxcywh(box)) == pytest.approx(box)


@given(boxes)
def test_flip_twice_is_the_identity_and_keeps_size(box):
    flipped = hflip_boxes(box, 1024)
    assert hflip_boxes(flipped, 1024) == pytest.approx(box)
    assert box_area(flipped) == pytest.approx(box_area(box))
    assert xyxy_to_cxcywh(flipped)[0] == pytest.approx(1024 - xyxy_to_cxcywh(box)[0])


@given(boxes, boxes)
def test_iou_is_symmetric_and_bounded(first, second):
    assert 0 <= box_iou(first, second) <= 1
    assert box_iou(first, second) == pytest.approx(box_iou(second, first))
    assert box_iou(first, first) == pytest.approx(1)


def test_iou_by_hand():
    assert box_iou(np.array([0.0, 0, 10, 10]), np.array([5.0, 0, 15, 10])) == pytest.approx(50 / 150)
    assert box_iou(np.array([0.0, 0, 10, 10]), np.array([10.0, 0, 20, 10])) == 0
    assert box_iou(np.zeros(4), np.zeros(4)) == 0


@given(boxes)
def test_clip_stays_inside(box):
    clipped = clip_boxes(box, 640, 480)
    assert (clipped >= 0).all()
    assert (clipped <= [640, 480, 640, 480]).all()


@given(boxes, st.floats(-30, 30))
def test_a_rotated_box_is_tight_and_centred(box, degrees):
    """The tight box of the rotated ellipse lies within the box of the rotated corners and has the same centre."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 3.0], [np.sin(angle), np.cos(angle), -2.0]])
    turned = affine_boxes(box, matrix)
    corners = np.array([[box[i], box[j]] for i in (0, 2) for j in (1, 3)]) @ matrix[:, :2].T + matrix[:, 2]
    assert (turned[:2] >= corners.min(axis=0) - 1e-9).all()
    assert (turned[2:] <= corners.max(axis=0) + 1e-9).all()
    assert xyxy_to_cxcywh(turned)[:2] == pytest.approx(corners.mean(axis=0), abs=1e-6)


def test_a_rotation_by_90_degrees_swaps_the_sides():
    turned = affine_boxes(np.array([0.0, 0, 10, 30]), np.array([[0.0, -1, 0], [1, 0, 0]]))
    assert turned == pytest.approx([-30, 0, 0, 10])


@given(boxes, st.floats(-30, 30), st.floats(-40, 40), st.floats(0.8, 1.25), st.booleans())
def test_a_map_times_its_inverse_returns_the_box(box, degrees, offset, scale, mirror):
    """Like augmentation, this multiplies the maps first and then applies the product to a box."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag([-1.0 if mirror else 1.0, 1.0])
    there = np.vstack([np.column_stack([linear, [offset, -offset]]), [0, 0, 1]])
    assert affine_boxes(box, (np.linalg.inv(there) @ there)[:2]) == pytest.approx(box, abs=1e-6)


@given(boxes, st.floats(-15, 15))
def test_rotating_there_and_back_enlarges_a_box_as_expected(box, degrees):
    """A tight upright box forgets the turn: sides w, h become sqrt(w^2 + 2 c^2 s^2 (h^2 - w^2)), the centre stays.

    That is within half a pixel for a square, and for turns under a degree or so.
    """
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    back = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]])
    found = xyxy_to_cxcywh(affine_boxes(affine_boxes(box, turn), back))
    centre, (width, height) = np.split(xyxy_to_cxcywh(box), 2)
    mixed = 2 * (np.cos(angle) * np.sin(angle)) ** 2 * (height**2 - width**2)
    assert found[:2] == pytest.approx(centre, abs=1e-6)
    assert found[2:] == pytest.approx(np.sqrt([width**2 + mixed, height**2 - mixed]), abs=1e-6)


def bright_ellipse(size, box):
    """(size, size) uint8, white inside the ellipse inscribed in box xyxy."""
    y, x = np.mgrid[:size, :size] + 0.5
    cx, cy, width, height = xyxy_to_cxcywh(box)
    return (255 * (((x - cx) / width * 2) ** 2 + ((y - cy) / height * 2) ** 2 <= 1)).astype(np.uint8)


def measured_box(image):
    rows, cols = np.flatnonzero((image > 127).any(axis=1)), np.flatnonzero((image > 127).any(axis=0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], dtype=float)


@given(st.integers(0, 10_000))
def test_an_augmented_box_follows_the_image(seed):
    """For any random flip, rotation, shift and zoom, the box is where the bright ellipse is, within 1.5 px."""
    box = np.array([90.0, 60, 130, 150])
    augmentation = Augmentation(flip=0.5, rotate=15, translate=0.1, scale=0.2, brightness_contrast=0.0)
    image, moved = augmentation(bright_ellipse(256, box), box, np.random.default_rng(seed))
    assert measured_box(image) == pytest.approx(moved, abs=1.5)


def test_warp_by_half_the_image_is_exact():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    mirrored = warp(image, np.array([[-1.0, 0, 8], [0, 1, 0]]))
    assert (mirrored == image[:, ::-1]).all()


def test_an_image_without_a_box_stays_without_one():
    augmentation = Augmentation(flip=0.5, rotate=15, translate=0.1, scale=0.2, brightness_contrast=0.3)
    image, box = augmentation(np.zeros((32, 32), np.uint8), np.full(4, np.nan), np.random.default_rng(0))
    assert image.dtype == np.uint8
    assert np.isnan(box).all()
