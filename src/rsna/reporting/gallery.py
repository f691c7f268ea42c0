"""The report's gallery: which images are shown, and the data that the page needs to draw their boxes."""

import base64
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.boxes import xyxy_to_xywh
from rsna.data.letterbox import read_png
from rsna.evaluation.metric import of_images
from rsna.evaluation.subgroups import UNKNOWN, to_relative
from rsna.reporting.sections import ReportData

PER_KIND = 12
LARGEST_SIDE = 512  # px; with PER_KIND it determines the size of the page: about 40 kB per image
JPEG_QUALITY = 82
KINDS = {
    "best": "an opacity that was boxed, highest score first",
    "worst": "an opacity with a box that scores low, lowest score first",
    "false alarm": "a box on an image without an opacity, most confident first",
    "missed": "an opacity without a box, largest opacity first",
}


def choose(scores: pd.Series, truth: pd.DataFrame, kept: pd.DataFrame, per_kind: int) -> dict[str, list[str]]:
    """Kind -> patientIds, in the order of the gallery; scores: index patientId, of the images that count."""
    top = kept.groupby("patientId")["confidence"].max()
    area = (truth["width"] * truth["height"]).groupby(truth["patientId"]).max()
    # the sorts below are stable, so ties stay in the order of the patientIds
    ranks = pd.DataFrame({"score": scores, "top": top, "area": area}).loc[sorted(scores.index)]
    positive = ranks["area"].notna()
    boxed = ranks[positive & ranks["top"].notna()].sort_values(["score", "top"], ascending=False)
    n_best = min(per_kind, int((boxed["score"] > 0).sum()), (len(boxed) + 1) // 2)
    rest = boxed.iloc[n_best:].sort_index().sort_values(["score", "top"], ascending=[True, False])
    alarms = ranks[~positive].sort_values("top", ascending=False, kind="stable")
    missed = ranks[positive & ranks["top"].isna()].sort_values("area", ascending=False, kind="stable")
    chosen = {"best": boxed.iloc[:n_best], "worst": rest, "false alarm": alarms, "missed": missed}
    return {kind: table.index.tolist()[:per_kind] for kind, table in chosen.items()}


def make_tiles(data: ReportData) -> list[dict[str, Any]]:
    """The chosen images as tiles, see make_tile; images that the cache refused are left out."""
    chosen = choose(data.scores, data.truth, data.run.kept, PER_KIND)
    shown = [(kind, name) for kind, ids in chosen.items() for name in ids if name in data.geometry.index]
    names = [name for _, name in shown]
    tables = {"true": data.truth, "predicted": data.run.kept, "below": data.run.predictions}
    chosen_tables = {key: of_images(table, names) for key, table in tables.items()}
    return [make_tile(data, chosen_tables, kind, name) for kind, name in shown]


def make_tile(data: ReportData, tables: dict[str, pd.DataFrame], kind: str, name: str) -> dict[str, Any]:
    """What the page shows of an image: patient_id, kind, view, words, image (a data URI), and its boxes.

    The boxes are lists of [left, top, width, height] in percent of the square image: `true`, `predicted`, and `below`
    (the most confident box below the threshold, if there is none above).
    """
    boxes = {key: table[table["patientId"] == name] for key, table in tables.items()}
    weak = boxes["below"].dropna(subset=["confidence"]).nlargest(1, "confidence")
    boxes["below"] = weak if boxes["predicted"].empty else weak.iloc[:0]
    view, geometry = str(data.groups.loc[name, "view"]), data.geometry.loc[[name]]
    return {
        "patient_id": name,
        "kind": kind,
        "view": view,
        "words": describe(float(data.scores[name]), str(data.classes[name]), view, boxes),
        "image": data_uri(read_png(data.cfg.cache_dir / "train" / f"{name}.png", data.cfg.size)),
        **{key: percent(to_relative(table, geometry, data.cfg.size)) for key, table in boxes.items()},
    }


def percent(boxes_xyxy: NDArray[np.float64]) -> list[list[float]]:
    """(n, 4) xyxy in [0, 1] -> lists of left, top, width, height in percent, with two decimals."""
    return [[round(100 * value, 2) for value in row] for row in xyxy_to_xywh(boxes_xyxy).tolist()]


def describe(score: float, label: str, view: str, boxes: dict[str, pd.DataFrame]) -> str:
    """The caption of an image; boxes: its tables `true`, `predicted` and `below`."""
    n_true = len(boxes["true"])
    truth = f"{label}, {n_true or 'no'} true {'boxes' if n_true > 1 else 'box'}"
    confidences = [f"{value:.2f}" for value in boxes["predicted"]["confidence"]]
    found = f"predicted with confidence {', '.join(confidences)}" if confidences else "no box above the threshold"
    if len(boxes["below"]):
        found += f" (most confident below it: {boxes['below']['confidence'].iloc[0]:.2f})"
    known = "view not known" if view == UNKNOWN else f"view {view}"
    return f"score {score:.2f}; {truth}; {found}; {known}"


def data_uri(image: NDArray[np.uint8]) -> str:
    """A uint8 (S, S) image as a data URI of a JPEG, at most LARGEST_SIDE wide."""
    if image.shape[0] > LARGEST_SIDE:
        image = np.asarray(cv2.resize(image, (LARGEST_SIDE, LARGEST_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
