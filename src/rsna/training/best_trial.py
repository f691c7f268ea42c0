"""What the best trial of a search is worth: once more with another seed, and on a fold that the search has not seen."""

import shlex
from statistics import median
from typing import Any

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.execution.folds import run_folds
from rsna.training.search_space import trial_config, words_of
from rsna.training.tuning import score_of, score_run

PLACES = ("preset", "root", "input", "folds", "working")  # the settings that say where compare finds things


def check_best(cfg: Config, study: Any) -> None:
    """Print the best trial, what two checks leave of its lead, and the commands to train and compare."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        raise UserError(f"no trial was finished; see {cfg.run_dir / 'trials.csv'}")
    best, middle = max(done, key=lambda trial: trial.value), median(trial.value for trial in done)
    print(f"best: trial {best.number}, mAP {best.value:.4f}; the median of {len(done)} trials is {middle:.4f}")
    unseen = sorted(set(range(cfg.n_folds)) - set(cfg.fold_list))[:1]
    again, *elsewhere = score_checks(cfg, best.params, unseen)
    kept = "is not above the median: the lead was luck"
    if best.value > middle and again > middle:
        kept = f"keeps {(again - middle) / (best.value - middle):.0%} of its lead over the median"
    print(f"the same settings with seed={cfg.seed + 1}: mAP {again:.4f}, which {kept}")
    if elsewhere:
        new, old = elsewhere
        print(f"on fold {unseen[0]}, which the search has not seen: mAP {new:.4f}; with the usual settings {old:.4f}")
    else:
        print("no fold is left that the search has not seen; leave one out, such as fold=0..3")
    changes = {key: str(value) for key, value in best.params.items()} | {"name": f"{cfg.name}_best", "fold": "all"}
    print(f"to train it: {shlex.join(['./run.sh', *words_of(cfg, **changes)])}")
    places = [word for word in words_of(cfg, working=f"{cfg.run_dir}/trials") if word.partition("=")[0] in PLACES]
    print(f"all trials: {shlex.join(['./run.sh', 'compare', *places])}")


def score_checks(cfg: Config, best: dict[str, Any], unseen: list[int]) -> list[float]:
    """mAP of the best settings with another seed; then, on an unseen fold, of the best and of the usual settings."""
    checks = [trial_config(cfg, "best_other_seed", best, seed=str(cfg.seed + 1))]
    for fold in map(str, unseen):
        checks.append(trial_config(cfg, "best_unseen_fold", best, fold=fold))
        checks.append(trial_config(cfg, "usual_unseen_fold", {}, fold=fold))
    failed = run_folds(run_check, [(run, k) for k, run in enumerate(checks)])
    if failed:
        raise UserError(f"a check of the best trial {next(iter(failed.values()))}; the same command goes on with it")
    return [*map(score_of, checks)]


def run_check(cfg: Config, _: int) -> None:
    score_run(cfg)
