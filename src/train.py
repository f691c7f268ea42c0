"""Train folds into working/<name>/fold<k>/, each in its own process, so that a failure does not stop the others.

./run.sh train fold=0..4 [name=...] [size=...] [epochs=...] [weights=...] [jobs=2] [engine=ray]
"""

import gc

from rsna.startup import run
from rsna.core.config import Config
from rsna.execution.folds import run_each_fold


def main(cfg: Config) -> None:
    run_each_fold(cfg, "train", train_one)


def train_one(cfg: Config, fold: int) -> None:
    # PyTorch takes seconds to import, a quarter of them for garbage collection; this is the fold's own process
    gc.disable()
    from rsna.training.fold import train_fold

    gc.freeze()
    gc.enable()
    train_fold(cfg, fold)


if __name__ == "__main__":
    run(main)
