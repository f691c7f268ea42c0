"""Sections of the report: where score is lost, calibration, ROC, IoU of boxes, subgroups of images, coverage."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import brier_score_loss

from rsna.data.boxes import Floats
from rsna.data.competition import CLASSES
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.metric import IOU_THRESHOLDS
from rsna.evaluation.subgroups import scores_by_group, to_relative
from rsna.reporting import svg
from rsna.reporting.sections import Plot, ReportData, Rows, series_words
from rsna.reporting.summary import digits

GROUP_TITLES = {"view": "View position", "sex": "Sex", "age": "Age, years"}
GROUP_TITLES |= {"box size": "Largest true box", "side": "Side of true boxes"}


def losses(data: ReportData) -> tuple[Plot, Rows]:
    """Where score is lost, by kind of error: a plot, and rows of a table that add up to 1 - mAP."""
    parts, images = analysis.loss_parts(data.truth, data.run.kept, data.classes.astype(object))
    scored = data.by_iou.mean().to_numpy(dtype=float)
    lost = parts.mean(axis=1)
    total = lost.sum(skipna=False)
    fractions = lost / total if total else lost
    # of the rows by class only those that apply: classes are known for all images or for none
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
    """SVG of stacked bars, one per IoU threshold: the score and the loss to each kind of error, which add up to 1."""
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
    """The calibration curve: the fraction of images with an opacity over the confidence."""
    positive = data.positive.to_numpy()
    bins = analysis.calibration(data.top, positive)
    figure, (axis,) = svg.new_axes()
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    span = [(bins["share"] - bins["low"]).clip(lower=0), (bins["high"] - bins["share"]).clip(lower=0)]
    axis.errorbar(bins["confidence"], bins["share"], span, marker="o", markersize=4, capsize=2)
    axis.annotate("perfectly calibrated", (0.88, 0.97), ha="right", va="top", color=svg.INK, fontsize=9)
    axis.set(xlabel="mean confidence", ylabel="fraction with an opacity", xlim=(0, 1), ylim=(0, 1))
    error, brier = analysis.calibration_error(bins), brier_score_loss(positive, data.top)
    alt = f"Calibration in {len(bins)} bins: mean confidence {series_words(bins['confidence'].tolist(), 2)}; "
    alt += f"fraction with an opacity {series_words(bins['share'].tolist(), 2)}. "
    alt += f"Expected calibration error {error:.3f}, Brier score {brier:.3f}."
    return Plot("calibration", svg.to_svg(figure, "calibration"), alt)


def roc(data: ReportData) -> Plot | None:
    """The ROC curve and the threshold's point on it; None if all images are positive or none is."""
    curve, point = analysis.roc(data.top, data.positive.to_numpy(), data.run.scores["threshold"])
    if curve.empty:
        return None
    figure, (axis,) = svg.new_axes()
    shown = analysis.thin(curve, "false_alarms", "found")
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    axis.plot(shown["false_alarms"], shown["found"])
    axis.plot(*point, "o", color=svg.RED, markersize=6)
    axis.annotate("threshold ", point, ha="left", va="top", xytext=(6, -3), textcoords="offset points", color=svg.INK)
    axis.set(xlabel="false alarms on images without opacity", ylabel="opacities found", xlim=(0, 1), ylim=(0, 1.01))
    alt = f"ROC curve with an area of {data.run.scores['AUC']:.3f}. "
    alt += f"At the threshold {point[1]:.1%} of the opacities get a box, and {point[0]:.1%} of the other images."
    return Plot("roc", svg.to_svg(figure, "roc"), alt)


