"""Weighted boxes fusion: several prediction tables of the same images -> one. A view, run or fold counts as a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.config import FusionSettings
from rsna.core.errors import UserError
from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy, xyxy_to_xywh
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, with_empty_rows

Ints = NDArray[np.int64]
IMAGES_AT_ONCE = 5000  # some hundred MB where each has a hundred boxes


class Votes(NamedTuple):
    """Boxes that several models give to several images."""

    boxes_xyxy: Floats  # (n, 4)
    confidence: Floats  # (n,)
    model: Ints  # (n,) 0, 1 ...
    image: Ints  # (n,)

    def take(self, rows: Ints) -> "Votes":
        return Votes(self.boxes_xyxy[rows], self.confidence[rows], self.model[rows], self.image[rows])


def fuse_tables(
    tables: Sequence[pd.DataFrame], settings: FusionSettings, weights: Sequence[float] | None = None
) -> pd.DataFrame:
    """Fuse the predictions of several models (views, runs or folds) on the same images.

    tables: patientId, confidence, x, y, width, height in original pixels, one for each model; weights: of each of
    them, equal by default. Returns such a table with at most max_boxes rows per image, in the order of the first.
    Raises UserError if their images differ.
    """
    ids = tables[0]["patientId"].drop_duplicates().tolist()
    for table in tables[1:]:
        unlike = set(ids) ^ set(table["patientId"])
        if unlike:
            raise UserError(f"{len(unlike)} images are in one table and not in another, such as {min(unlike)}")
    stacked = pd.concat([table.assign(model=k) for k, table in enumerate(tables)]).dropna(subset=["confidence"])
    image, names = pd.factorize(stacked["patientId"])
    boxes_xyxy = xywh_to_xyxy(stacked[BOX_COLUMNS].to_numpy(dtype=float))
    votes = Votes(boxes_xyxy, stacked["confidence"].to_numpy(dtype=float), stacked["model"].to_numpy(), image)
    model_weights, fused = np.asarray(weights or np.ones(len(tables)), dtype=float), []
    order = np.argsort(image, kind="stable")
    for rows in np.split(order, np.searchsorted(image[order], range(IMAGES_AT_ONCE, len(names), IMAGES_AT_ONCE))):
        boxes, confidence, own = fuse_boxes(votes.take(rows), model_weights, settings)
        best = np.lexsort([-confidence, own])
        best = best[rank_within(own[best]) < settings.max_boxes]
        table = pd.DataFrame(xyxy_to_xywh(boxes[best]), columns=BOX_COLUMNS)
        fused.append(table.assign(patientId=names[own[best]], confidence=confidence[best]))
    return with_empty_rows(pd.concat(fused)[PREDICTION_COLUMNS], ids)


def fuse_boxes(votes: Votes, weights: Floats, settings: FusionSettings) -> tuple[Floats, Floats, Ints]:
    """The boxes of some images -> clusters: boxes (g, 4), confidences (g,), images (g,), ascending.

    Weighted boxes fusion (Solovyev et al. 2019, arXiv:1910.13302): by falling confidence times the weight of its model
    (weights: (models,)), each box joins the cluster whose fused box it overlaps most, if by more than wbf_iou, else it
    starts a cluster; a cluster's box is the mean of its boxes, with the same weights. Boxes are never averaged across
    clusters: the mean of a left and a right lung is the spine. A cluster's confidence is the weighted mean over ALL
    models of what each contributes: a model with boxes in the cluster its highest confidence there; one with boxes in
    other clusters only `missing_weight` times its highest, as that is evidence for an opacity but not for this box;
    one without any box 0. In the paper's way (missing_weight=0) images with an opacity that two views place
    differently rank below those without any: see docs.
    """
    weight = votes.confidence * weights[votes.model]
    order = np.lexsort([-weight, votes.image])
    votes = votes.take(order)
    ids, image = np.unique(votes.image, return_inverse=True)
    cluster, fused = cluster_boxes(votes.boxes_xyxy, weight[order], image, settings.wbf_iou)
    # (images, clusters, models) the highest confidence of each model
    highest, exists = np.zeros((*fused.shape[:2], len(weights))), np.zeros(fused.shape[:2], dtype=bool)
    np.maximum.at(highest, (image, cluster, votes.model), votes.confidence)
    exists[image, cluster] = True
    own, elsewhere = highest[exists], settings.missing_weight * highest.max(axis=1, initial=0)
    of_cluster = np.nonzero(exists)[0]
    mixed = np.where(own > 0, own, elsewhere[of_cluster])
    return fused[exists], np.average(mixed, axis=1, weights=weights), ids[of_cluster]


def cluster_boxes(boxes_xyxy: Floats, weight: Floats, image: Ints, wbf_iou: float) -> tuple[Ints, Floats]:
    """(n,) the cluster 0, 1 ... of each box within its image, and the fused boxes (images, most clusters, 4).

    The boxes (n, 4) are sorted by image 0, 1 ... and falling weight (n,). Of all images at once the first boxes join or
    start a cluster, then the second ones, ...
    """
    rank, n_images = rank_within(image), image.max(initial=-1) + 1
    most = rank.max(initial=-1) + 1
    cluster, count = np.empty(len(image), dtype=np.int64), np.zeros(n_images, dtype=np.int64)
    fused, weighted, plain = (np.zeros((n_images, most, width)) for width in (4, 5, 5))
    for rows in (np.flatnonzero(rank == k) for k in range(most)):
        own, box = image[rows], boxes_xyxy[rows]
        overlap = box_iou(fused[own], box[:, None])  # 0 with a place where no cluster is yet
        joins = overlap.max(axis=1) > wbf_iou
        place = own, np.where(joins, overlap.argmax(axis=1), count[own])
        cluster[rows] = place[1]
        count[own] += ~joins
        with_one = np.insert(box, 4, 1.0, axis=1)
        weighted[place] += with_one * weight[rows, None]
        plain[place] += with_one
        # the plain mean where all weights are 0
        total = np.where(weighted[place][:, 4:] > 0, weighted[place], plain[place])
        fused[place] = np.where(joins[:, None], total[:, :4] / total[:, 4:], box)
    return cluster, fused


def rank_within(image: Ints) -> Ints:
    """(n,) ascending images -> 0 for the first row of each, 1 for the second, ..."""
    return np.arange(len(image)) - np.searchsorted(image, image)
