"""Draw validation images with truth (green) and prediction (yellow) on one sheet: best, worst, false alarms.

python src/overlays.py [name=...]   -> working/<name>/overlays.png
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from boxes import xywh_to_xyxy
from competition import BOX_COLUMNS, LABELS_CSV, read_labels, read_predictions, truth_boxes
from config import Config, command, load_config
from files import read_json
from images import GEOMETRY_COLUMNS, original_to_cached, read_index, read_png, write_png
from metric import image_scores, keep_confident

Picture = NDArray[np.uint8]
TILE = 256  # px
PER_ROW = 6
GREEN, YELLOW, WHITE = (80, 220, 80), (0, 220, 255), (255, 255, 255)  # blue, green, red


def main(cfg: Config) -> None:
    predictions = read_predictions(cfg.run_dir / "oof.csv", command(cfg, "ensemble"))
    scores = read_json(cfg.run_dir / "scores.json", command(cfg, "evaluate"))
    kept = keep_confident(predictions, scores["threshold"])
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    truth = truth[truth["patientId"].isin(predictions["patientId"])]
    index = read_index(cfg.cache_dir)
    geometry = index[(index["split"] == "train") & (index["status"] == "ok")].set_index("patientId")[GEOMETRY_COLUMNS]
    chosen = choose(truth, kept, predictions, cfg.seed)
    rows = [draw_row(cfg, title, ids, truth, kept, geometry) for title, ids in chosen]
    write_png(np.vstack(rows), cfg.run_dir / "overlays.png")
    print(f"truth green, prediction yellow, out of fold -> {cfg.run_dir / 'overlays.png'}")


def choose(
    truth: pd.DataFrame, kept: pd.DataFrame, predictions: pd.DataFrame, seed: int
) -> list[tuple[str, list[str]]]:
    """Titles and patientIds of the sheet's rows; an image stands in the first row that it fits."""
    scores = image_scores(truth, kept).mean(axis=1).sort_values(ascending=False, kind="stable")
    hits = [name for name in scores.index if name in set(truth["patientId"]) and name in set(kept["patientId"])]
    missed = sorted(set(truth["patientId"]) - set(kept["patientId"]))
    alarms = kept[~kept["patientId"].isin(truth["patientId"])].sort_values("confidence", ascending=False)
    rng = np.random.default_rng(seed)
    everything = sorted(set(predictions["patientId"]))
    return [
        ("best", hits[:PER_ROW]),
        ("worst", hits[PER_ROW:][::-1][:PER_ROW]),
        ("missed", missed[:PER_ROW]),
        ("false alarm", alarms["patientId"].drop_duplicates().tolist()[:PER_ROW]),
        ("random", rng.permutation(everything)[:PER_ROW].tolist()),
    ]


def draw_row(
    cfg: Config, title: str, ids: list[str], truth: pd.DataFrame, kept: pd.DataFrame, geometry: pd.DataFrame
) -> Picture:
    """One row of tiles (TILE, PER_ROW * TILE, 3), black where there are too few images."""
    row = np.zeros((TILE, PER_ROW * TILE, 3), np.uint8)
    for place, name in enumerate(name for name in ids if name in geometry.index):
        tile = draw(cfg, name, truth[truth["patientId"] == name], kept[kept["patientId"] == name], geometry.loc[[name]])
        cv2.putText(tile, title, (6, TILE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, WHITE, 1, cv2.LINE_AA)
        row[:, place * TILE : (place + 1) * TILE] = tile
    return row


def draw(cfg: Config, name: str, truth: pd.DataFrame, kept: pd.DataFrame, geometry: pd.DataFrame) -> Picture:
    """The cached image as a (TILE, TILE, 3) picture with its boxes and the confidence of each prediction."""
    grey = cv2.resize(read_png(cfg.cache_dir / "train" / f"{name}.png"), (TILE, TILE), interpolation=cv2.INTER_AREA)
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for table, colour in ((truth, GREEN), (kept, YELLOW)):
        xyxy = xywh_to_xyxy(table[BOX_COLUMNS].to_numpy(dtype=float))
        boxes = original_to_cached(xyxy, geometry.to_numpy(dtype=float)[0])
        for left, top, right, bottom in np.rint(boxes * TILE / cfg.size).astype(int).tolist():
            cv2.rectangle(tile, (left, top), (right, bottom), colour, 1)
    for confidence in kept["confidence"].head(1):
        cv2.putText(tile, f"{confidence:.2f}", (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, YELLOW, 1, cv2.LINE_AA)
    return tile.astype(np.uint8, copy=False)


if __name__ == "__main__":
    main(load_config())
