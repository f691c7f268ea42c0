"""Draw out-of-fold images with truth (green) and prediction (yellow) on one sheet: best, worst, false alarms, random.

python src/show_results.py [name=...]   -> working/<name>/results.png
"""

from pathlib import Path

import numpy as np
import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.files import read_json
from rsna.core.stamps import SCORES_JSON
from rsna.data.boxes import xywh_to_xyxy
from rsna.data.cache import read_index, read_png, write_png
from rsna.data.competition import BOX_COLUMNS, LABELS_CSV, read_labels, read_predictions, truth_boxes
from rsna.data.letterbox import GEOMETRY_COLUMNS, original_to_cached
from rsna.evaluation.metric import image_scores, keep_confident
from rsna.reporting.montage import GREEN, YELLOW, Picture, draw_tile, stack_rows

PER_ROW = 6


def main(cfg: Config) -> None:
    predictions = read_predictions(cfg.run_dir / "oof.csv", command(cfg, "ensemble"))
    scores = read_json(cfg.run_dir / "scores.json", command(cfg, "evaluate"), SCORES_JSON)
    kept = keep_confident(predictions, scores["threshold"])
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    truth = truth[truth["patientId"].isin(predictions["patientId"])]
    index = read_index(cfg.cache_dir, cfg.size)
    geometry = index[(index["split"] == "train") & (index["status"] == "ok")].set_index("patientId")[GEOMETRY_COLUMNS]
    chosen = choose(truth, kept, predictions, cfg.seed)
    rows = [draw_row(cfg, title, ids, truth, kept, geometry) for title, ids in chosen]
    write_png(stack_rows(rows), cfg.run_dir / "results.png")
    print(f"truth green, prediction yellow, out of fold -> {cfg.run_dir / 'results.png'}")


def choose(
    truth: pd.DataFrame, kept: pd.DataFrame, predictions: pd.DataFrame, seed: int
) -> list[tuple[str, list[str]]]:
    """Titles and patientIds of the sheet's rows. Best and worst share the hits; random is of all images."""
    scores = image_scores(truth, kept).mean(axis=1).sort_values(ascending=False, kind="stable")
    hits = [name for name in scores.index if name in set(truth["patientId"]) and name in set(kept["patientId"])]
    missed = sorted(set(truth["patientId"]) - set(kept["patientId"]))
    alarms = kept[~kept["patientId"].isin(truth["patientId"])].sort_values("confidence", ascending=False)
    half = min(PER_ROW, (len(hits) + 1) // 2)
    rng = np.random.default_rng(seed)
    everything = sorted(set(predictions["patientId"]))
    return [
        ("best", hits[:half]),
        ("worst", hits[half:][::-1][:PER_ROW]),
        ("missed", missed[:PER_ROW]),
        ("false alarm", alarms["patientId"].drop_duplicates().tolist()[:PER_ROW]),
        ("random", rng.permutation(everything)[:PER_ROW].tolist()),
    ]


def draw_row(
    cfg: Config, title: str, ids: list[str], truth: pd.DataFrame, kept: pd.DataFrame, geometry: pd.DataFrame
) -> list[Picture]:
    """The tiles of one row; images that were refused have none."""
    row = []
    for name in (name for name in ids if name in geometry.index):
        image = read_png(cfg.cache_dir / "train" / f"{name}.png", cfg.size)
        mapping = geometry.loc[name].to_numpy(dtype=float)
        own_truth, own = truth[truth["patientId"] == name], kept[kept["patientId"] == name]
        boxes = [
            (original_to_cached(xywh_to_xyxy(table[BOX_COLUMNS].to_numpy(dtype=float)), mapping), colour)
            for table, colour in ((own_truth, GREEN), (own, YELLOW))
        ]
        above = f"{own['confidence'].iloc[0]:.2f}" if len(own) else ""
        row.append(draw_tile(image, boxes, above, title))
    return row


if __name__ == "__main__":
    run(main)
