"""Weighted boxes fusion: several prediction tables of the same images -> one. A "model" is a view, a run or a fold."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.config import FusionSettings
from rsna.core.errors import UserError
from rsna.data.boxes import Floats, box_iou, xywh_to_xyxy, xyxy_to_xywh
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, with_empty_rows
from rsna.evaluation.metric import rank_within

Ints = NDArray[np.int64]
IMAGES_AT_ONCE = 5000  # a few hundred MB if each image has a hundred boxes


class Votes(NamedTuple):
    """The boxes that several models predict for several images."""

    boxes_xyxy: Floats  # (n, 4)
    confidence: Floats  # (n,)
    model: Ints  # (n,) index of the model
    image: Ints  # (n,) index of the image

    def take(self, rows: Ints) -> "Votes":
        return Votes(self.boxes_xyxy[rows], self.confidence[rows], self.model[rows], self.image[rows])


def fuse_tables(
    tables: Sequence[pd.DataFrame], settings: FusionSettings, weights: Sequence[float] | None = None
) -> pd.DataFrame:
    """Fuse the predictions of several models (views, runs or folds) on the same images.

    tables: one per model, with patientId, confidence, x, y, width, height in original pixels; weights: one per model,
    equal by default. Returns a table of the same columns, in the order of the first table's images, with at most
    max_boxes boxes per image, or one row of empty fields. Raises UserError if the tables have different images.
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
        boxes, confidence, of_image = fuse_boxes(votes.take(rows), model_weights, settings)
        best = np.lexsort([-confidence, of_image])
        best = best[rank_within(of_image[best]) < settings.max_boxes]
        table = pd.DataFrame(xyxy_to_xywh(boxes[best]), columns=BOX_COLUMNS)
        fused.append(table.assign(patientId=names[of_image[best]], confidence=confidence[best]))
    return with_empty_rows(pd.concat(fused)[PREDICTION_COLUMNS], ids)


def fuse_boxes(votes: Votes, weights: Floats, settings: FusionSettings) -> tuple[Floats, Floats, Ints]:
    """Fuse the boxes of each image into clusters: boxes xyxy (g, 4), confidences (g,), images (g,), in rising order.

    Weighted boxes fusion (Solovyev et al. 2019, arXiv:1910.13302). A box's weight is its confidence times the weight of
    its model; weights: (models,). By decreasing weight, each box joins the cluster whose fused box has the highest IoU
    with it, if that is above wbf_iou; else it starts a new cluster. The fused box is the weighted mean of the cluster's
    boxes. The cluster's confidence is the weighted mean, over ALL models, of what each model contributes:
    - a model with boxes in the cluster: its highest confidence there;
    - a model with boxes in other clusters only: `missing_weight` times its highest confidence in the image, which is
      evidence for an opacity, but not for this box;
    - a model without a box: 0.
    With missing_weight=0, as in the paper, an image whose opacity two views put in different places would rank below
    images without an opacity: see docs.
    """
    weight = votes.confidence * weights[votes.model]
    order = np.lexsort([-weight, votes.image])
    votes = votes.take(order)
    ids, image = np.unique(votes.image, return_inverse=True)
    cluster, fused = cluster_boxes(votes.boxes_xyxy, weight[order], image, settings.wbf_iou)
    # the highest confidence of each model in each cluster: (images, clusters, models)
    highest, exists = np.zeros((*fused.shape[:2], len(weights))), np.zeros(fused.shape[:2], dtype=bool)
    np.maximum.at(highest, (image, cluster, votes.model), votes.confidence)
    exists[image, cluster] = True
    inside, elsewhere = highest[exists], settings.missing_weight * highest.max(axis=1, initial=0)
    of_cluster = np.nonzero(exists)[0]
    contributions = np.where(inside > 0, inside, elsewhere[of_cluster])
    return fused[exists], np.average(contributions, axis=1, weights=weights), ids[of_cluster]


def cluster_boxes(boxes_xyxy: Floats, weight: Floats, image: Ints, wbf_iou: float) -> tuple[Ints, Floats]:
    """Cluster the boxes of each image: the cluster of each box within its image (n,), the fused boxes (images, m, 4).

    m is the most boxes of an image; unused places are zeros. The boxes (n, 4) must be sorted by image (0, 1, ...) and
    decreasing weight (n,). The first boxes of all images are processed at once, then the second boxes, and so on.
    """
    rank, n_images = rank_within(image), image.max(initial=-1) + 1
    most = rank.max(initial=-1) + 1
    cluster, count = np.empty(len(image), dtype=np.int64), np.zeros(n_images, dtype=np.int64)
    fused, weighted, plain = (np.zeros((n_images, most, width)) for width in (4, 5, 5))
    for rows in (np.flatnonzero(rank == k) for k in range(most)):
        of_image, box = image[rows], boxes_xyxy[rows]
        overlap = box_iou(fused[of_image], box[:, None])  # 0 for places without a cluster
        joins = overlap.max(axis=1) > wbf_iou
        place = of_image, np.where(joins, overlap.argmax(axis=1), count[of_image])
        cluster[rows] = place[1]
        count[of_image] += ~joins
        with_one = np.insert(box, 4, 1.0, axis=1)  # the last column sums up the weights
        weighted[place] += with_one * weight[rows, None]
        plain[place] += with_one
        # the unweighted mean if all weights are 0
        total = np.where(weighted[place][:, 4:] > 0, weighted[place], plain[place])
        fused[place] = np.where(joins[:, None], total[:, :4] / total[:, 4:], box)
    return cluster, fused
