"""The report's plots: each takes plain numbers and returns SVG text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from rsna.data.boxes import Floats
from rsna.evaluation.error_analysis import thin
from rsna.evaluation.metric import IOU_THRESHOLDS
from rsna.evaluation.operating_point import log_odds
from rsna.reporting import svg


def draw_history(name: str, histories: Mapping[int, pd.DataFrame], columns: Mapping[str, str], label: str) -> str:
    """One line per fold and column (name -> name in the legend) over the epochs."""
    n_lines = len(histories) * len(columns)
    # a few lines have room for their names inside, more of them below
    below = math.ceil(n_lines / 2) if n_lines > 2 else 0
    figure, (axis,) = svg.new_axes(3.0 + 0.19 * below)
    for k, (fold, history) in enumerate(histories.items()):
        marker = "osD^v"[k % 5] if len(history) <= 40 else None
        look: Any = {"color": svg.SERIES[k % 6], "marker": marker, "markersize": 3, "linewidth": 1.4}
        for dash, (column, legend) in zip(svg.DASHES, columns.items(), strict=False):
            words = f"fold {fold}" + (f", {legend}" if legend else "")
            axis.plot(history["epoch"], history[column], dash, label=words, **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel=label)
    if below:
        figure.legend(loc="outside lower center", ncols=2)
    else:
        axis.legend()
    return svg.to_svg(figure, name)


def draw_threshold(name: str, sweep: pd.DataFrame, chosen: float, score: float) -> str:
    """mAP over the confidence threshold, and what was chosen."""
    figure, (axis,) = svg.new_axes()
    curve = thin(sweep.sort_values("threshold"), "threshold", "score")
    axis.plot(curve["threshold"], curve["score"], color=svg.BLUE, linewidth=1.4)
    axis.axvline(chosen, color=svg.RED, linestyle="--", linewidth=1.2)
    axis.plot([chosen], [score], "o", color=svg.RED, markersize=6)
    side = "left" if chosen < 0.5 * sum(axis.get_xlim()) else "right"
    look: Any = {"ha": side, "va": "bottom", "color": svg.INK, "xytext": (0, 3), "textcoords": "offset points"}
    axis.annotate(f" {score:.3f} at {chosen:.3f}", (chosen, score), **look)
    axis.set(xlabel="confidence threshold", ylabel="mAP", ylim=(0, max(score, 0.01) * 1.25))
    return svg.to_svg(figure, name)


def draw_surface(name: str, surface: pd.DataFrame, chosen: tuple[float, float]) -> str:
    """mAP over threshold and box scale as a map; chosen: the threshold and the scale that are marked."""
    figure, (axis,) = svg.new_axes()
    cells = surface.pivot(index="box_scale", columns="threshold", values="score")
    image = axis.pcolormesh(
        log_odds(cells.columns), cells.index, cells, cmap="cividis", shading="nearest", rasterized=True
    )
    axis.plot(log_odds(chosen[0]), chosen[1], "o", color=svg.RED, markersize=7, markeredgecolor=svg.PAPER)
    axis.set(xlabel="log-odds of the confidence threshold", ylabel="factor on the boxes' sides")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="mAP")
    return svg.to_svg(figure, name)


def draw_parts(name: str, parts: pd.DataFrame, scored: Floats) -> str:
    """Stacked bars, one for each IoU threshold: the score, then the loss to each kind of error; together 1."""
    figure, (axis,) = svg.new_axes(3.9)
    bars, bottom = np.arange(len(IOU_THRESHOLDS)), np.zeros(len(IOU_THRESHOLDS))
    shades = (svg.GREEN, svg.BLUE, svg.SKY, svg.ORANGE, svg.PINK, svg.YELLOW, svg.RED, svg.SOFT)
    rows = [("scored", scored), *((part, row.to_numpy()) for part, row in parts.iterrows())]
    for (part, heights), shade, hatch in zip(rows, shades, ("", *svg.HATCHES), strict=True):
        if part == "scored" or heights.sum() > 0:
            look: Any = {"color": shade, "hatch": hatch, "edgecolor": svg.INK, "linewidth": 0.6}
            axis.bar(bars, heights, 0.8, bottom, label=part, **look)
            bottom += heights
    axis.set_xticks(bars, [f"{value:.2f}" for value in IOU_THRESHOLDS])
    axis.set(xlabel="IoU threshold", ylabel="fraction of the possible score", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return svg.to_svg(figure, name)


def draw_calibration(name: str, bins: pd.DataFrame) -> str:
    """Fraction of images with an opacity over their mean confidence, with intervals, beside the diagonal."""
    figure, (axis,) = svg.new_axes()
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    span = [(bins["share"] - bins["low"]).clip(lower=0), (bins["high"] - bins["share"]).clip(lower=0)]
    look: Any = {"color": svg.BLUE, "marker": "o", "markersize": 4, "linewidth": 1.4, "capsize": 2}
    axis.errorbar(bins["confidence"], bins["share"], span, **look)
    axis.annotate("perfectly calibrated", (0.88, 0.97), ha="right", va="top", color=svg.INK, fontsize=9)
    axis.set(xlabel="mean confidence", ylabel="fraction with an opacity", xlim=(0, 1), ylim=(0, 1))
    return svg.to_svg(figure, name)


def draw_roc(name: str, curve: pd.DataFrame, at: tuple[float, float]) -> str:
    """Fraction of the opacities found over that of false alarms, and where the threshold lies."""
    figure, (axis,) = svg.new_axes()
    shown = thin(curve, "false_alarms", "found")
    axis.plot([0, 1], [0, 1], ":", color=svg.SOFT, linewidth=1.2)
    axis.plot(shown["false_alarms"], shown["found"], color=svg.BLUE, linewidth=1.4)
    axis.plot(*([value] for value in at), "o", color=svg.RED, markersize=6)
    axis.annotate("threshold ", at, ha="left", va="top", xytext=(6, -3), textcoords="offset points", color=svg.INK)
    axis.set(xlabel="false alarms on images without opacity", ylabel="opacities found", xlim=(0, 1), ylim=(0, 1.01))
    return svg.to_svg(figure, name)


def draw_overlaps(name: str, iou: Floats) -> str:
    """How many boxes have which IoU; the range of the competition's thresholds is shaded."""
    figure, (axis,) = svg.new_axes()
    axis.axvspan(IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1], color=svg.ORANGE, alpha=0.18, linewidth=0)
    axis.hist(iou, bins=(np.arange(21) / 20).tolist(), color=svg.BLUE, edgecolor=svg.PAPER, linewidth=0.5)
    axis.set(xlabel="IoU with the true box", ylabel="boxes", xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return svg.to_svg(figure, name)


def draw_groups(name: str, table: pd.DataFrame, overall: float) -> str:
    """mAP of each group of images with its interval, groups below each other; the line is the score of all."""
    shown = table.dropna(subset=["mAP"]).reset_index(drop=True)
    starts = shown["group"] != shown["group"].shift()
    heights = np.arange(len(shown)) + 0.9 * starts.cumsum().to_numpy()
    figure, (axis,) = svg.new_axes(0.9 + 0.24 * (len(shown) + len(shown["group"].unique())))
    axis.axvline(overall, color=svg.RED, linestyle="--", linewidth=1.2)
    known = shown["low"].notna()
    axis.hlines(heights[known], shown.loc[known, "low"], shown.loc[known, "high"], color=svg.BLUE, linewidth=1.6)
    axis.plot(shown["mAP"], heights, "o", color=svg.BLUE, markersize=5, linestyle="none")
    heads = [(height - 0.9, group) for height, group in zip(heights[starts], shown.loc[starts, "group"], strict=True)]
    labels = [f"{value} ({n})" for value, n in zip(shown["value"], shown["images"], strict=True)]
    axis.set_yticks([*heights, *(height for height, _ in heads)], [*labels, *(group for _, group in heads)])
    for tick in axis.get_yticklabels()[len(heights) :]:
        tick.set_fontweight("bold")
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.set(xlabel="mAP", ylim=(heights.max(initial=0) + 0.8, -0.6))
    axis.grid(axis="y", visible=False)
    return svg.to_svg(figure, name)


def draw_coverage(name: str, true: Floats, predicted: Floats) -> str:
    """Two maps in one scale: the fraction of the true and of the predicted boxes that cover each pixel."""
    figure, axes = svg.new_axes(2.6, 2)
    highest = max(float(true.max(initial=0)), float(predicted.max(initial=0)), 1e-9)
    for axis, cells, title in zip(axes, (true, predicted), ("true boxes", "predicted boxes"), strict=True):
        image = axis.imshow(100 * cells, cmap="cividis", vmin=0, vmax=100 * highest, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, pad=0.04, label="% of the boxes", aspect=30)
    return svg.to_svg(figure, name)


def series_words(values: Sequence[float], digits: int = 3) -> str:
    """Numbers as alternative text: "0.1, 0.2 and 0.3"."""
    words = [f"{value:.{digits}f}" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