def overlaps(data: ReportData) -> Plot | None:
    """Histogram of the IoU of boxes with true boxes; None if no positive image has a box above the threshold."""
    iou = analysis.overlaps(data.truth, data.run.kept)
    if not len(iou):
        return None
    figure, (axis,) = svg.new_axes()
    axis.axvspan(IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1], color=svg.ORANGE, alpha=0.18, linewidth=0)
    axis.hist(iou, bins=(np.arange(21) / 20).tolist(), edgecolor=svg.PAPER, linewidth=0.5)
    axis.set(xlabel="IoU with the true box", ylabel="boxes", xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    alt = f"{len(iou)} boxes: median IoU {np.median(iou):.3f}; "
    alt += f"{np.mean(iou > 0.4):.1%} above 0.40, {np.mean(iou > 0.75):.1%} above 0.75."
    return Plot("overlaps", svg.to_svg(figure, "overlaps"), alt)


def groups(data: ReportData) -> tuple[Plot, Rows]:
    """Scores by view position, sex, age, box size and side: a plot, and the rows of a table."""
    ids = data.folds.index
    columns = {"score": data.scores, "top": data.top, "positive": data.positive, "person": data.people}
    images = pd.DataFrame(columns, index=ids).assign(with_box=ids.isin(data.run.kept["patientId"]))
    table = scores_by_group(data.groups.rename(columns=GROUP_TITLES), images, data.cfg.bootstrap, data.cfg.seed)
    rows = []
    for row in table.to_dict("records"):
        counts = [str(row["images"]), str(row["positives"]), digits(row["with_box"], ".1%")]
        between = "-" if pd.isna(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}"
        scores = [digits(row["AUC"], ".3f"), digits(row["mAP"], ".3f"), between]
        rows.append([f"{row['group']}: {row['value']}", *counts, *scores])
    scored = table.dropna(subset=["mAP"]).to_dict("records")
    words = [f"{row['group']} {row['value']} {row['mAP']:.3f}" for row in scored]
    return Plot("groups", draw_groups(table, data.run.scores["mAP"]), f"mAP by group: {'; '.join(words)}."), rows


def draw_groups(table: pd.DataFrame, overall: float) -> str:
    """SVG: the mAP of each subgroup with its interval, one below the other; the line is the mAP of all images."""
    shown = table.dropna(subset=["mAP"]).reset_index(drop=True)
    starts = shown["group"] != shown["group"].shift()
    heights = np.arange(len(shown)) + 0.9 * starts.cumsum().to_numpy()
    figure, (axis,) = svg.new_axes(0.9 + 0.24 * (len(shown) + len(shown["group"].unique())))
    axis.axvline(overall, color=svg.RED, linestyle="--", linewidth=1.2)
    known = shown["low"].notna()
    axis.hlines(heights[known], shown.loc[known, "low"], shown.loc[known, "high"], color=svg.BLUE, linewidth=1.6)
    axis.plot(shown["mAP"], heights, "o", color=svg.BLUE, markersize=5, linestyle="none")
    labels = [f"{value} ({n})" for value, n in zip(shown["value"], shown["images"], strict=True)]
    axis.set_yticks([*heights, *(heights[starts] - 0.9)], [*labels, *shown.loc[starts, "group"]])
    for tick in axis.get_yticklabels()[len(heights) :]:
        tick.set_fontweight("bold")
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.set(xlabel="mAP", ylim=(heights.max(initial=0) + 0.8, -0.6))
    axis.grid(axis="y", visible=False)
    return svg.to_svg(figure, "groups")


def coverage(data: ReportData) -> Plot:
    """Two maps: the fraction of true and of predicted boxes that cover each place of the image."""
    true, predicted = (to_relative(table, data.geometry, data.cfg.size) for table in (data.truth, data.run.kept))
    maps = analysis.coverage(true), analysis.coverage(predicted)
    figure, axes = svg.new_axes(2.6, 2)
    highest = max(*(float(cells.max(initial=0)) for cells in maps), 1e-9)
    for axis, cells, title in zip(axes, maps, ("true boxes", "predicted boxes"), strict=True):
        image = axis.imshow(100 * cells, vmin=0, vmax=100 * highest, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, pad=0.04, label="% of the boxes", aspect=30)
    alt = f"Two maps of the image: {len(true)} true boxes{centre_words(true)}; "
    alt += f"{len(predicted)} predicted boxes{centre_words(predicted)}."
    return Plot("coverage", svg.to_svg(figure, "coverage"), alt)


def centre_words(boxes_xyxy: Floats) -> str:
    """Text: how many centres of boxes (n, 4) xyxy in [0, 1] lie in the left and in the lower half; empty for n = 0."""
    if not len(boxes_xyxy):
        return ""
    x, y = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]).T / 2
    return f", {np.mean(x < 0.5):.0%} of the centres in the left half and {np.mean(y >= 0.5):.0%} in the lower"
