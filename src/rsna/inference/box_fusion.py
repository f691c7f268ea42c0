"""Many prediction tables of the same images -> one, by consensus."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.errors import UserError
from rsna.data.boxes import box_iou, xywh_to_xyxy, xyxy_to_xywh
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, with_empty_rows

Floats = NDArray[np.float64]


def fuse_tables(members: Sequence[pd.DataFrame], iou_above: float, elsewhere: float, max_boxes: int) -> pd.DataFrame:
    """Fuse the predictions of equal members (views, folds or runs) on the same images.

    members: tables patientId, confidence, x, y, width, height in original pixels. Returns such a table with at
    most max_boxes rows per image, in the order of the first member. Raises UserError if images differ.
    """
    ids = members[0]["patientId"].drop_duplicates().tolist()
    for table in members[1:]:
        unlike = set(ids) ^ set(table["patientId"])
        if unlike:
            raise UserError(f"{len(unlike)} images are in one table and not in another, such as {min(unlike)}")
    stacked = pd.concat([table.assign(member=k) for k, table in enumerate(members)]).dropna(subset=["confidence"])
    image, names = pd.factorize(stacked["patientId"])
    order = np.argsort(image, kind="stable")
    boxes = xywh_to_xyxy(stacked[BOX_COLUMNS].to_numpy(dtype=float))
    confidences, member = stacked["confidence"].to_numpy(dtype=float), stacked["member"].to_numpy()
    rows = []
    for own in np.split(order, np.flatnonzero(np.diff(image[order])) + 1) if len(order) else []:
        fused, confidence = fuse_boxes(boxes[own], confidences[own], member[own], len(members), iou_above, elsewhere)
        best = np.argsort(-confidence, kind="stable")[:max_boxes]
        rows += [(names[image[own[0]]], confidence[k], *xyxy_to_xywh(fused[k])) for k in best]
    return with_empty_rows(pd.DataFrame(rows, columns=PREDICTION_COLUMNS), ids)


def fuse_boxes(
    boxes_xyxy: Floats,
    confidence: Floats,
    member: NDArray[np.int64],
    n_members: int,
    iou_above: float,
    elsewhere: float,
) -> tuple[Floats, Floats]:
    """Boxes (n, 4) of one image -> one box and confidence per place that members point at: (g, 4), (g,).

    Weighted boxes fusion (Solovyev et al. 2019, arXiv:1910.13302): by falling confidence, each box joins the
    group whose fused box it overlaps most, if by more than iou_above, else it starts a group; a group's box is
    the confidence-weighted mean of its boxes. Boxes are never averaged across groups: the mean of a left and a
    right lung is the spine. A group's confidence is the mean over ALL members of what each gives it: a member of
    the group its best confidence there; one that points elsewhere only the share `elsewhere` of its best, as it
    speaks for an opacity but not for this box; one that sees nothing 0. In the paper's way (elsewhere=0) the
    disagreement of two views about the place made images with opacity rank below those without: see docs/recipe.md.
    """
    groups: list[list[int]] = []
    fused = np.empty((0, 4))
    for k in np.argsort(-confidence, kind="stable"):
        overlap = box_iou(fused, boxes_xyxy[k])
        if len(groups) and overlap.max() > iou_above:
            group = int(overlap.argmax())
            groups[group].append(k)
            fused[group] = weighted_mean(boxes_xyxy[groups[group]], confidence[groups[group]])
        else:
            groups.append([k])
            fused = np.vstack([fused, boxes_xyxy[k]])
    best = best_by_member(confidence, member, n_members)
    inside = [best_by_member(confidence[group], member[group], n_members) for group in groups]
    given = [np.where(own > 0, own, elsewhere * best) for own in inside]
    return fused, np.array([values.mean() for values in given])


def best_by_member(confidence: Floats, member: NDArray[np.int64], n_members: int) -> Floats:
    """(n,) confidences and their members 0 .. n_members - 1 -> the highest of each member, 0 for one without."""
    best = np.zeros(n_members)
    np.maximum.at(best, member, confidence)
    return best


def weighted_mean(boxes_xyxy: Floats, confidence: Floats) -> Floats:
    """(n, 4), (n,) -> (4,); the plain mean where all confidences are 0."""
    return np.average(boxes_xyxy, axis=0, weights=confidence if confidence.sum() > 0 else None)
