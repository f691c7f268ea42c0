"""What the report says: each chapter's plots and tables with their words, from the files of a finished run."""

import numpy as np
import pandas as pd

from rsna.data.competition import CLASSES
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.subgroups import in_square, scores_by_group
from rsna.evaluation.threshold import plateau
from rsna.reporting import figures
from rsna.reporting.elements import Facts, Plot, Table, digits

# plot -> title, columns of history.csv and what the legend calls them, label of the axis, how to read it
CURVES: dict[str, tuple[str, dict[str, str], str, str]] = {
    "loss": (
        "Loss",
        {"train_loss": "training", "valid_loss": "validation"},
        "loss",
        "Where validation (dashed) rises while training falls, the network learns its images by heart.",
    ),
    "auc": ("AUC", {"AUC": ""}, "AUC", "How well the confidence tells opacity from none: 1 is perfect, 0.5 is chance."),
    "iou": ("IoU", {"IoU": ""}, "mean IoU on positives", "How far the best box overlaps with the largest true one."),
    "map": (
        "mAP while training",
        {"mAP": ""},
        "mAP",
        "Each epoch is scored by itself, its plain view at its own best threshold: not the score at the top.",
    ),
}
GROUP_TITLES = {
    "view": "View position",
    "sex": "Sex",
    "age": "Age, years",
    "box size": "Largest true box",
    "side": "Side of true boxes",
}


def training(facts: Facts) -> list[Plot]:
    """Losses and scores over the epochs, a line for each fold."""
    plots = []
    for name, (title, columns, label, how) in CURVES.items() if facts.histories else ():
        last = list(columns)[-1]
        ends = [float(history[last].iloc[-1]) for history in facts.histories.values()]
        plots.append(
            Plot(
                name=name,
                title=title,
                svg=figures.draw_history(name, facts.histories, columns, label),
                how=how,
                alt=f"{title} over {max(len(table) for table in facts.histories.values())} epochs, for each of "
                f"{len(ends)} folds. {last} after the last epoch: {figures.series_words(ends)}.",
                source="fold*/history.csv",
                command=facts.command("train"),
            )
        )
    return plots


def fold_table(facts: Facts) -> Table:
    """The line of each fold."""
    rows = [
        [
            f"fold {fold['fold']}",
            *(str(fold[key]) for key in ("images", "positives")),
            *(digits(fold[key], ".4f") for key in ("AUC", "IoU", "mAP")),
        ]
        for fold in facts.run.scores["per_fold"]
    ]
    header = ["", "images", "with opacity", "AUC", "IoU", "mAP"]
    return Table("Each fold, out of fold, at the threshold that all share", header, rows)


def threshold(facts: Facts) -> Plot:
    """mAP over the threshold and the choice."""
    chosen, score = facts.run.scores["threshold"], facts.run.scores["mAP"]
    near = plateau(facts.sweep)
    return Plot(
        name="threshold",
        title="mAP against the threshold",
        svg=figures.draw_threshold("threshold", facts.sweep, chosen, score),
        how="Boxes below the threshold are not submitted. A broad top forgives a threshold that is a little off; a "
        "narrow peak is luck. The dashed line is the choice.",
        alt=f"mAP against the confidence threshold: highest, {score:.4f}, at {chosen:.4f}; without a break within 5 % "
        f"of that from {near.min():.4f} to {near.max():.4f}.",
        source="threshold.csv",
        command=facts.command("evaluate"),
    )


def threshold_table(facts: Facts) -> Table | None:
    """What each fold would have chosen without a look at itself; None with a single fold."""
    chosen = facts.run.scores.get("cross_fitted_thresholds", {})
    folds = [fold for fold in facts.run.scores["per_fold"] if fold["cross_fitted_mAP"] is not None]
    rows = [
        [
            f"fold {fold['fold']}",
            digits(chosen.get(str(fold["fold"])), ".4f"),
            digits(fold["cross_fitted_mAP"], ".4f"),
            digits(fold["mAP"], ".4f"),
        ]
        for fold in folds
    ]
    header = ["", "threshold chosen on the other folds", "mAP there", "mAP at the common threshold"]
    return Table("How far the choice depends on the images it is made on", header, rows) if rows else None


