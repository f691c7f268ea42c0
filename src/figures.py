"""The report's plots as SVG text that stands in a page: its colours follow the page's, light or dark.

Each figure is drawn for the width of a phone; a wider page shows several side by side. Colours are those of Okabe and
Ito, which the colour-blind tell apart, and never the only difference: lines differ in their dashes, bars in their
hatching as well.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis import thin
from metric import IOU_THRESHOLDS

Floats = NDArray[np.float64]

# what the drawing is done in -> what stands in the SVG instead; the page says what they are, by day and by night
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--paper)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--red)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)",
    "#e69f00": "var(--orange)",
    "#56b4e9": "var(--sky)",
    "#f0e442": "var(--yellow)",
}
INK, SOFT, PAPER, BLUE, RED, GREEN, PINK, ORANGE, SKY, YELLOW = COLOURS
SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":")
# lines only: a pattern of circles takes 300 kB of SVG
HATCHES = ("", "///", "---", "\\\\\\", "xxx", "||", "++")
WIDTH = 4.4  # inches of 72 units: at this width in CSS pixels and below the letters are about as large as the page's
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": SOFT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": PAPER,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "svg.fonttype": "none",  # letters stay letters: to be searched, and smaller than outlines
    "svg.hashsalt": "report",  # the same figure, the same bytes
}


def new_axes(height: float = 3.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of the report's width (inches) and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for axis in axes:
        axis.patch.set_alpha(0)
    return figure, axes


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element without size, with the page's colours, and ids that begin with `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", svg)
    # one reader, one sentence: the figure's own words are in the alternative text
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for drawn, shown in COLOURS.items():
        svg = svg.replace(drawn, shown)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)


def styled(draw: Any) -> Any:
    """Let a drawing function run in the report's style, whatever the user's own is."""

    def drawing(*words: Any, **named: Any) -> str:
        with style.context(STYLE, after_reset=True):
            return str(draw(*words, **named))

    drawing.__doc__ = draw.__doc__
    return drawing


@styled
def draw_history(name: str, histories: Mapping[int, pd.DataFrame], columns: Mapping[str, str], label: str) -> str:
    """One line per fold and column (name -> what the legend says) over the epochs."""
    figure, (axis,) = new_axes()
    for place, (fold, history) in enumerate(histories.items()):
        for dash, (column, said) in zip(DASHES, columns.items(), strict=False):
            words = f"fold {fold}" + (f", {said}" if said else "")
            marker = "osD^v"[place % 5]
            axis.plot(
                history["epoch"],
                history[column],
                dash,
                color=SERIES[place % 6],
                marker=marker if len(history) <= 40 else None,
                markersize=3,
                linewidth=1.4,
                label=words,
            )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel=label)
    if len(histories) * len(columns) <= 10:
        axis.legend(ncols=2 if len(columns) > 1 else 1)
    return to_svg(figure, name)


@styled
def draw_threshold(name: str, sweep: pd.DataFrame, chosen: float, score: float) -> str:
    """mAP over the confidence threshold, and what was chosen."""
    figure, (axis,) = new_axes()
    curve = thin(sweep.sort_values("threshold"), "threshold", "score")
    axis.plot(curve["threshold"], curve["score"], color=BLUE, linewidth=1.4)
    axis.axvline(chosen, color=RED, linestyle="--", linewidth=1.2)
    axis.plot([chosen], [score], "o", color=RED, markersize=6)
    axis.annotate(
        f" {score:.3f} at {chosen:.3f}",
        (chosen, score),
        ha="left" if chosen < 0.5 * sum(axis.get_xlim()) else "right",
        va="bottom",
        color=INK,
        xytext=(0, 3),
        textcoords="offset points",
    )
    axis.set(xlabel="confidence threshold", ylabel="mAP", ylim=(0, max(score, 0.01) * 1.25))
    return to_svg(figure, name)


@styled
def draw_parts(name: str, parts: pd.DataFrame, scored: Floats) -> str:
    """Stacked bars, one for each IoU threshold: what is scored, then each part of what is lost; together 1."""
    figure, (axis,) = new_axes(3.9)
    places = np.arange(len(IOU_THRESHOLDS))
    shades = (GREEN, BLUE, SKY, ORANGE, PINK, YELLOW, RED, SOFT)
    bottom = np.zeros(len(places))
    rows = [("scored", scored), *((part, row.to_numpy()) for part, row in parts.iterrows() if row.sum() > 0)]
    order = ["scored", *parts.index]
    for part, heights in rows:
        k = order.index(str(part))
        axis.bar(
            places,
            heights,
            0.8,
            bottom,
            color=shades[k],
            hatch=HATCHES[k - 1] if k else "",
            edgecolor=INK,
            linewidth=0.6,
            label=part,
        )
        bottom += heights
    axis.set_xticks(places, [f"{value:.2f}" for value in IOU_THRESHOLDS])
    axis.set(xlabel="IoU threshold", ylabel="share of what can be scored", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return to_svg(figure, name)


@styled
def draw_calibration(name: str, bins: pd.DataFrame) -> str:
    """Share of images with an opacity over their mean confidence, with intervals, beside the diagonal."""
    figure, (axis,) = new_axes()
    axis.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1.2)
    span = [(bins["share"] - bins["low"]).clip(lower=0), (bins["high"] - bins["share"]).clip(lower=0)]
    axis.errorbar(
        bins["confidence"], bins["share"], span, color=BLUE, marker="o", markersize=4, linewidth=1.4, capsize=2
    )
    axis.annotate("as sure as right", (0.88, 0.97), ha="right", va="top", color=INK, fontsize=9)
    axis.set(xlabel="mean confidence", ylabel="share with an opacity", xlim=(0, 1), ylim=(0, 1))
    return to_svg(figure, name)


@styled
def draw_roc(name: str, curve: pd.DataFrame, at: tuple[float, float]) -> str:
    """Share of the opacities found over the share of false alarms, and where the threshold lies."""
    figure, (axis,) = new_axes()
    shown = thin(curve, "false_alarms", "found")
    axis.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1.2)
    axis.plot(shown["false_alarms"], shown["found"], color=BLUE, linewidth=1.4)
    axis.plot(*([value] for value in at), "o", color=RED, markersize=6)
    axis.annotate("threshold ", at, ha="left", va="top", xytext=(6, -3), textcoords="offset points", color=INK)
    axis.set(xlabel="false alarms on images without opacity", ylabel="opacities found", xlim=(0, 1), ylim=(0, 1.01))
    return to_svg(figure, name)


@styled
def draw_overlaps(name: str, iou: Floats) -> str:
    """How many boxes have which IoU; the range of the competition's thresholds is shaded."""
    figure, (axis,) = new_axes()
    axis.axvspan(IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1], color=ORANGE, alpha=0.18, linewidth=0)
    axis.hist(iou, bins=[float(edge) for edge in np.arange(21) / 20], color=BLUE, edgecolor=PAPER, linewidth=0.5)
    axis.set(xlabel="IoU with the true box", ylabel="boxes", xlim=(0, 1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return to_svg(figure, name)


@styled
def draw_groups(name: str, table: pd.DataFrame, overall: float) -> str:
    """mAP of each group of images with its interval, groups below each other; the line is the score of all."""
    shown = table.dropna(subset=["mAP"]).reset_index(drop=True)
    starts = shown["group"] != shown["group"].shift()
    places = np.arange(len(shown)) + 0.9 * starts.cumsum().to_numpy()
    figure, (axis,) = new_axes(0.9 + 0.24 * (len(shown) + len(shown["group"].unique())))
    axis.axvline(overall, color=RED, linestyle="--", linewidth=1.2)
    known = shown["low"].notna()
    axis.hlines(places[known], shown.loc[known, "low"], shown.loc[known, "high"], color=BLUE, linewidth=1.6)
    axis.plot(shown["mAP"], places, "o", color=BLUE, markersize=5, linestyle="none")
    heads = [(place - 0.9, group) for place, group in zip(places[starts], shown.loc[starts, "group"], strict=True)]
    labels = [f"{value} ({n})" for value, n in zip(shown["value"], shown["images"], strict=True)]
    axis.set_yticks([*places, *(place for place, _ in heads)], [*labels, *(group for _, group in heads)])
    for tick in axis.get_yticklabels()[len(places) :]:
        tick.set_fontweight("bold")
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.set(xlabel="mAP", ylim=(places.max(initial=0) + 0.8, -0.6))
    axis.grid(axis="y", visible=False)
    return to_svg(figure, name)


@styled
def draw_places(name: str, true: Floats, predicted: Floats) -> str:
    """Two maps in one scale: the share of the true and of the predicted boxes that cover each place."""
    figure, axes = new_axes(2.6, 2)
    highest = max(float(true.max(initial=0)), float(predicted.max(initial=0)), 1e-9)
    for axis, cells, title in zip(axes, (true, predicted), ("true boxes", "predicted boxes"), strict=True):
        picture = axis.imshow(100 * cells, cmap="cividis", vmin=0, vmax=100 * highest, extent=(0, 1, 1, 0))
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.7, pad=0.04, label="% of the boxes", aspect=30)
    return to_svg(figure, name)


def series_words(values: Sequence[float], digits: int = 3) -> str:
    """Numbers as alternative text: "0.1, 0.2 and 0.3"."""
    words = [f"{value:.{digits}f}" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
