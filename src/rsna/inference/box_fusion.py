"""Weighted boxes fusion: several prediction tables of the same images -> one. A view, run or fold counts as a model."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.core.config import FusionSettings
from rsna.core.errors import UserError
from rsna.data.boxes import box_iou, xywh_to_xyxy, xyxy_to_xywh
from rsna.data.competition import BOX_COLUMNS, PREDICTION_COLUMNS, with_empty_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    boxes = xywh_to_xyxy(stacked[BOX_COLUMNS].to_numpy(dtype=float))
    confidences, model = stacked["confidence"].to_numpy(dtype=float), stacked["model"].to_numpy()
    model_weights, rows = np.asarray(weights or np.ones(len(tables)), dtype=float), []
    for name, own in stacked.groupby("patientId").indices.items():
        fused, confidence = fuse_boxes(boxes[own], confidences[own], model[own], model_weights, settings)
        best = np.argsort(-confidence, kind="stable")[: settings.max_boxes]
        rows += [(name, confidence[k], *xyxy_to_xywh(fused[k])) for k in best]
    return with_empty_rows(pd.DataFrame(rows, columns=PREDICTION_COLUMNS), ids)


def fuse_boxes(
    boxes_xyxy: Floats, confidence: Floats, model: Ints, weights: Floats, settings: FusionSettings
) -> tuple[Floats, Floats]:
    """Boxes (n, 4) of one image, their confidences (n,), models (n,) -> clusters: boxes (g, 4), confidences (g,).

    Weighted boxes fusion (Solovyev et al. 2019, arXiv:1910.13302): by falling confidence times the weight of its model
    (weights: (models,)), each box joins the cluster whose fused box it overlaps most, if by more than wbf_iou, else it
    starts a cluster; a cluster's box is the mean of its boxes, with the same weights. Boxes are never averaged across
    clusters: the mean of a left and a right lung is the spine. A cluster's confidence is the weighted mean over ALL
    models of what each contributes: a model with boxes in the cluster its highest confidence there; one with boxes in
    other clusters only `missing_weight` times its highest, as that is evidence for an opacity but not for this box;
    one without any box 0. In the paper's way (missing_weight=0) images with an opacity that two views place
    differently rank below those without any: see docs.
    """
    clusters: list[list[int]] = []
    fused, votes = np.empty((0, 4)), confidence * weights[model]
    for k in np.argsort(-votes, kind="stable"):
        overlap = box_iou(fused, boxes_xyxy[k])
        if len(clusters) and overlap.max() > settings.wbf_iou:
            nearest = int(overlap.argmax())
            own = clusters[nearest]
            own.append(k)
            # the plain mean where all votes are 0
            fused[nearest] = np.average(boxes_xyxy[own], axis=0, weights=votes[own] if votes[own].any() else None)
        else:
            clusters.append([k])
            fused = np.vstack([fused, boxes_xyxy[k]])
    best = best_by_model(confidence, model, len(weights))
    inside = [best_by_model(confidence[cluster], model[cluster], len(weights)) for cluster in clusters]
    mixed = [np.where(own > 0, own, settings.missing_weight * best) for own in inside]
    return fused, np.array([np.average(own, weights=weights) for own in mixed])


def best_by_model(confidence: Floats, model: Ints, n_models: int) -> Floats:
    """(n,) confidences and their models 0 .. n_models - 1 -> the highest of each model, 0 for one without a box."""
    best = np.zeros(n_models)
    np.maximum.at(best, model, confidence)
    return best
