"""The report's pictures: which images tell something, and what a page needs to show them with their boxes."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna.data.cache import read_png
from rsna.evaluation.subgroups import UNKNOWN, in_square

PER_KIND = 12
LARGEST_SIDE = 512  # px; with PER_KIND it decides how large a page becomes: about 40 kB an image
JPEG_QUALITY = 82
KINDS = {
    "best": "best: an opacity that was boxed, highest score first",
    "worst": "worst: an opacity with a box that scores low, lowest score first",
    "false alarm": "false alarm: a box on an image without an opacity, most confident first",
    "miss": "miss: an opacity without a box, largest opacity first",
}


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery. Boxes are (n, 4) lists of left, top, width, height in percent of the square."""

    patient_id: str
    kind: str
    view: str
    words: str
    picture: str  # data URI
    true: list[list[float]]
    predicted: list[list[float]]
    below: list[list[float]]  # the most confident box below the threshold, where none is above


def choose(
    scores: pd.Series, truth: pd.DataFrame, kept: pd.DataFrame, per_kind: int = PER_KIND
) -> dict[str, list[str]]:
    """The patientIds of each kind, in the order in which they are shown; an image is of one kind only.

    scores: image scores by patientId, of the images that count.
    """
    top = kept.groupby("patientId")["confidence"].max()
    ranks = pd.DataFrame({"score": scores, "top": top.reindex(scores.index)}).rename_axis("id").reset_index()
    positive = ranks["id"].isin(truth["patientId"])
    boxed = ranks[positive & ranks["top"].notna()].sort_values(["score", "top", "id"], ascending=[False, False, True])
    n_best = min(per_kind, int((boxed["score"] > 0).sum()), (len(boxed) + 1) // 2)
    rest = boxed.iloc[n_best:].sort_values(["score", "top", "id"], ascending=[True, False, True])
    alarms = ranks[~positive].sort_values(["top", "id"], ascending=[False, True])
    area = (truth["width"] * truth["height"]).groupby(truth["patientId"]).max()
    missed = ranks[positive & ranks["top"].isna()].assign(area=lambda table: table["id"].map(area))
    missed = missed.sort_values(["area", "id"], ascending=[False, True])
    chosen = {"best": boxed.iloc[:n_best], "worst": rest, "false alarm": alarms, "miss": missed}
    return {kind: table["id"].tolist()[:per_kind] for kind, table in chosen.items()}


def make_tiles(
    chosen: dict[str, list[str]],
    scores: pd.Series,
    groups: pd.DataFrame,
    boxes: dict[str, pd.DataFrame],
    geometry: pd.DataFrame,
    cache_dir: Path,
    size: int,
) -> list[Tile]:
    """The chosen images as tiles; one that was refused by the cache has no picture and is left out.

    boxes: tables `true`, `predicted` and `all`, in original pixels; groups: index patientId, columns class, view.
    """
    tiles = []
    for kind, ids in chosen.items():
        for name in (name for name in ids if name in geometry.index):
            own = {key: table[table["patientId"] == name] for key, table in boxes.items()}
            weak = own["all"].dropna(subset=["confidence"]).nlargest(1, "confidence")
            own["below"] = weak if own["predicted"].empty else weak.iloc[:0]
            places = {key: percent(in_square(table, geometry, size)) for key, table in own.items()}
            tiles.append(
                Tile(
                    patient_id=name,
                    kind=kind,
                    view=str(groups.loc[name, "view"]),
                    words=describe(float(scores[name]), groups.loc[name], own),
                    picture=data_uri(read_png(cache_dir / "train" / f"{name}.png", size)),
                    true=places["true"],
                    predicted=places["predicted"],
                    below=places["below"],
                )
            )
    return tiles


def percent(boxes_xyxy: NDArray[np.float64]) -> list[list[float]]:
    """(n, 4) xyxy in [0, 1] -> left, top, width, height in percent, two digits."""
    sides = np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])
    return [[round(100 * value, 2) for value in row] for row in sides.tolist()]


def describe(score: float, group: Any, own: dict[str, pd.DataFrame]) -> str:
    """What a person should know of an image beside seeing it."""
    n_true = len(own["true"])
    truth = f"{group['class']}, {n_true or 'no'} true {'boxes' if n_true > 1 else 'box'}"
    sure = [f"{value:.2f}" for value in own["predicted"]["confidence"]]
    found = f"predicted with confidence {', '.join(sure)}" if sure else "no box above the threshold"
    if len(own["below"]):
        found += f" (most confident below it: {own['below']['confidence'].iloc[0]:.2f})"
    view = "view not known" if group["view"] == UNKNOWN else f"view {group['view']}"
    return f"score {score:.2f}; {truth}; {found}; {view}"


def data_uri(image: NDArray[np.uint8]) -> str:
    """A grey uint8 (S, S) image as a JPEG that stands in the page itself, at most LARGEST_SIDE wide."""
    if image.shape[0] > LARGEST_SIDE:
        image = np.asarray(cv2.resize(image, (LARGEST_SIDE, LARGEST_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
