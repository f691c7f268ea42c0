"""The learning-rate range test (Smith 2017) of each phase: the learning rate rises until the loss diverges.

./run.sh find_lr [fold=0] [phases=...]   -> working/<name>/find_lr.{csv,png}; changes no weights on disk
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.tables import write_table
from rsna.reporting.training_pictures import draw_range_test
from rsna.training.lr_finder import find_lr


def main(cfg: Config) -> None:
    for member in cfg.trained_runs:
        table = find_lr(member, member.fold_list[0])
        csv, png = (member.run_dir / f"find_lr.{kind}" for kind in ("csv", "png"))
        write_table(table, csv, mark=b"lr,loss,")
        draw_range_test(table, png)
        print(f"range test -> {csv} and {png}")


if __name__ == "__main__":
    run(main)