def costs(facts: Facts) -> tuple[Plot, Table]:
    """What the score loses, and to what; the parts add up to 1 - mAP."""
    parts, images = analysis.loss_parts(facts.truth, facts.kept, facts.classes.astype(object))
    scored = facts.by_iou.mean().to_numpy(dtype=float)
    lost = {part: float(parts.loc[part].to_numpy().mean()) for part in analysis.PARTS}
    total = sum(lost.values())
    shares = {part: value / total if total else 0.0 for part, value in lost.items()}
    # parts by class are of no interest where all or none of the classes are known
    needless = "unknown" if facts.classes.isin(CLASSES).any() else "Normal"
    named = [part for part in analysis.PARTS if images[part] or needless not in part]
    rows = [
        [part, str(images[part]), digits(lost[part], ".4f"), digits(shares[part], ".1%"), analysis.PARTS[part]]
        for part in named
    ]
    every = digits(sum(shares.values()), ".1%")
    rows.append(["all of it", str(len(facts.scores)), digits(total, ".4f"), every, "1 - mAP"])
    words = ", ".join(f"{part} {lost[part]:.3f}" for part in named)
    plot = Plot(
        name="costs",
        title="What is scored, and what the rest is lost to",
        svg=figures.draw_parts("costs", parts, scored),
        how="Each bar is one IoU threshold of the metric and adds up to 1; mAP is the mean height of the lowest part. "
        "What grows to the right are boxes that lie near the truth but not on it.",
        alt=f"Of all that can be scored {scored.mean():.3f} is scored. Lost to: {words}.",
        source="oof.csv",
        command=facts.command("ensemble"),
    )
    header = ["part", "images", "lost mAP", "share of the loss", "what it is"]
    return plot, Table("Mean over the images that count and the eight IoU thresholds", header, rows)


def confidence(facts: Facts) -> list[Plot]:
    """Calibration, ROC, and the overlaps of the boxes; those that there is something to show of."""
    plots = (calibration_plot(facts), roc_plot(facts), overlap_plot(facts))
    return [plot for plot in plots if plot]


def calibration_plot(facts: Facts) -> Plot:
    positive = facts.positive.to_numpy()
    bins = analysis.calibration(facts.top, positive)
    error, brier = analysis.calibration_error(bins), analysis.brier(facts.top, positive)
    return Plot(
        name="calibration",
        title="Calibration",
        svg=figures.draw_calibration("calibration", bins),
        how="Each point is a tenth of the images. On the dotted line a confidence of 0.7 means that 7 in 10 have "
        "an opacity; below it the network is too sure. Bars: 95 % intervals. The metric asks for the order only.",
        alt=f"Calibration in {len(bins)} bins: mean confidence "
        f"{figures.series_words(bins['confidence'].tolist(), 2)}; "
        f"share with an opacity {figures.series_words(bins['share'].tolist(), 2)}. "
        f"Expected calibration error {error:.3f}, Brier score {brier:.3f}.",
        source="oof.csv",
        command=facts.command("ensemble"),
    )


def roc_plot(facts: Facts) -> Plot | None:
    """None where all images are positive, or none is."""
    curve, at = analysis.roc(facts.top, facts.positive.to_numpy(), facts.run.scores["threshold"])
    if curve.empty:
        return None
    return Plot(
        name="roc",
        title="ROC: opacity or not",
        svg=figures.draw_roc("roc", curve, at),
        how="The further to the upper left, the better confidence tells opacity from none. The point is the "
        "threshold. View position alone reaches an area of 0.71 on the challenge's images.",
        alt=f"ROC curve with an area of {facts.run.scores['AUC']:.3f}. At the threshold {at[1]:.1%} of the "
        f"opacities get a box, and {at[0]:.1%} of the other images.",
        source="oof.csv",
        command=facts.command("ensemble"),
    )


