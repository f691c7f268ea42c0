"""The data and types that all sections of the report use, and its sections on threshold, box scale and folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from rsna.core.config import Config
from rsna.data.competition import CLASSES
from rsna.evaluation.error_analysis import thin
from rsna.evaluation.metric import image_scores, top_confidences
from rsna.evaluation.operating_point import log_odds
from rsna.evaluation.runs import Run
from rsna.evaluation.subgroups import groups_of_images, one_of
from rsna.evaluation.threshold import plateau
from rsna.reporting import svg
from rsna.reporting.summary import digits

Rows = list[list[str]]  # rows of a table; the first cell of each is a header


class Plot(NamedTuple):
    """A figure; the template adds what it shows and how to read it."""

    name: str
    svg: str
    alt: str  # text alternative


@dataclass(frozen=True)
class ReportData:
    """All data of the report. Boxes are in original pixels."""

    cfg: Config  # the settings that the run was made with
    run: Run
    truth: pd.DataFrame  # true boxes of the run's images
    folds: pd.DataFrame  # rows of folds.csv of the run's images, index patientId
    geometry: pd.DataFrame  # GEOMETRY_COLUMNS of the cached training images, index patientId
    sweep: pd.DataFrame  # threshold.csv
    surface: pd.DataFrame  # surface.csv
    histories: dict[int, pd.DataFrame]  # fold -> history.csv
    people: pd.Series  # patientId -> person

    @cached_property
    def by_iou(self) -> pd.DataFrame:
        """The score of each image that counts, one column per IoU threshold."""
        return image_scores(self.truth, self.run.kept)

    @cached_property
    def scores(self) -> pd.Series:
        return self.by_iou.mean(axis=1)

    @cached_property
    def classes(self) -> pd.Series:
        return one_of(self.folds["class"], CLASSES)

    @cached_property
    def top(self) -> pd.Series:
        """The highest confidence of each image, in the order of `folds`."""
        return top_confidences(self.run.predictions).reindex(self.folds.index)

    @cached_property
    def positive(self) -> pd.Series:
        return pd.Series(self.folds.index.isin(self.truth["patientId"]), index=self.folds.index)

    @cached_property
    def groups(self) -> pd.DataFrame:
        return groups_of_images(self.folds, self.truth, self.geometry, self.cfg.size)


def series_words(values: Sequence[float], digits: int = 3) -> str:
    """Numbers as text for screen readers: "0.1, 0.2 and 0.3"."""
    words = [f"{value:.{digits}f}" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def fold_rows(data: ReportData) -> Rows:
    """One row per fold: images, positives, AUC, IoU, mAP."""
    rows = []
    for fold in data.run.scores["per_fold"]:
        scores = [digits(fold[key]) for key in ("AUC", "IoU", "mAP")]
        rows.append([f"fold {fold['fold']}", str(fold["images"]), str(fold["positives"]), *scores])
    return rows


def threshold(data: ReportData) -> Plot:
    """The mAP over the threshold, and the chosen threshold."""
    chosen, score = data.run.scores["threshold"], data.run.scores["mAP"]
    near = plateau(data.sweep)
    figure, (axis,) = svg.new_axes()
    curve = thin(data.sweep.sort_values("threshold"), "threshold", "score")
    axis.plot(curve["threshold"], curve["score"])
    axis.axvline(chosen, color=svg.RED, linestyle="--", linewidth=1.2)
    axis.plot(chosen, score, "o", color=svg.RED, markersize=6)
    side = "left" if chosen < 0.5 * sum(axis.get_xlim()) else "right"
    look: Any = {"ha": side, "va": "bottom", "color": svg.INK, "xytext": (0, 3), "textcoords": "offset points"}
    axis.annotate(f" {score:.3f} at {chosen:.3f}", (chosen, score), **look)
    axis.set(xlabel="confidence threshold", ylabel="mAP", ylim=(0, max(score, 0.01) * 1.25))
    alt = f"mAP against the confidence threshold: {score:.4f} at the chosen {chosen:.4f}; "
    alt += f"within 5 % of the highest from {near.min():.4f} to {near.max():.4f}."
    return Plot("threshold", svg.to_svg(figure, "threshold"), alt)


def surface(data: ReportData) -> Plot:
    """A map of mAP over threshold and box scale, on the images that the operating point was chosen on."""
    point, best = data.run.scores["operating_point"], data.surface.nlargest(1, "score").iloc[0]
    figure, (axis,) = svg.new_axes()
    cells = data.surface.pivot(index="box_scale", columns="threshold", values="score")
    image = axis.pcolormesh(log_odds(cells.columns), cells.index, cells, shading="nearest", rasterized=True)
    x, y = log_odds(point["threshold"]), point["box_scale"]
    axis.plot(x, y, "o", color=svg.RED, markersize=7, markeredgecolor=svg.PAPER)
    axis.set(xlabel="log-odds of the confidence threshold", ylabel="factor on the boxes' sides")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="mAP")
    alt = f"Map of mAP over threshold and box scale: highest, {best['score']:.4f} at threshold {best['threshold']:.4f} "
    alt += f"and scale {best['box_scale']:g}; the choice is threshold {point['threshold']:.4f} and scale {y:g}."
    return Plot("surface", svg.to_svg(figure, "surface"), alt)


def cross_fitted_rows(data: ReportData) -> Rows:
    """One row per fold: cross-fitted threshold and mAP, and mAP at the common threshold; empty with a single fold."""
    chosen = data.run.scores["cross_fitted_thresholds"]
    return [
        [f"fold {fold['fold']}", *map(digits, (chosen.get(str(fold["fold"])), fold["cross_fitted_mAP"], fold["mAP"]))]
        for fold in data.run.scores["per_fold"]
        if fold["cross_fitted_mAP"] is not None
    ]
