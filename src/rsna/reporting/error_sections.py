"""The report's sections on errors: where score is lost, calibration, ROC, overlap of boxes."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import brier_score_loss

from rsna.data.boxes import Floats
from rsna.data.competition import CLASSES
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.metric import IOU_THRESHOLDS
from rsna.reporting import svg
from rsna.reporting.sections import Plot, ReportData, Rows, series_words
from rsna.reporting.summary import digits


def losses(data: ReportData) -> tuple[Plot, Rows]:
    """Where score is lost, by kind of error; the parts add up to 1 - mAP."""
    parts, images = analysis.loss_parts(data.truth, data.run.kept, data.classes.astype(object))
    scored = data.by_iou.mean().to_numpy(dtype=float)
    lost = parts.mean(axis=1)
    total = lost.sum(skipna=False)
    fractions = lost / total if total else lost
    # rows by class: only those that apply, where all or none of the classes are known
    superfluous = "unknown" if data.classes.isin(CLASSES).any() else "Normal"
    named = [part for part in analysis.PARTS if images[part] or superfluous not in part]
    rows = [
        [part, str(images[part]), digits(lost[part]), digits(fractions[part], ".1%"), analysis.PARTS[part]]
        for part in named
    ]
    rows.append(["total", str(len(data.scores)), digits(total), digits(fractions.sum(), ".1%"), "1 - mAP"])
    words = ", ".join(f"{part} {lost[part]:.3f}" for part in named)
    alt = f"Of the score that is possible, {scored.mean():.3f} is reached. Lost to: {words}."
    return Plot("losses", draw_parts(parts, scored), alt), rows


def draw_parts(parts: pd.DataFrame, scored: Floats) -> str:
    """Stacked bars, one for each IoU threshold: the score, then the loss to each kind of error; together 1."""
    figure, (axis,) = svg.new_axes(3.9)
    bars, bottom = np.arange(len(IOU_THRESHOLDS)), np.zeros(len(IOU_THRESHOLDS))
    shades = (svg.GREEN, svg.BLUE, svg.SKY, svg.ORANGE, svg.PINK, svg.YELLOW, svg.RED, svg.SOFT)
    rows = [("scored", scored), *((part, row.to_numpy()) for part, row in parts.iterrows())]
    for (part, heights), shade, hatch in zip(rows, shades, ("", *svg.HATCHES), strict=True):
        if part == "scored" or heights.sum() > 0:
            axis.bar(bars, heights, 0.8, bottom, label=part, color=shade, hatch=hatch, edgecolor=svg.INK, linewidth=0.6)
            bottom += heights
    axis.set_xticks(bars, [f"{value:.2f}" for value in IOU_THRESHOLDS])
    axis.set(xlabel="IoU threshold", ylabel="fraction of the possible score", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return svg.to_svg(figure, "losses")


def calibration(data: ReportData) -> Plot:
    """Whether a confidence is the fraction of images with an opacity."""
    positive = data.positive.to_numpy()
    bins = analysis.calibration(data.top, positive)
    figure, (axis,) = svg.new_axes()
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    span = [(bins["share"] - bins["low"]).clip(lower=0), (bins["high"] - bins["share"]).clip(lower=0)]
    look: Any = {"color": svg.BLUE, "marker": "o", "markersize": 4, "linewidth": 1.4, "capsize": 2}
    axis.errorbar(bins["confidence"], bins["share"], span, **look)
    axis.annotate("perfectly calibrated", (0.88, 0.97), ha="right", va="top", color=svg.INK, fontsize=9)
    axis.set(xlabel="mean confidence", ylabel="fraction with an opacity", xlim=(0, 1), ylim=(0, 1))
    error, brier = analysis.calibration_error(bins), brier_score_loss(positive, data.top)
    alt = f"Calibration in {len(bins)} bins: mean confidence {series_words(bins['confidence'].tolist(), 2)}; "
    alt += f"fraction with an opacity {series_words(bins['share'].tolist(), 2)}. "
    alt += f"Expected calibration error {error:.3f}, Brier score {brier:.3f}."
    return Plot("calibration", svg.to_svg(figure, "calibration"), alt)


def roc(data: ReportData) -> Plot | None:
    """None where all images are positive, or none is."""
    curve, at = analysis.roc(data.top, data.positive.to_numpy(), data.run.scores["threshold"])
    if curve.empty:
        return None
    figure, (axis,) = svg.new_axes()
    shown = analysis.thin(curve, "false_alarms", "found")
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    axis.plot(shown["false_alarms"], shown["found"], color=svg.BLUE, linewidth=1.4)
    axis.plot(*([value] for value in at), "o", color=svg.RED, markersize=6)
    axis.annotate("threshold ", at, ha="left", va="top", xytext=(6, -3), textcoords="offset points", color=svg.INK)
    axis.set(xlabel="false alarms on images without opacity", ylabel="opacities found", xlim=(0, 1), ylim=(0, 1.01))
    alt = f"ROC curve with an area of {data.run.scores['AUC']:.3f}. "
    alt += f"At the threshold {at[1]:.1%} of the opacities get a box, and {at[0]:.1%} of the other images."
    return Plot("roc", svg.to_svg(figure, "roc"), alt)


def overlaps(data: ReportData) -> Plot | None:
    """None where no positive image has a box above the threshold."""
    iou = analysis.overlaps(data.truth, data.run.kept)
    if not len(iou):
        return None
    figure, (axis,) = svg.new_axes()
    axis.axvspan(IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1], color=svg.ORANGE, alpha=0.18, linewidth=0)
    axis.hist(iou, bins=(np.arange(21) / 20).tolist(), color=svg.BLUE, edgecolor=svg.PAPER, linewidth=0.5)
    axis.set(xlabel="IoU with the true box", ylabel="boxes", xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    alt = f"{len(iou)} boxes: median IoU {np.median(iou):.3f}; "
    alt += f"{np.mean(iou > 0.4):.1%} above 0.40, {np.mean(iou > 0.75):.1%} above 0.75."
    return Plot("overlaps", svg.to_svg(figure, "overlaps"), alt)
