"""Assign every training image to a fold: stratified, with all images of a patient in the same fold.

python src/make_folds.py [n_folds=5] [seed=42] [input=...] [folds=...]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.data.folds import report, update_folds


def main(cfg: Config) -> None:
    report(cfg, *update_folds(cfg))


if __name__ == "__main__":
    run(main)