def overlap_plot(facts: Facts) -> Plot | None:
    """None where no positive image has a box above the threshold."""
    iou = analysis.overlaps(facts.truth, facts.kept)
    if not len(iou):
        return None
    return Plot(
        name="overlaps",
        title="Overlap of boxes with the truth",
        svg=figures.draw_overlaps("overlaps", iou),
        how="Every box above the threshold on an image with an opacity, and its IoU with the true box that it "
        "overlaps most. The metric's thresholds are shaded: right of it a box always counts, left of it never.",
        alt=f"{len(iou)} boxes: median IoU {np.median(iou):.3f}; {np.mean(iou > 0.4):.1%} above 0.40, "
        f"{np.mean(iou > 0.75):.1%} above 0.75.",
        source="oof.csv",
        command=facts.command("ensemble"),
    )


def groups(facts: Facts) -> tuple[Plot, Table]:
    """Scores by view position, sex, age, box size and side."""
    with_box = pd.Series(facts.folds.index.isin(facts.kept["patientId"]), index=facts.folds.index)
    table = scores_by_group(
        facts.groups.rename(columns=GROUP_TITLES),
        facts.scores,
        facts.top,
        facts.positive,
        with_box,
        facts.folds["group"].astype(str),
        facts.n_resamples,
        facts.seed,
    )
    rows = [
        [
            f"{row['group']}: {row['value']}",
            str(row["images"]),
            str(row["positives"]),
            digits(row["with_box"], ".1%"),
            digits(row["AUC"]),
            digits(row["mAP"]),
            f"{digits(row['low'])} to {digits(row['high'])}" if not pd.isna(row["low"]) else "-",
        ]
        for row in table.to_dict("records")
    ]
    scored = table.dropna(subset=["mAP"])
    plot = Plot(
        name="groups",
        title="mAP by group of images",
        svg=figures.draw_groups("groups", table, facts.run.scores["mAP"]),
        how="Points are scores, lines 95 % intervals over people, in brackets the number of images; the dashed line is "
        "the score of all. Groups by box are of images with an opacity only, so they leave out false alarms.",
        alt="mAP by group: "
        + "; ".join(f"{row['group']} {row['value']} {row['mAP']:.3f}" for row in scored.to_dict("records"))
        + ".",
        source="oof.csv and folds.csv",
        command=facts.command("ensemble"),
    )
    header = ["group", "images", "with opacity", "get a box", "AUC", "mAP", "95 % interval"]
    return plot, Table("The same as numbers; a small group's score is hardly more than a guess", header, rows)


def places(facts: Facts) -> Plot:
    """Where true and predicted boxes lie."""
    boxes = [in_square(table, facts.geometry, facts.size) for table in (facts.truth, facts.kept)]
    maps = [analysis.coverage(table) for table in boxes]
    words = [
        f"{len(table)} {kind} boxes{centre_words(table)}"
        for table, kind in zip(boxes, ("true", "predicted"), strict=True)
    ]
    return Plot(
        name="places",
        title="Where boxes lie",
        svg=figures.draw_places("places", *maps),
        how="The brighter a place, the more boxes cover it; both maps share one scale. The patient's right is at the "
        "left. A map of the predictions with fewer or other bright places than the truth shows what is never found.",
        alt=f"Two maps of the picture: {'; '.join(words)}.",
        source="oof.csv",
        command=facts.command("ensemble"),
    )


def centre_words(boxes_xyxy: figures.Floats) -> str:
    """Where the centres of boxes (n, 4) xyxy in [0, 1] are, as words."""
    if not len(boxes_xyxy):
        return ""
    x, y = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]).T / 2
    return f", {np.mean(x < 0.5):.0%} of the centres in the left half and {np.mean(y >= 0.5):.0%} in the lower"
