"""Search for better settings with Optuna, in working/<name>/; several such commands may share one search.

./run.sh tune name=<run> space="lr=1e-4..3e-3:log encoder_lr=.1..1 box_weight=1|2|4" [trials=30] [fold=0..2] [jobs=2]
-> study.db, trials.csv, tune.png; then trains the best settings again with another seed, and on an unseen fold
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.reporting.training_pictures import draw_study
from rsna.training.best_trial import check_best
from rsna.training.tuning import tune


def main(cfg: Config) -> None:
    study, table, importance = tune(cfg)
    draw_study(table, importance, cfg.run_dir / "tune.png")
    check_best(cfg, study)


if __name__ == "__main__":
    run(main)
