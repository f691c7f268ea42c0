"""Plot losses, learning rates and scores over the epochs of each fold; print scores next to the fast.ai post's.

./run.sh show_history [name=...] [fold=0..4]   -> working/<name>/history.png
"""

from rsna.startup import run
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.data.competition import read_folds
from rsna.reporting.training_pictures import compare_with_post, draw_histories, read_histories


def main(cfg: Config) -> None:
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    for member in cfg.trained_runs:
        histories, path = read_histories(member), member.run_dir / "history.png"
        draw_histories(histories, f"run {member.name}", path)
        print(f"run {member.name}, {compare_with_post(histories, all_negative=1 - folds['target'].mean())}")
        print(f"history -> {path}")


if __name__ == "__main__":
    run(main)
