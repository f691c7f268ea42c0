"""Train the folds that are asked for, each into working/<name>/fold<k>/.

    ./run.sh train fold=0..4 [name=...] [size=...] [epochs=...] [weights=...] [jobs=2]

Each fold trains in a process of its own: one that fails does not stop the others.
"""

import gc

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.executor import run_jobs


def main(cfg: Config) -> None:
    jobs = {str(fold): (cfg, fold) for fold in cfg.fold_list}
    failures = run_jobs(train_one, jobs, cfg.jobs)
    failed = {fold: failures[fold] for fold in jobs if fold in failures}
    if failed:
        reasons = "; ".join(f"fold {fold} {reason}" for fold, reason in failed.items())
        rerun = command(cfg, "train", fold=",".join(failed))
        done = ", ".join(fold for fold in jobs if fold not in failed)
        raise UserError(f"{reasons}. {f'Fold {done}: complete. ' if done else ''}Once that is fixed, run: {rerun}")


def train_one(cfg: Config, fold: int) -> None:
    # imported in the fold's own process only: PyTorch takes seconds to start, a quarter of them for collecting
    # garbage among modules that all stay
    gc.disable()
    from rsna.training.fold import train_fold

    gc.freeze()
    gc.enable()
    train_fold(cfg, fold)


if __name__ == "__main__":
    run(main)
