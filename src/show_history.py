"""Plot losses, learning rates and scores over the epochs of each fold, and print them beside the fast.ai post's.

./run.sh show_history [name=...] [fold=0..4]   -> working/<name>/history.png
"""

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.data.competition import read_folds
from rsna.reporting.training_pictures import compare_with_post, draw_histories, read_histories


def main(cfg: Config) -> None:
    histories = read_histories(cfg)
    path = cfg.run_dir / "history.png"
    draw_histories(histories, f"run {cfg.name}", path)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    print(compare_with_post(histories, all_negative=1 - folds["target"].mean()))
    print(f"history -> {path}")


if __name__ == "__main__":
    run(main)
