"""The report's sections on groups of images: their scores, and where boxes lie."""

import numpy as np
import pandas as pd

from rsna.data.boxes import Floats
from rsna.evaluation import error_analysis as analysis
from rsna.evaluation.subgroups import scores_by_group, to_relative
from rsna.reporting import svg
from rsna.reporting.sections import Plot, ReportData, Rows
from rsna.reporting.summary import digits

GROUP_TITLES = {"view": "View position", "sex": "Sex", "age": "Age, years"}
GROUP_TITLES |= {"box size": "Largest true box", "side": "Side of true boxes"}


def groups(data: ReportData) -> tuple[Plot, Rows]:
    """Scores by view position, sex, age, box size and side."""
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
    return svg.to_svg(figure, "groups")


def coverage(data: ReportData) -> Plot:
    """Where true and predicted boxes lie."""
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
    """In which half the centres of boxes (n, 4) xyxy in [0, 1] are, in words."""
    if not len(boxes_xyxy):
        return ""
    x, y = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]).T / 2
    return f", {np.mean(x < 0.5):.0%} of the centres in the left half and {np.mean(y >= 0.5):.0%} in the lower"
