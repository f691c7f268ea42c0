"""Train folds, each in a process of its own (one that fails stops no other), into working/<name>/fold<k>/.

./run.sh train fold=0..4 [name=...] [size=...] [epochs=...] [weights=...] [jobs=2]
"""

import gc

from rsna.startup import run
from rsna.core.artifacts import is_current
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.executor import run_folds


def main(cfg: Config) -> None:
    for member in cfg.trained_runs:
        if cfg.members:
            print(f"train: run {member.name}", flush=True)
        current = [fold for fold in member.fold_list if is_current(member, "train", fold)]
        if current:
            print(f"train: fold {', '.join(map(str, current))} current -> {member.run_dir}")
        if failed := run_folds(train_one, member, [fold for fold in member.fold_list if fold not in current]):
            reasons = "; ".join(f"fold {fold} {reason}" for fold, reason in sorted(failed.items()))
            again = command(member, "train", fold=",".join(map(str, sorted(failed))))
            raise UserError(f"{reasons}. The other folds are kept. Once that is fixed, run: {again}")


def train_one(cfg: Config, fold: int) -> None:
    # in the fold's own process: PyTorch takes seconds to import, a quarter of them for garbage collection
    gc.disable()
    from rsna.training.fold import train_fold

    gc.freeze()
    gc.enable()
    train_fold(cfg, fold)


if __name__ == "__main__":
    run(main)
