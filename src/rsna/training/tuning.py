"""tune: Optuna's search for better settings. A trial is an ordinary run in working/<name>/trials/.

The study is working/<name>/study.db. Several processes, also on a Ray cluster, may work on it. If the process of a
trial is stopped, another one resumes the trial from the last saved epoch.
"""

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.artifacts import hash_inputs
from rsna.core.command_line import command
from rsna.core.config import Config, RunSettings
from rsna.core.errors import UserError, optional
from rsna.core.locks import file_lock
from rsna.core.tables import write_table
from rsna.data.cache import read_index
from rsna.data.competition import read_folds
from rsna.evaluation.scores import evaluate_run, read_scores
from rsna.execution.folds import run_folds
from rsna.inference.ensemble import fuse_run
from rsna.inference.predictor import predict_fold
from rsna.training.fold import train_fold
from rsna.training.search_space import parse_space, trial_config, words_of

MOST_FAILED = 3  # if that many trials fail and none succeeds, the search stops
SECONDS_FOR_OTHERS = 60  # that long a write to the study waits for those of other processes
BEFORE_PRUNING = 5  # trials that are completed first; their median is what later ones are compared with


def tune(cfg: Config) -> tuple[Any, pd.DataFrame, dict[str, float]]:
    """Run trials until cfg.trials have ended, here or in other processes. Returns study, trials.csv and importance_of.

    `jobs` trials run at the same time, each in its own process; with engine=ray on the cluster. Raises UserError for
    an invalid space=, if folds or cached images are missing, and if the process of a trial died.
    """
    optuna = optional("optuna", "requirements-tune.txt")
    parse_space(cfg)
    read_folds(cfg.folds_csv, command(cfg, "make_folds"))
    read_index(cfg.cache_dir, cfg.size)
    (trials := cfg.run_dir / "trials").mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (trials / cfg.cache_dir.name).symlink_to(Path("..", "..", cfg.cache_dir.name))
    study = open_study(optuna, cfg)
    while (ended := sum(trial.state.is_finished() for trial in study.trials)) < cfg.trials and not all_failed(study):
        failed = run_folds(work_on_trial, [(cfg, k) for k in range(ended, cfg.trials)])
        if failed:
            write_trials(study, cfg.run_dir)
            raise UserError(f"a trial {next(iter(failed.values()))}; the same command resumes it")
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # in other processes
            with file_lock(cfg.run_dir / "locks" / str(trial.number), wait=True):
                pass
    table = write_trials(study, cfg.run_dir)
    if all_failed(study):
        raise UserError(f"each of the first {MOST_FAILED} trials failed, see above; set another space= and name=")
    return study, table, importance_of(optuna, study)


def write_trials(study: Any, folder: Path) -> pd.DataFrame:
    """Write trials.csv, a row per trial, and return it; no file if there is no trial."""
    table: pd.DataFrame = study.trials_dataframe(attrs=("number", "state", "value", "params", "duration"))
    if len(table):
        table["seconds"] = pd.to_timedelta(table.pop("duration")).dt.total_seconds().round(1)
        write_table(table, folder / "trials.csv")
    return table


