"""The report's sections on errors: where score is lost, calibration and overlap, subgroups, where boxes lie."""

import numpy as np
import pandas as pd

from rsna.data.boxes import Floats
from rsna.data.competition import CLASSES
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.subgroups import scores_by_group, to_relative
from rsna.reporting import figures
from rsna.reporting.sections import Plot, ReportData, Table
from rsna.reporting.summary import digits

GROUP_TITLES = {"view": "View position", "sex": "Sex", "age": "Age, years"}
GROUP_TITLES |= {"box size": "Largest true box", "side": "Side of true boxes"}


def losses(data: ReportData) -> tuple[Plot, Table]:
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
    plot = Plot(
        "losses",
        "Score, and losses by kind of error",
        figures.draw_parts("losses", parts, scored),
        how="Each bar is one IoU threshold of the metric and adds up to 1; mAP is the mean height of the lowest part. "
        "What grows to the right are boxes near the truth that do not overlap enough.",
        alt=f"Of the score that is possible, {scored.mean():.3f} is reached. Lost to: {words}.",
    )
    header = ["error", "images", "lost mAP", "fraction of the loss", "meaning"]
    return plot, Table("Mean over the images that count and the eight IoU thresholds", header, rows)


def calibration(data: ReportData) -> Plot:
    """Whether a confidence is the fraction of images with an opacity."""
    positive = data.positive.to_numpy()
    bins = analysis.calibration(data.top, positive)
    error, brier = analysis.calibration_error(bins), analysis.brier(data.top, positive)
    return Plot(
        "calibration",
        "Calibration",
        figures.draw_calibration("calibration", bins),
        how="Each point is a tenth of the images. On the dotted line a confidence of 0.7 means that 7 in 10 have "
        "an opacity; below it the network is overconfident. Bars: 95 % intervals. The metric depends on the order "
        "only.",
        alt=f"Calibration in {len(bins)} bins: mean confidence "
        f"{figures.series_words(bins['confidence'].tolist(), 2)}; "
        f"fraction with an opacity {figures.series_words(bins['share'].tolist(), 2)}. "
        f"Expected calibration error {error:.3f}, Brier score {brier:.3f}.",
    )


def roc(data: ReportData) -> Plot | None:
    """None where all images are positive, or none is."""
    curve, at = analysis.roc(data.top, data.positive.to_numpy(), data.run.scores["threshold"])
    if curve.empty:
        return None
    return Plot(
        "roc",
        "ROC: opacity or not",
        figures.draw_roc("roc", curve, at),
        how="The further to the upper left, the better confidence separates opacity from none. The point is the "
        "threshold. View position alone reaches an area of 0.71 on the challenge's images.",
        alt=f"ROC curve with an area of {data.run.scores['AUC']:.3f}. At the threshold {at[1]:.1%} of the "
        f"opacities get a box, and {at[0]:.1%} of the other images.",
    )


def overlaps(data: ReportData) -> Plot | None:
    """None where no positive image has a box above the threshold."""
    iou = analysis.overlaps(data.truth, data.run.kept)
    if not len(iou):
        return None
    return Plot(
        "overlaps",
        "Overlap of boxes with the truth",
        figures.draw_overlaps("overlaps", iou),
        how="Every box above the threshold on an image with an opacity, and its IoU with the true box that it "
        "overlaps most. The metric's thresholds are shaded: right of it a box always counts, left of it never.",
        alt=f"{len(iou)} boxes: median IoU {np.median(iou):.3f}; {np.mean(iou > 0.4):.1%} above 0.40, "
        f"{np.mean(iou > 0.75):.1%} above 0.75.",
    )


def groups(data: ReportData) -> tuple[Plot, Table]:
    """Scores by view position, sex, age, box size and side."""
    resampling, ids = data.resampling, data.folds.index
    columns = {"score": data.scores, "top": data.top, "positive": data.positive, "person": resampling.people}
    images = pd.DataFrame(columns, index=ids).assign(with_box=ids.isin(data.run.kept["patientId"]))
    named = data.groups.rename(columns=GROUP_TITLES)
    table = scores_by_group(named, images, resampling.n_resamples, resampling.seed)
    rows = []
    for row in table.to_dict("records"):
        counts = [str(row["images"]), str(row["positives"]), digits(row["with_box"], ".1%")]
        between = "-" if pd.isna(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}"
        scores = [digits(row["AUC"], ".3f"), digits(row["mAP"], ".3f"), between]
        rows.append([f"{row['group']}: {row['value']}", *counts, *scores])
    scored = table.dropna(subset=["mAP"]).to_dict("records")
    words = [f"{row['group']} {row['value']} {row['mAP']:.3f}" for row in scored]
    plot = Plot(
        "groups",
        "mAP by group of images",
        figures.draw_groups("groups", table, data.run.scores["mAP"]),
        how="Points are scores, lines 95 % intervals over patients, in brackets the number of images; the dashed line "
        "is the score of all. Groups by box contain images with an opacity only, so no false alarms.",
        alt="mAP by group: " + "; ".join(words) + ".",
        source="oof.csv and folds.csv",
    )
    header = ["group", "images", "with opacity", "get a box", "AUC", "mAP", "95 % interval"]
    return plot, Table("The same as numbers; the score of a small group is uncertain", header, rows)


def coverage(data: ReportData) -> Plot:
    """Where true and predicted boxes lie."""
    true, predicted = (to_relative(table, data.geometry, data.size) for table in (data.truth, data.run.kept))
    return Plot(
        "coverage",
        "Where boxes lie",
        figures.draw_coverage("coverage", analysis.coverage(true), analysis.coverage(predicted)),
        how="The brighter a pixel, the more boxes cover it; both maps share one scale. The patient's right is on the "
        "left. Where the truth is bright and the predictions are not, opacities are missed systematically.",
        alt=f"Two maps of the image: {len(true)} true boxes{centre_words(true)}; "
        f"{len(predicted)} predicted boxes{centre_words(predicted)}.",
    )


def centre_words(boxes_xyxy: Floats) -> str:
    """In which half the centres of boxes (n, 4) xyxy in [0, 1] are, in words."""
    if not len(boxes_xyxy):
        return ""
    x, y = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]).T / 2
    return f", {np.mean(x < 0.5):.0%} of the centres in the left half and {np.mean(y >= 0.5):.0%} in the lower"
