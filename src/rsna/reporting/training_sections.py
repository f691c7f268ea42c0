"""The report's section on training: losses, their parts, and scores over the epochs."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from rsna.reporting import figures
from rsna.reporting.sections import Plot, ReportData


class Curve(NamedTuple):
    """A plot over the epochs."""

    name: str
    title: str
    column: str  # of history.csv; for a loss without train_ and valid_
    label: str  # of the axis
    how: str  # how to read it


LOSS = Curve(
    "loss", "Loss", "loss", "loss", "Where validation (dashed) rises while training falls, the network overfits."
)
SCORES = (
    Curve("auc", "AUC", "AUC", "AUC", "How well confidence separates opacity from none: 1 is perfect, 0.5 is chance."),
    Curve("iou", "IoU", "IoU", "mean IoU on positives", "Overlap of the most confident box with the largest true one."),
    Curve(
        "map",
        "mAP while training",
        "mAP",
        "mAP",
        "Each epoch is scored without test-time augmentation at its own best threshold: not the score at the top.",
    ),
)
HISTORY_COLUMNS = ["epoch", "train_loss", "valid_loss", *(curve.column for curve in SCORES)]


def training(data: ReportData) -> list[Plot]:
    """Losses, their parts, and scores over the epochs, a line for each fold."""
    if not data.histories:
        return []
    losses = [LOSS, *part_curves(data.histories)]
    plots = [training_plot(data, curve, {"train_": "training", "valid_": "validation"}) for curve in losses]
    return plots + [training_plot(data, curve, {"": ""}) for curve in SCORES]


def part_curves(histories: Mapping[int, pd.DataFrame]) -> list[Curve]:
    """A curve for each named part of the loss that all folds recorded; which there are depends on the model."""
    first, *others = map(loss_parts, histories.values())
    shared = [part for part in first if all(part in other for other in others)]
    return [
        Curve(f"part{number}", f"Loss: {part}", part, part, f"The part of the loss that the model calls {part}.")
        for number, part in enumerate(shared, 1)
    ]


def loss_parts(history: pd.DataFrame) -> list[str]:
    """The names of the parts of a model's loss: those with both a train_ and a valid_ column."""
    names = [column.removeprefix("train_") for column in history.columns if column.startswith("train_")]
    return [name for name in names if f"valid_{name}" in history.columns and name != "loss"]


def training_plot(data: ReportData, curve: Curve, sides: dict[str, str]) -> Plot:
    """sides: prefix of the curve's column -> its name in the legend."""
    columns = {prefix + curve.column: legend for prefix, legend in sides.items()}
    last = list(columns)[-1]
    ends = [float(history[last].iloc[-1]) for history in data.histories.values()]
    n_epochs = max(map(len, data.histories.values()))
    return Plot(
        curve.name,
        curve.title,
        figures.draw_history(curve.name, data.histories, columns, curve.label),
        curve.how,
        alt=f"{curve.title} over {n_epochs} epochs, for each of {len(ends)} folds. {last} after the last epoch: "
        f"{figures.series_words(ends)}.",
        source="fold*/history.csv",
        writer="train",
    )
