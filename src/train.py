"""Train folds, each in a process of its own (one that fails stops no other), into working/<name>/fold<k>/.

./run.sh train fold=0..4 [name=...] [size=...] [epochs=...] [weights=...] [jobs=2]
"""

import gc

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.executor import run_folds


def main(cfg: Config) -> None:
    failed = run_folds(train_one, cfg)
    if failed:
        reasons = "; ".join(f"fold {fold} {reason}" for fold, reason in sorted(failed.items()))
        done = ", ".join(str(fold) for fold in cfg.fold_list if fold not in failed)
        again = command(cfg, "train", fold=",".join(map(str, sorted(failed))))
        raise UserError(f"{reasons}. {f'Fold {done}: complete. ' if done else ''}Once that is fixed, run: {again}")


def train_one(cfg: Config, fold: int) -> None:
    # in the fold's own process: PyTorch takes seconds to import, a quarter of them for garbage collection
    gc.disable()
    from rsna.training.fold import train_fold

    gc.freeze()
    gc.enable()
    train_fold(cfg, fold)


if __name__ == "__main__":
    run(main)
