"""The operating point for the images that will be submitted, chosen on out-of-fold images that are like them.

`found` and `false_alarms` (see prior.mean_score) are curves over the threshold. They are smoothed, because the images
are few. The curves of a part of the images are pulled towards those of all images: the fewer images, the more.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.data.boxes import Floats
from rsna.data.competition import LABELS_CSV
from rsna.evaluation.bootstrap import MIDDLE
from rsna.evaluation.metric import box_steps, of_images, top_confidences
from rsna.evaluation.prior import count_bins, mean_score
from rsna.evaluation.threshold import best_point, with_scaled_boxes

CHALLENGE_IMAGES = 26_684  # training images of the challenge
TEST_LIKE_IMAGES = 1_000  # the last of them are the first stage's test set, labelled as the final test set
SCALES = tuple(k / 100 for k in range(70, 111, 5))  # factors on the sides of boxes that are tried
SURFACE_COLUMNS = ["box_scale", "threshold", "score", "found", "false_alarms"]
N_THRESHOLDS = 200
SHRINKAGE = 100  # images of a part at which its own curve and that of all weigh the same; see bench/operating_point.py
BANDWIDTH = 0.2  # of the Gaussian kernel, in standard deviations of the images' log-odds; see bench/operating_point.py


class Images(NamedTuple):
    """Out-of-fold images: predictions, true boxes, and patientId -> person."""

    predictions: pd.DataFrame
    truth: pd.DataFrame
    people: pd.Series


def calibration_images(every: Images, calibrate: str, labelled: pd.Index) -> tuple[Images, str]:
    """The images that calibrate= names, and that in words; labelled: ids in the labels' order. Raises UserError."""
    if calibrate == "auto":
        calibrate = "test_like" if len(labelled) == CHALLENGE_IMAGES else "all"
    if calibrate == "all":
        return every, "all out-of-fold images"
    if calibrate == "test_like":
        chosen = labelled[-min(TEST_LIKE_IMAGES, max(1, len(labelled) // 5)) :]
        words = f"the last {len(chosen)} images of {LABELS_CSV}"
    else:
        chosen, words = read_ids(Path(calibrate), labelled, every.people.index), f"the images of {Path(calibrate).name}"
    people = every.people[every.people.index.isin(chosen)]
    images = Images(of_images(every.predictions, people.index), of_images(every.truth, people.index), people)
    if not 0 < (n_positives := images.truth["patientId"].nunique()) < len(people):
        problem = f"of {words} {len(people)} have out-of-fold predictions and {n_positives} an opacity"
        raise UserError(f"calibrate={calibrate}: {problem}; choose images with and without, or calibrate=all")
    return images, words


def read_ids(path: Path, labelled: pd.Index, predicted: pd.Index) -> pd.Index:
    """The patientIds of a text file, one per line. Raises UserError that names the first line that cannot be used."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a text file with one patientId per line ({error})") from None
    names = {number: name for number, name in enumerate(lines, 1) if name not in ("", "patientId")}  # a header may be
    for number, name in names.items():
        if name not in predicted:
            problem = "has no out-of-fold prediction" if name in labelled else f"is not in {LABELS_CSV}"
            raise UserError(f"{path}, line {number}: patientId {name} {problem}; remove it, or use calibrate=test_like")
    return pd.Index(names.values())


class Surface(NamedTuple):
    """Smoothed curves (draws, scales, thresholds): of the images, then of the same with people drawn anew."""

    scales: Floats
    thresholds: Floats  # falling
    found: Floats
    false_alarms: Floats
    share: Floats  # (draws, 1, 1) fraction of positive images

    @property
    def scores(self) -> Floats:
        return mean_score(self.found, self.false_alarms, self.share)

    def choices(self) -> Floats:
        """The threshold and the box scale (draws, 2) of the highest score."""
        places = self.scores.reshape(len(self.scores), -1).argmax(axis=1)
        scale, threshold = np.divmod(places, N_THRESHOLDS)
        return np.column_stack([self.thresholds[threshold], self.scales[scale]])


class Grid(NamedTuple):
    """Thresholds, even in log-odds, and what smooths curves over them."""

    log_odds: Floats  # falling
    smooth: Floats  # (thresholds, thresholds), a Gaussian kernel


def make_grid(predictions: pd.DataFrame) -> Grid:
    """From the highest to the lowest confidence."""
    boxes = predictions.dropna(subset=["confidence"])
    odds = log_odds(boxes["confidence"])
    low, high = (odds.min(), odds.max()) if len(odds) else (0.0, 0.0)
    margin = float(low == high)  # no boxes, or all equally confident
    grid = np.linspace(high + margin, low - margin, N_THRESHOLDS)
    width = max(BANDWIDTH * float(log_odds(top_confidences(boxes)).std()) if len(boxes) else 0.0, 1e-9)
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2)
    return Grid(grid, (kernel / kernel.sum(axis=1, keepdims=True)).T)


def measure(images: Images, grid: Grid, scales: Sequence[float], n_resamples: int = 0, seed: int = 0) -> Surface:
    """The surface over these box scales and thresholds, and as often again with people drawn anew."""
    person, n = pd.factorize(images.people)[0], images.people.nunique()
    positive, people = images.people.index.isin(images.truth["patientId"]), pd.Series(person, images.people.index)
    kinds = np.stack([np.bincount(person, kind, n) for kind in (positive, ~positive)], axis=1)
    tables = [(images.truth, with_scaled_boxes(images.predictions, scale)) for scale in scales]
    steps = [curve_steps(*both, people, grid.log_odds) for both in tables]
    rng = np.random.default_rng(seed)
    counts, sums = [], []
    # one at a time: all of them together would be n_resamples numbers for each person
    for drawn in chain([np.ones(n)], (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(n_resamples))):
        counts.append(drawn @ kinds)
        sums.append([[np.bincount(at, drawn[who] * value, N_THRESHOLDS) for who, at, value in own] for own in steps])
    images_of_kind = np.maximum(counts, 1e-9)
    curves = np.cumsum(sums, axis=-1) @ grid.smooth / images_of_kind[:, None, :, None]
    share = (images_of_kind[:, 0] / images_of_kind.sum(axis=1))[:, None, None]
    return Surface(np.asarray(scales), 1 / (1 + np.exp(-grid.log_odds)), curves[:, :, 0], curves[:, :, 1], share)


def measure_part(
    part: Images, every: Images, grid: Grid, scales: Sequence[float], n_resamples: int = 0, seed: int = 0
) -> Surface:
    """The surface of a part of all images, each curve pulled towards that of all by SHRINKAGE images of its kind."""
    own, common = (measure(images, grid, scales, n_resamples, seed) for images in (part, every))
    n_positives = part.truth["patientId"].nunique()
    weight, other = (n / (n + SHRINKAGE) for n in (n_positives, len(part.people) - n_positives))
    found = weight * own.found + (1 - weight) * common.found
    return own._replace(found=found, false_alarms=other * own.false_alarms + (1 - other) * common.false_alarms)


def curve_steps(
    truth: pd.DataFrame, predictions: pd.DataFrame, people: pd.Series, grid: Floats
) -> list[tuple[Any, Any, Any]]:
    """What raises the sum of scores, and the number of negative images with a box, as `grid`, log-odds, falls.

    Each as three arrays: person, place in the grid, by how much. people: patientId -> 0, 1, 2 ...
    """
    steps = box_steps(truth, predictions)
    first = np.minimum(np.searchsorted(-grid, -log_odds(steps["confidence"])), len(grid) - 1)
    person = people[steps["patientId"]].to_numpy()
    values = steps["gain"].to_numpy(), steps["newly_counted"].to_numpy()
    return [(person[value != 0], first[value != 0], value[value != 0]) for value in values]


def log_odds(confidence: Any) -> Floats:
    clipped = np.clip(np.asarray(confidence, dtype=float), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def scales_to_try(box_scale: str, on_all: bool) -> tuple[float, ...]:
    """Those of the setting box_scale; of equally good ones the first is taken, which is the nearest to 1.

    The boxes of all images are those that the model was trained on, so they give no reason to scale its own.
    """
    if box_scale != "auto":
        return (float(box_scale),)
    return (1.0,) if on_all else tuple(sorted(SCALES, key=lambda scale: abs(scale - 1)))


def choose_point(every: Images, labelled: pd.Index, cfg: Config) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The surface as a table, and the choice on it for scores.json; see calibration_images for the arguments."""
    images, words = calibration_images(every, cfg.calibrate, labelled)
    scales = scales_to_try(cfg.box_scale, images is every)
    grid = make_grid(every.predictions)
    best = best_point(every.predictions, every.truth, scales)
    if images is every:  # the best threshold as it is: so many images need no smoothing
        surface = measure(every, grid, sorted({*SCALES, *scales}))
        threshold, scale, intervals = best.threshold, best.box_scale, None
    else:
        surface = measure_part(images, every, grid, sorted({*SCALES, *scales}))
        choices = measure_part(images, every, grid, scales, cfg.bootstrap, cfg.seed).choices()
        (threshold, scale), intervals = choices[0].tolist(), np.quantile(choices[1:], MIDDLE, axis=0).T.tolist()
    top = top_confidences(images.predictions)
    bins = count_bins(top, top.index.isin(images.truth["patientId"]))
    cells = np.meshgrid(surface.scales, surface.thresholds, indexing="ij")
    columns = [*cells, surface.scores[0], surface.found[0], surface.false_alarms[0]]
    table = pd.DataFrame({name: cell.ravel() for name, cell in zip(SURFACE_COLUMNS, columns, strict=True)})
    return table, {
        "chosen_on": words,
        "images": len(top),
        "positives": sum(bins["positives"]),
        "bins": bins,
        "threshold": threshold,
        "box_scale": scale,
        "of_all_images": [best.threshold, best.box_scale],
        "intervals": intervals,
        "resampling": [cfg.bootstrap, cfg.seed],
    }
