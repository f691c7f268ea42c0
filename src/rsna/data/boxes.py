"""Boxes: conversions between formats, flips, clipping, affine maps, IoU. Arrays of boxes are float64 (..., 4)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def xywh_to_xyxy(boxes: Floats) -> Floats:
    """(..., 4) x, y, width, height -> left, top, right, bottom, same units."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: Floats) -> Floats:
    """(..., 4) left, top, right, bottom -> x, y, width, height, same units."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xyxy_to_cxcywh(boxes: Floats) -> Floats:
    """(..., 4) left, top, right, bottom -> centre x, centre y, width, height, same units."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def cxcywh_to_xyxy(boxes: Floats) -> Floats:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom, same units."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def scale_boxes(boxes_xywh: Floats, factor: float) -> Floats:
    """(..., 4) x, y, width, height -> the same with both sides multiplied by `factor`, about the same centre."""
    size = boxes_xywh[..., 2:]
    return np.concatenate([boxes_xywh[..., :2] + size * (1 - factor) / 2, size * factor], axis=-1)


def hflip_boxes(boxes_xyxy: Floats, width: float) -> Floats:
    """(..., 4) xyxy in an image `width` wide -> the boxes in its left-right mirror image."""
    left, top, right, bottom = np.moveaxis(boxes_xyxy, -1, 0)
    return np.stack([width - right, top, width - left, bottom], axis=-1)


def clip_boxes(boxes_xyxy: Floats, width: float, height: float) -> Floats:
    """(..., 4) xyxy, clipped to an image of width x height; a box outside becomes empty."""
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], dtype=float))


def affine_boxes(boxes_xyxy: Floats, matrix: Floats) -> Floats:
    """Map boxes (..., 4) xyxy by p -> A p + b: the result encloses the mapped ellipse inscribed in each box.

    matrix: (2, 3), [A | b], in pixels from the image's top left corner. Enclosing the mapped corners would enlarge a
    box with every rotation, though an opacity rarely reaches into the corners. An ellipse with semi-axes r is mapped
    to one with half-extents sqrt(A**2 @ r**2).
    """
    box = xyxy_to_cxcywh(boxes_xyxy)
    linear, offset = matrix[:, :2], matrix[:, 2]
    centre = box[..., :2] @ linear.T + offset
    extent = np.sqrt(box[..., 2:] ** 2 @ (linear**2).T)
    return cxcywh_to_xyxy(np.concatenate([centre, extent], axis=-1))


def box_area(boxes_xyxy: Floats) -> Floats:
    """(..., 4) xyxy -> (...) area; 0 where right <= left or bottom <= top."""
    return np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None).prod(axis=-1)


def box_iou(first_xyxy: Floats, second_xyxy: Floats) -> Floats:
    """Elementwise IoU of boxes xyxy: (..., 4), (..., 4), broadcast -> (...), in [0, 1]; 0 for two empty boxes."""
    low = np.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = np.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=-1)
    union = box_area(first_xyxy) + box_area(second_xyxy) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