def open_study(optuna: Any, cfg: Config) -> Any:
    """The study of this run. Raises UserError if it was started with another space= or other settings.

    One process at a time opens it: Optuna fails where two create the tables at the same moment.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(BEFORE_PRUNING, n_warmup_steps=cfg.total_epochs // 3)
    words = shlex.join([*words_of(anywhere(cfg)), f"space={cfg.space}"])
    inputs = hash_inputs(cfg, "train", cfg.fold_list[0])
    with file_lock(cfg.run_dir / "locks" / "study", wait=True):
        url = f"sqlite:///{(cfg.run_dir / 'study.db').absolute()}"
        storage = optuna.storages.RDBStorage(url, {"connect_args": {"timeout": SECONDS_FOR_OTHERS}})
        study = optuna.create_study(
            storage=storage, pruner=pruner, study_name="tune", direction="maximize", load_if_exists=True
        )
        started_with = {"words": words, "inputs": inputs, **study.user_attrs}
        if started_with["words"] != words:
            raise UserError(f"{cfg.run_dir}/study.db was started with: {started_with['words']}; set another name=")
        if others := [key for key, value in inputs.items() if started_with["inputs"].get(key) != value]:
            raise UserError(
                f"{cfg.run_dir}/study.db was started with other content of {', '.join(others)}; set another name="
            )
        for key in ("words", "inputs"):
            study.set_user_attr(key, started_with[key])
    return study


def all_failed(study: Any) -> bool:
    """Whether at least MOST_FAILED trials have ended, all with an error; the next ones would fail too."""
    ended = [trial.state.name for trial in study.trials if trial.state.is_finished()]
    return len(ended) >= MOST_FAILED and {*ended} == {"FAIL"}


def anywhere(cfg: Config) -> Config:
    """The config with default machine settings, which change no result and may differ between processes."""
    usual = {**Config().only(RunSettings), "name": cfg.name, "fold": cfg.fold, "preset": cfg.preset}
    return replace(cfg, typed={}, **usual)


def work_on_trial(cfg: Config, _: int) -> None:
    """Train and score a trial that no other process works on: an interrupted one, or a new one if any is left."""
    optuna = optional("optuna", "requirements-tune.txt")
    study = open_study(optuna, cfg)
    with take_trial(optuna, study, cfg) as trial:
        if trial is None:
            return
        values = {key: suggest(trial) for key, suggest in parse_space(cfg).items()}
        score, state = None, optuna.trial.TrialState.FAIL
        print(f"trial {trial.number}: {' '.join(f'{key}={value}' for key, value in values.items())}", flush=True)
        try:
            run = trial_config(cfg, f"trial{trial.number:03}", values)
            score, state = score_run(run, partial(report, optuna, trial)), optuna.trial.TrialState.COMPLETE
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        except UserError as error:  # caused by these settings, such as a loss that is not finite
            print(f"trial {trial.number}: {error}")
        study.tell(trial, score, state)
        result = state.name.lower() + ("" if score is None else f", mAP {score:.4f}")
        print(f"trial {trial.number}: {result}; best so far {best_so_far(study)}", flush=True)


@contextmanager
def take_trial(optuna: Any, study: Any, cfg: Config) -> Iterator[Any]:
    """A trial, locked against other processes; None if all have ended or are at work, or if the first ones failed."""
    running, locks = optuna.trial.TrialState.RUNNING, cfg.run_dir / "locks"
    with ExitStack() as held:
        with file_lock(locks, wait=True):
            stopped = [t for t in study.get_trials(states=[running]) if is_free(locks / str(t.number))]
            trial = None
            if stopped or (len(study.trials) < cfg.trials and not all_failed(study)):
                trial = optuna.trial.Trial(study, stopped[0]._trial_id) if stopped else study.ask()
                held.enter_context(file_lock(locks / str(trial.number)))
                study.sampler = optuna.samplers.TPESampler(seed=cfg.seed + trial.number)
        yield trial


def is_free(folder: Path) -> bool:
    """Whether no process holds the lock of a folder."""
    try:
        with file_lock(folder, patience=0):
            return True
    except UserError:
        return False


def score_run(cfg: Config, on_epoch: Callable[[int, list[dict[str, Any]]], None] | None = None) -> float:
    """Train, predict, fuse and score a run; return score_of.

    on_epoch: called with the number of epochs of the folds before, and the history of the current fold.
    """
    for place, fold in enumerate(cfg.fold_list):
        train_fold(cfg, fold, partial(on_epoch, place * cfg.total_epochs) if on_epoch else None)
        predict_fold(cfg, fold)
    fuse_run(cfg)
    evaluate_run(cfg)
    return score_of(cfg)


def score_of(cfg: Config) -> float:
    """The cross-fitted mAP of a run; of a single fold the mAP at its own best threshold."""
    scores = read_scores(cfg.run_dir, command(cfg, "evaluate"))
    return float(scores["mAP"] if scores["cross_fitted_mAP"] is None else scores["cross_fitted_mAP"])


def report(optuna: Any, trial: Any, before: int, history: list[dict[str, Any]]) -> None:
    """Report the validation mAP of the last epoch to Optuna. Raises TrialPruned if the trial is to be stopped."""
    trial.report(history[-1]["mAP"], before + len(history))
    if trial.should_prune():
        raise optuna.TrialPruned


def best_so_far(study: Any) -> str:
    values = {trial.value: trial.number for trial in study.trials if trial.value is not None}
    return f"{max(values):.4f} (trial {values[max(values)]})" if values else "none"


def importance_of(optuna: Any, study: Any) -> dict[str, float]:
    """Setting -> importance, summing to 1; empty if completed trials are too few or have the same score."""
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    alike = len({trial.value for trial in finished}) < 2
    return {} if alike else dict(optuna.importance.get_param_importances(study))
