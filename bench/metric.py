"""Speed of the threshold sweep against the loop that everyone writes: the metric, image by image, at 100 thresholds.

python bench/metric.py [quick=true]
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.evaluation.metric import IOU_THRESHOLDS, threshold_sweep

N_IMAGES, N_POSITIVE = 26684, 6012  # the challenge's
N_THRESHOLDS = 100


def make_tables(n_images: int, n_positive: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Random truth (1 or 2 boxes on each positive) and one prediction per image, near the truth where there is one."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"{k:08x}" for k in range(n_images)])
    owner = np.concatenate([np.arange(n_positive), np.arange(n_positive // 2)])
    box = np.column_stack([rng.uniform(0, 700, (len(owner), 2)), rng.uniform(100, 320, (len(owner), 2))])
    truth = pd.DataFrame(box, columns=["x", "y", "width", "height"])
    truth.insert(0, "patientId", ids[owner])
    guess = np.column_stack([rng.uniform(0, 700, (n_images, 2)), rng.uniform(100, 320, (n_images, 2))])
    guess[:n_positive] = box[:n_positive] + rng.normal(0, 25, (n_positive, 4))
    predictions = pd.DataFrame(guess, columns=["x", "y", "width", "height"])
    predictions.insert(0, "confidence", rng.random(n_images))
    predictions.insert(0, "patientId", ids)
    return truth, predictions


def loop_score(truth: dict[str, np.ndarray], predictions: dict[str, np.ndarray], threshold: float) -> float:
    """mAP at one confidence threshold, image by image; rows of predictions: confidence, x, y, width, height."""
    scores = []
    for name, rows in predictions.items():
        kept = sorted((row for row in rows if row[0] >= threshold), key=lambda row: -row[0])
        boxes = truth.get(name, np.empty((0, 4)))
        if len(kept) or len(boxes):
            scores.append(np.mean([match(boxes, kept, t) for t in IOU_THRESHOLDS]) if len(boxes) else 0.0)
    return float(np.mean(scores))


def match(boxes: np.ndarray, kept: list[np.ndarray], threshold: float) -> float:
    left, hits = list(boxes), 0
    for row in kept:
        overlaps = [iou(row[1:], box) for box in left]
        if overlaps and max(overlaps) > threshold:
            left.pop(int(np.argmax(overlaps)))
            hits += 1
    return hits / (len(kept) + len(boxes) - hits)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def by_image(table: pd.DataFrame, columns: list[str]) -> dict[str, np.ndarray]:
    return {str(name): rows[columns].to_numpy() for name, rows in table.groupby("patientId")}


def main(quick: bool) -> None:
    share = 10 if quick else 1
    truth, predictions = make_tables(N_IMAGES // share, N_POSITIVE // share)
    start = time.perf_counter()
    sweep = threshold_sweep(truth, predictions)
    ours = time.perf_counter() - start
    columns = ["x", "y", "width", "height"]
    truth_of, predictions_of = by_image(truth, columns), by_image(predictions, ["confidence", *columns])
    thresholds = np.quantile(predictions["confidence"], np.linspace(0, 0.99, 3))
    start = time.perf_counter()
    scores = [loop_score(truth_of, predictions_of, threshold) for threshold in thresholds]
    loop = (time.perf_counter() - start) / len(thresholds) * N_THRESHOLDS
    for threshold, score in zip(thresholds, scores, strict=True):
        swept = sweep.set_index("n_boxes")["score"][int((predictions["confidence"] >= threshold).sum())]
        if abs(swept - score) > 1e-9:
            sys.exit(f"the sweep says {swept} where the loop says {score}, at threshold {threshold}")
    print(f"{len(predictions)} images, {len(sweep)} thresholds at once: {ours:.2f} s")
    print(f"the loop at {N_THRESHOLDS} thresholds: {loop:.1f} s (measured at {len(scores)}, where both agree)")
    print(f"ratio sweep_of_all_thresholds_to_loop_over_{N_THRESHOLDS} {loop / ours:.0f}")


if __name__ == "__main__":
    main("quick=true" in sys.argv[1:])
