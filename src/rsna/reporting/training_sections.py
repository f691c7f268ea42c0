"""The report's section on training: losses, their parts, and scores over the epochs."""

import math
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from rsna.reporting import svg
from rsna.reporting.sections import Plot, ReportData, series_words


class Curve(NamedTuple):
    """A plot over the epochs."""

    name: str
    title: str
    column: str  # of history.csv; for a loss, without the prefix train_ or valid_
    how: str  # how to read the plot
    label: str = ""  # of the y axis; empty: the column


LOSS = Curve("loss", "Loss", "loss", "Where validation (dashed) rises while training falls, the network overfits.")
AT_BEST = "Each epoch is scored without test-time augmentation at its own best threshold: not the score at the top."
SCORES = (
    Curve("auc", "AUC", "AUC", "How well confidence separates opacity from none: 1 is perfect, 0.5 is chance."),
    Curve("iou", "IoU", "IoU", "Overlap of the most confident box with the largest true one.", "mean IoU on positives"),
    Curve("map", "mAP while training", "mAP", AT_BEST),
)
# the parts of the loss in this project's models; other models may have other parts
PARTS = {
    "class": "whether the class probabilities are right",
    "image": "whether there is a box at all",
    "objectness": "where boxes are, and how well they fit",
    "location": "where the centre of the box is",
    "box": "how far position and size of a box are off",
}
HISTORY_COLUMNS = ["epoch", "train_loss", "valid_loss", *(curve.column for curve in SCORES)]


def training(data: ReportData) -> list[tuple[Curve, Plot]]:
    """Plots of losses, their parts, and scores over the epochs, with one line per fold; empty without histories."""
    if not data.histories:
        return []
    # the parts of the loss depend on the model; only those that all folds recorded are shown
    first, *rest = map(loss_parts, data.histories.values())
    shared = [part for part in first if all(part in other for other in rest)]
    how = {part: f"A part of the loss: {PARTS.get(part, part)}." for part in shared}
    parts = [Curve(f"part{k}", f"Loss: {part}", part, how[part]) for k, part in enumerate(shared, 1)]
    sides = {"train_": "training", "valid_": "validation"}
    losses = [(curve, training_plot(data, curve, sides)) for curve in (LOSS, *parts)]
    return losses + [(curve, training_plot(data, curve, {"": ""})) for curve in SCORES]


def loss_parts(history: pd.DataFrame) -> list[str]:
    """The names of the loss's parts: those that have both a train_ and a valid_ column."""
    names = [column.removeprefix("train_") for column in history.columns if column.startswith("train_")]
    return [name for name in names if f"valid_{name}" in history.columns and name != "loss"]


def training_plot(data: ReportData, curve: Curve, sides: dict[str, str]) -> Plot:
    """Plot a curve for each fold; sides: prefix of the curve's column -> its name in the legend."""
    columns = {prefix + curve.column: legend for prefix, legend in sides.items()}
    n_lines = len(data.histories) * len(columns)
    # the legend of up to two lines fits inside the plot; a longer one goes below it
    below = math.ceil(n_lines / 2) if n_lines > 2 else 0
    figure, (axis,) = svg.new_axes(3.0 + 0.19 * below)
    for k, (fold, history) in enumerate(data.histories.items()):
        marker = "osD^v"[k % 5] if len(history) <= 40 else None
        look: Any = {"color": svg.SERIES[k % 6], "marker": marker, "markersize": 3}
        for dash, (column, legend) in zip(svg.DASHES, columns.items(), strict=False):
            words = f"fold {fold}" + (f", {legend}" if legend else "")
            axis.plot(history["epoch"], history[column], dash, label=words, **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel=curve.label or curve.column)
    if below:
        figure.legend(loc="outside lower center", ncols=2)
    else:
        axis.legend()
    last = list(columns)[-1]
    ends = [float(history[last].iloc[-1]) for history in data.histories.values()]
    n_epochs = max(map(len, data.histories.values()))
    alt = f"{curve.title} over {n_epochs} epochs, for each of {len(ends)} folds. "
    alt += f"{last} after the last epoch: {series_words(ends)}."
    return Plot(curve.name, svg.to_svg(figure, curve.name), alt)
