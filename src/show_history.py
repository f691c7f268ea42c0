"""Plot losses, rates and scores over the epochs of each fold, and print them in the terms of the fast.ai post.

python src/show_history.py [name=...] [fold=0..4]   -> working/<name>/history.png
"""

import pandas as pd
from matplotlib.ticker import MaxNLocator

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.tables import read_table
from rsna.data.competition import read_folds
from rsna.reporting.montage import new_figure, save_figure

CURVES = {
    "loss": ["train_loss", "valid_loss"],
    "learning rate of the head, each epoch's highest": ["lr"],
    "AUC, opacity or not": ["AUC"],
    "accuracy": ["accuracy"],
    "IoU on positives": ["IoU"],
    "mAP at each epoch's best threshold": ["mAP"],
}


def main(cfg: Config) -> None:
    columns = ["epoch", "phase", *(column for curves in CURVES.values() for column in curves)]
    maker = command(cfg, "train")
    histories = {fold: read_table(cfg.fold_dir(fold) / "history.csv", columns, maker) for fold in cfg.fold_list}
    draw(cfg, histories)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    print_post(pd.concat(history.tail(1) for history in histories.values()), 1 - folds["target"].mean())
    print(f"history -> {cfg.run_dir / 'history.png'}")


def draw(cfg: Config, histories: dict[int, pd.DataFrame]) -> None:
    """One plot per score, one line per fold; dotted where a phase begins."""
    figure, axes = new_figure(2, 3, f"run {cfg.name}")
    for axis, (title, curves) in zip(axes, CURVES.items(), strict=True):
        for place, (fold, history) in enumerate(histories.items()):
            for style, column in zip(("-", "--"), curves, strict=False):
                label = f"fold {fold}" + (f", {column}" if len(curves) > 1 else "")
                axis.plot(history["epoch"], history[column], style, color=f"C{place}", label=label, marker=".")
        phase = next(iter(histories.values()))["phase"]
        for epoch in phase.index[phase != phase.shift()][1:]:
            axis.axvline(epoch + 0.5, linestyle=":", color="0.5")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize="small")
    save_figure(figure, cfg.run_dir / "history.png")


def print_post(last: pd.DataFrame, all_negative: float) -> None:
    """The last epochs' scores, mean over folds, beside the post's figures and what these hide."""
    mean = last.mean(numeric_only=True)
    spread = f"mean over {len(last)} folds" if len(last) > 1 else "one fold"
    print(f"validation scores after the last epoch, {spread}; L1 in pixels of a 512 px picture:")
    print(f"  accuracy {mean['accuracy']:.4f} (post: .8278; saying 'no opacity' to every image: {all_negative:.4f})")
    print(f"  L1 {mean['L1_post']:.1f} with the whole image as the truth of negatives (post: 39.1)")
    print(f"  L1 {mean['L1']:.1f} and IoU {mean['IoU']:.4f} on positives, AUC {mean['AUC']:.4f}, mAP {mean['mAP']:.4f}")


if __name__ == "__main__":
    run(main)
