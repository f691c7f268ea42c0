"""Pictures of training: augmented images as the network sees them, curves over the epochs, range test, search."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsna.core.artifacts import manifest_path, require
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.files import write_then_rename
from rsna.core.tables import read_table
from rsna.data.boxes import box_area, cxcywh_to_xyxy
from rsna.data.competition import CLASSES
from rsna.data.dataset import ImageDataset, load_fold
from rsna.inference.tiles import BLUE, Picture, draw_tile, stack_rows
from rsna.reporting.montage import SOFTWARE
from rsna.reporting.summary import digits
from rsna.reporting.training_sections import loss_parts
from rsna.training.fold import make_train_set
from rsna.training.lr_finder import STEPS, suggested_lr

PER_ROW, EPOCHS = 6, 4  # most images per row, and most rows, on the sheet of augmented images
CURVES = {
    "loss": ["train_loss", "valid_loss"],
    "learning rate of the head, each epoch's highest": ["lr"],
    "AUC, opacity or not": ["AUC"],
    "accuracy": ["accuracy"],
    "IoU on positives": ["IoU"],
    "mAP at each epoch's best threshold": ["mAP"],
}


def draw_batch_sheet(cfg: Config, fold: int) -> Picture:
    """Some training images of a fold with their boxes, as augmented in several epochs; one row per epoch."""
    dataset = make_train_set(cfg, fold, load_fold(cfg, fold).train)
    rows = choose_rows(dataset)
    # the common prefix is removed, as there is little room below an image
    classes = [name.removeprefix("No Lung Opacity / ") for name in CLASSES]
    names = classes if cfg.num_classes == 3 else ["no opacity", "opacity"]
    epochs = range(min(EPOCHS, cfg.total_epochs))
    sheet: list[list[Picture]] = [[] for _ in epochs]
    for epoch, row in product(epochs, rows):
        sample = dataset[epoch, row]
        image = sample["image"][0].numpy()
        boxes_xyxy = cxcywh_to_xyxy(sample["boxes"].numpy().astype(float)) * len(image)
        inside = boxes_xyxy[box_area(boxes_xyxy) > 0]
        sheet[epoch].append(draw_tile(image, [(inside, BLUE)], f"epoch {epoch + 1}", names[sample["label"]]))
    return stack_rows(sheet)


def choose_rows(dataset: ImageDataset) -> list[int]:
    """The indices of some training images, two thirds of them with a box; the same seed gives the same images."""
    order = np.random.default_rng(dataset.seed).permutation(len(dataset))
    positive = np.array([len(boxes) > 0 for boxes in dataset.samples.boxes_xyxy])[order]
    with_box, without = order[positive], order[~positive]
    n_with = max(PER_ROW * 2 // 3, PER_ROW - len(without))
    return [*with_box[:n_with].tolist(), *without[: PER_ROW - n_with].tolist()]


def read_histories(cfg: Config) -> dict[int, pd.DataFrame]:
    """fold -> history.csv, for the folds of cfg; mAP is NaN for a model without boxes, also where older files have 0.

    Raises UserError if a file is missing, broken, or was changed after training.
    """
    columns = ["epoch", "phase", *(column for curves in CURVES.values() for column in curves)]
    train = command(cfg, "train")
    for fold in cfg.fold_list:
        if manifest_path(cfg, "train", fold).is_file():  # there is none during training
            require(cfg, "train", fold)
    tables = {fold: read_table(cfg.fold_dir(fold) / "history.csv", columns, train) for fold in cfg.fold_list}
    return {fold: table.assign(mAP=table["mAP"].where(table["IoU"].notna())) for fold, table in tables.items()}


def draw_histories(histories: Mapping[int, pd.DataFrame], title: str, path: Path) -> None:
    """Write one plot per score and part of the loss, with a line per fold; dotted lines mark the start of phases."""
    first = next(iter(histories.values()))
    parts = {f"{name} loss": [f"train_{name}", f"valid_{name}"] for name in loss_parts(first)}
    known = {column for history in histories.values() for column in history.columns[history.notna().any()]}
    plots = {name: curves for name, curves in {**CURVES, **parts}.items() if known & set(curves)}
    figure, axes = new_figure(-(-len(plots) // 3), 3, title)
    for axis in axes[len(plots) :]:
        axis.set_axis_off()
    for axis, (name, curves) in zip(axes, plots.items(), strict=False):
        for number, (fold, history) in enumerate(histories.items()):
            for style, column in zip(("-", "--"), curves, strict=False):
                label = f"fold {fold}" + (f", {column}" if len(curves) > 1 else "")
                axis.plot(history["epoch"], history[column], style, color=f"C{number}", label=label, marker=".")
        for epoch in first.index[first["phase"] != first["phase"].shift()][1:]:
            axis.axvline(epoch + 0.5, linestyle=":", color="0.5")
        axis.set(title=name, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize="small")
    save_figure(figure, path)


def compare_with_post(histories: Mapping[int, pd.DataFrame], all_negative: float) -> str:
    """Text: mean scores after the last epoch, next to those of the fast.ai post.

    all_negative: the accuracy of predicting "no opacity" for every image.
    """
    mean = pd.concat(history.tail(1) for history in histories.values()).mean(numeric_only=True)
    spread = f"mean over {len(histories)} folds" if len(histories) > 1 else "one fold"
    return (
        f"validation scores after the last epoch, {spread}; L1 in pixels of a 512 px image:\n"
        f"  accuracy {mean['accuracy']:.4f} (fast.ai post: .8278; 'no opacity' for every image: {all_negative:.4f})\n"
        f"  L1 {digits(mean['L1_post'], '.1f')} with the whole image as the truth of negatives (fast.ai post: 39.1)\n"
        f"  L1 {digits(mean['L1'], '.1f')} and IoU {digits(mean['IoU'])} on positives, AUC {digits(mean['AUC'])}, "
        f"mAP {digits(mean['mAP'])}"
    )


def draw_range_test(table: pd.DataFrame, path: Path) -> None:
    """Write a plot of the loss over the learning rate for each phase; dashed lines mark the suggested peaks.

    table: from lr_finder.find_lr.
    """
    figure, axes = new_figure(1, table["phase"].nunique(), "loss while the learning rate rises")
    for axis, (number, rows) in zip(axes, table.groupby("phase"), strict=True):
        axis.semilogx(rows["lr"], rows["loss"], color="0.8")
        axis.semilogx(rows["lr"], rows["smoothed"])
        axis.axvline(suggested_lr(rows), linestyle="--", color="0.4")
        axis.set(title=f"phase {number}: {rows['part'].iloc[0]}", xlabel="learning rate of the head", ylabel="loss")
        # the first steps hardly learn, so the median of their losses is about where the curve starts
        axis.set_ylim(0.9 * rows["smoothed"].min(), 1.3 * rows["loss"].iloc[: STEPS // 3].median())
    save_figure(figure, path)


def new_figure(rows: int, columns: int, title: str) -> tuple[Any, list[Any]]:
    """A matplotlib figure without a window, and its axes, row by row."""
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    figure.suptitle(title)
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with write_then_rename(path, mark=SOFTWARE.encode()) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": SOFTWARE})


def draw_study(table: pd.DataFrame, importance: dict[str, float], path: Path) -> None:
    """Plot a search's trials (columns number, state, value) with the best so far, and each setting's importance."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    done = table[table["state"] == "COMPLETE"]
    left.plot(done["number"], done["value"], "o", label="trial")
    left.step(done["number"], done["value"].cummax(), where="post", label="best so far")
    left.set(title=f"{len(done)} of {len(table)} trials were finished", xlabel="trial", ylabel="mAP")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    right.barh(list(importance)[::-1], list(importance.values())[::-1])
    right.set(title="importance of each setting", xlabel="fraction of the differences in mAP")
    save_figure(figure, path)
    print(f"trials and importance -> {path}")
