"""The report's sections on threshold, training and folds, from the files of a finished run."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from rsna.reporting import figures
from rsna.reporting.elements import Plot, ReportData, Table, digits


class Curve(NamedTuple):
    """A plot over the epochs."""

    name: str
    title: str
    columns: dict[str, str]  # column of history.csv -> its name in the legend
    label: str  # of the axis
    how: str  # how to read it


CURVES = (
    Curve(
        "loss",
        "Loss",
        {"train_loss": "training", "valid_loss": "validation"},
        "loss",
        "Where validation (dashed) rises while training falls, the network overfits.",
    ),
    Curve(
        "auc",
        "AUC",
        {"AUC": ""},
        "AUC",
        "How well confidence separates opacity from none: 1 is perfect, 0.5 is chance.",
    ),
    Curve("iou", "IoU", {"IoU": ""}, "mean IoU on positives", "Overlap of the best box with the largest true one."),
    Curve(
        "map",
        "mAP while training",
        {"mAP": ""},
        "mAP",
        "Each epoch is scored without test-time augmentation at its own best threshold: not the score at the top.",
    ),
)


def training(data: ReportData) -> list[Plot]:
    """Losses, their parts, and scores over the epochs, a line for each fold."""
    if not data.histories:
        return []
    loss, *scores = CURVES
    return [training_plot(data, curve) for curve in (loss, *part_curves(data.histories), *scores)]


def part_curves(histories: dict[int, pd.DataFrame]) -> list[Curve]:
    """A curve for each named part of the loss that all folds recorded; which there are depends on the model."""
    columns = [set(history.columns) for history in histories.values()]
    first = next(iter(histories.values()))
    parts = [
        name.removeprefix("train_") for name in first.columns if name.startswith("train_") and name != "train_loss"
    ]
    shared = [part for part in parts if all({f"train_{part}", f"valid_{part}"} <= names for names in columns)]
    return [
        Curve(
            f"part{number}",
            f"Loss: {part}",
            {f"train_{part}": "training", f"valid_{part}": "validation"},
            part,
            f"The part of the loss that the model calls {part}.",
        )
        for number, part in enumerate(shared, 1)
    ]


def training_plot(data: ReportData, curve: Curve) -> Plot:
    last = list(curve.columns)[-1]
    ends = [float(history[last].iloc[-1]) for history in data.histories.values()]
    n_epochs = max(map(len, data.histories.values()))
    return Plot(
        name=curve.name,
        title=curve.title,
        svg=figures.draw_history(curve.name, data.histories, curve.columns, curve.label),
        how=curve.how,
        alt=f"{curve.title} over {n_epochs} epochs, for each of {len(ends)} folds. {last} after the last epoch: "
        f"{figures.series_words(ends)}.",
        source="fold*/history.csv",
        command=data.command("train"),
    )


def fold_table(data: ReportData) -> Table:
    """The line of each fold."""
    rows = [
        [
            f"fold {fold['fold']}",
            *(str(fold[key]) for key in ("images", "positives")),
            *(digits(fold[key], ".4f") for key in ("AUC", "IoU", "mAP")),
        ]
        for fold in data.run.scores["per_fold"]
    ]
    header = ["", "images", "with opacity", "AUC", "IoU", "mAP"]
    return Table("Each fold, out of fold, at the threshold that all share", header, rows)


def threshold(data: ReportData) -> Plot:
    """mAP over the threshold and the choice."""
    chosen, score = data.run.scores["threshold"], data.run.scores["mAP"]
    near = plateau(data.sweep)
    return Plot(
        name="threshold",
        title="mAP against the threshold",
        svg=figures.draw_threshold("threshold", data.sweep, chosen, score),
        how="Boxes below the threshold are not submitted. A broad maximum tolerates a threshold that is slightly off; "
        "a narrow peak may be chance. The dashed line is the choice.",
        alt=f"mAP against the confidence threshold: highest, {score:.4f}, at {chosen:.4f}; within 5 % "
        f"of that from {near.min():.4f} to {near.max():.4f}.",
        source="threshold.csv",
        command=data.command("evaluate"),
    )


def plateau(sweep: pd.DataFrame) -> pd.Series:
    """The thresholds around the best one, on both sides up to the first whose score is 5 % lower."""
    high = (sweep["score"] >= 0.95 * sweep["score"].max()).to_numpy()
    stretch = np.cumsum(np.diff(high, prepend=False))
    return sweep.loc[stretch == stretch[sweep["score"].to_numpy().argmax()], "threshold"]


def threshold_table(data: ReportData) -> Table | None:
    """The cross-fitted threshold and score of each fold; None with a single fold."""
    chosen = data.run.scores.get("cross_fitted_thresholds", {})
    folds = [fold for fold in data.run.scores["per_fold"] if fold["cross_fitted_mAP"] is not None]
    rows = [
        [
            f"fold {fold['fold']}",
            digits(chosen.get(str(fold["fold"])), ".4f"),
            digits(fold["cross_fitted_mAP"], ".4f"),
            digits(fold["mAP"], ".4f"),
        ]
        for fold in folds
    ]
    header = ["", "threshold chosen on the other folds", "mAP at that", "mAP at the common threshold"]
    return (
        Table("Cross-fitting: how much the choice depends on the images it is made on", header, rows) if rows else None
    )
