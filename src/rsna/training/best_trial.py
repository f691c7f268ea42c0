"""Check the best trial of a search: once more with another seed, and on a fold that the search has not seen."""

import shlex
from statistics import median
from typing import Any

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.locks import file_lock
from rsna.execution.folds import run_folds
from rsna.training.search_space import trial_config, words_of
from rsna.training.tuning import score_of, score_run

PLACES = ("preset", "root", "input", "folds", "working")  # the settings that tell compare where files are


def check_best(cfg: Config, study: Any) -> None:
    """Print the best trial, how much of its lead two checks confirm, and the commands to train and compare."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        raise UserError(f"no trial was completed; see {cfg.run_dir / 'trials.csv'}")
    best, middle = max(done, key=lambda trial: trial.value), median(trial.value for trial in done)
    print(f"best: trial {best.number}, mAP {best.value:.4f}; the median of {len(done)} trials is {middle:.4f}")
    unseen = sorted(set(range(cfg.n_folds)) - set(cfg.fold_list))[:1]
    with file_lock(cfg.run_dir / "locks" / "check", wait=True):  # another process may check the same trial
        again, *elsewhere = score_checks(cfg, best, unseen)
    print(f"the same settings with seed={cfg.seed + 1}: mAP {again:.4f}{judge(best.value, middle, again)}")
    if elsewhere:
        where, (new, old) = f"on fold {unseen[0]}, which the search has not seen", elsewhere
        print(f"{where}: mAP {new:.4f}; with the starting settings {old:.4f}")
    else:
        print("no fold is left that the search has not seen; leave one out, such as fold=0..3")
    changes = {key: str(value) for key, value in best.params.items()} | {"name": f"{cfg.name}_best", "fold": "all"}
    print(f"to train it: {shlex.join(['./run.sh', *words_of(cfg, **changes)])}")
    places = [word for word in words_of(cfg, working=f"{cfg.run_dir}/trials") if word.partition("=")[0] in PLACES]
    print(f"all trials: {shlex.join(['./run.sh', 'compare', *places])}")


def judge(best: float, middle: float, again: float) -> str:
    """How much of the lead over the median is left with another seed, in words; empty if there was no lead."""
    if best <= middle:
        return ""
    if again <= middle:
        return ", which is not above the median: the lead was luck"
    return f", which keeps {min(1, (again - middle) / (best - middle)):.0%} of its lead over the median"


def score_checks(cfg: Config, best: Any, unseen: list[int]) -> list[float]:
    """mAP of the best trial with another seed; then, on an unseen fold, of the best and of the starting settings."""
    name = f"trial{best.number:03}"
    checks = [trial_config(cfg, f"{name}_other_seed", best.params, seed=str(cfg.seed + 1))]
    for fold in map(str, unseen):
        checks.append(trial_config(cfg, f"{name}_unseen_fold", best.params, fold=fold))
        checks.append(trial_config(cfg, "start_unseen_fold", {}, fold=fold))
    failed = run_folds(run_check, [(run, k) for k, run in enumerate(checks)])
    if failed:
        raise UserError(f"a check of the best trial {next(iter(failed.values()))}; the same command resumes it")
    return [*map(score_of, checks)]


def run_check(cfg: Config, _: int) -> None:
    score_run(cfg)
