"""Score any prediction table or submission, whoever made it, against labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.tables import read_table
from rsna.data.competition import LABELS_CSV, read_labels, read_people, read_predictions, truth_boxes
from rsna.data.submission_format import SUBMISSION_COLUMNS, parse_submission
from rsna.evaluation.metric import keep_confident, of_images
from rsna.evaluation.score_text import by_name
from rsna.evaluation.scores import describe
from rsna.evaluation.threshold import best_point


def score_file(cfg: Config) -> None:
    """Print the score of the file predictions= against labels=. Raises UserError for images without labels."""
    path, labels_csv = Path(cfg.predictions), Path(cfg.labels or Path(cfg.input) / LABELS_CSV)
    labels = read_labels(labels_csv)
    is_submission = path.is_file() and set(SUBMISSION_COLUMNS) <= set(read_table(path, ["patientId"]).columns)
    predictions = parse_submission(path) if is_submission else read_predictions(path)
    ids = predictions["patientId"].drop_duplicates().tolist()
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} images have no row in {labels_csv}, such as {min(unknown)}; set labels="
        )
    truth = of_images(truth_boxes(labels), ids)
    kept = keep_confident(predictions, threshold_for(cfg, predictions, truth, is_submission))
    scores = describe(kept, truth, people_of_images(cfg, ids), cfg.bootstrap, cfg.seed)
    print_file_scores(path, scores, labels["patientId"].nunique())


def threshold_for(cfg: Config, predictions: pd.DataFrame, truth: pd.DataFrame, is_submission: bool) -> float:
    """threshold=, or none for a submission, or the best for a table."""
    if cfg.threshold != "auto":
        return float(cfg.threshold)
    if is_submission:
        return -np.inf
    threshold = best_point(predictions, truth).threshold
    print(f"threshold {threshold:.4f}: chosen on these very labels, so the score is too high; or set threshold=")
    return threshold


def people_of_images(cfg: Config, ids: list[str]) -> pd.Series:
    """patientId -> person; an image that the mapping lacks is a person of its own."""
    alone, people = pd.Series(ids, index=ids), read_people(Path(cfg.input))
    return alone if people is None else people.reindex(ids).fillna(alone)


def print_file_scores(path: Path, scores: dict[str, Any], n_labelled: int) -> None:
    if scores["images"] < n_labelled:
        print(f"scored {scores['images']} images; {n_labelled - scores['images']} labelled images are not in {path}")
    if not scores["per_iou"]:
        raise UserError(f"{path}: no image counts: there is neither a truth box nor a prediction")
    low, high = scores["interval"]
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    print(by_name("mAP by IoU threshold", scores["per_iou"], 3))
    print(f"{scores['images']} images, {scores['positives']} positive, {scores['with_box']:.1%} with a box")
    print(f"IoU of the most confident box with the largest truth box, on positives: {scores['IoU']:.4f}")
