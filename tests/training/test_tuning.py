"""tune: what may vary, trials that were stopped, and the whole search on a tiny competition."""

import multiprocessing
import subprocess
import sys

import pandas as pd
import pytest
from helpers.commands import SRC, run_command

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.registry import settings_of
from rsna.training.best_trial import judge
from rsna.training.search_space import parse_space, trial_config
from rsna.training.tuning import open_study, take_trial, write_trials

optuna = pytest.importorskip("optuna", reason="pip install -r requirements-tune.txt")


def settings(root, space="lr=1e-4..1e-2:log", *words):
    return parse([f"root={root}", "name=search", f"space={space}", *words], settings_of)


def test_each_kind_of_setting_can_vary(tmp_path):
    cfg = settings(tmp_path, "lr=1e-4..3e-3:log flip=.1..1 epochs=4..8 tta=plain|plain,hflip fpn_channels=64|128")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    values = {key: suggest(trial) for key, suggest in parse_space(cfg).items()}
    assert 1e-4 <= values["lr"] <= 3e-3
    assert 0.1 <= values["flip"] <= 1
    assert values["epochs"] in range(4, 9)
    made = trial_config(cfg, "trial007", values)
    assert (made.lr, made.epochs, made.tta) == (values["lr"], values["epochs"], values["tta"])
    assert str(made.run_dir) == f"{tmp_path}/working/search/trials/trial007"
    assert made.space == ""


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("", "must not be empty"),
        ("speed=1..2", "space: speed=1..2: not a setting of training, augmentation"),
        ("seed=1..2", "not a setting of training"),
        ("lr=1e-3", r"must be lr=low\.\.high"),
        ("lr=2..1", "the first number must be below the second"),
        ("lr=1e-4...1e-2", r"must be lr=low\.\.high"),
        ("rotate=0..15:log", "with :log must start above 0"),
        ("epochs=1.5..3.7", "takes whole numbers"),
        ("batch_size=4|4", r"must be batch_size=low\.\.high"),
        ("lr=1e-4..1e-2 lr=1e-3..1e-2", "lr is there twice"),
        ("lr='1e-4..1e-2", "close or remove the quotation mark"),
        ("lr=1e-3..50", "lr=50.0: must be from"),
        ("tta=plain|sideways", "views are"),
        ("flip=0|yes", "flip is a number"),
    ],
)
def test_a_space_without_sense_is_one_line(tmp_path, space, message):
    with pytest.raises(UserError, match=message):
        parse_space(settings(tmp_path, space))


@pytest.mark.parametrize(
    ("word", "message"), [("preset=best", "tune each of them"), ("model=classifier", "predicts no boxes")]
)
def test_a_run_without_boxes_of_its_own_is_not_tuned(tmp_path, word, message):
    with pytest.raises(UserError, match=message):
        parse_space(settings(tmp_path, "lr=1E-4..1E-2:log", word))


@pytest.mark.parametrize(
    ("best", "middle", "again", "words"),
    [
        (0.3, 0.2, 0.25, ", which keeps 50% of its lead over the median"),
        (0.3, 0.2, 0.4, ", which keeps 100% of its lead over the median"),
        (0.3, 0.2, 0.2, ", which is not above the median: the lead was luck"),
        (0.2, 0.2, 0.3, ""),
    ],
)
def test_what_is_left_of_the_lead(best, middle, again, words):
    assert judge(best, middle, again) == words


def test_trials_without_a_duration_have_a_table(tmp_path):
    cfg = settings(tmp_path)
    cfg.run_dir.mkdir(parents=True)
    study = open_study(optuna, cfg)
    study.ask()
    assert write_trials(study, cfg.run_dir)["seconds"].isna().all()


def test_a_study_goes_on_only_with_its_own_settings(tmp_path):
    cfg = settings(tmp_path)
    cfg.run_dir.mkdir(parents=True)
    open_study(optuna, cfg)
    open_study(optuna, settings(tmp_path, "lr=1e-4..1e-2:log", "trials=50", "device=cuda:1", "jobs=2"))
    with pytest.raises(UserError, match=r"was started with: .*space=lr=1e-4\.\.1e-2:log"):
        open_study(optuna, settings(tmp_path, "lr=1e-4..1e-2:log", "epochs=3"))


def open_together(barrier, cfg):
    barrier.wait()
    open_study(optuna, cfg)


@pytest.mark.parametrize("attempt", range(5))
def test_several_processes_open_a_new_study_at_the_same_moment(tmp_path, attempt):
    cfg = settings(tmp_path)
    cfg.run_dir.mkdir(parents=True)
    context = multiprocessing.get_context("fork")  # all of them start within a millisecond
    barrier = context.Barrier(6)
    processes = [context.Process(target=open_together, args=(barrier, cfg)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6


def test_a_study_does_not_go_on_with_other_folds(tmp_path):
    cfg = settings(tmp_path)
    cfg.run_dir.mkdir(parents=True)
    cfg.folds_csv.parent.mkdir()
    cfg.folds_csv.write_text("one")
    open_study(optuna, cfg)
    open_study(optuna, cfg)
    cfg.folds_csv.write_text("another")
    with pytest.raises(UserError, match=r"was started with other content of folds/folds\.csv; set another name="):
        open_study(optuna, cfg)


def test_a_search_whose_first_trials_all_fail_stops(tmp_path):
    cfg = settings(tmp_path, "lr=1e-4..1e-2:log", "trials=30")
    cfg.run_dir.mkdir(parents=True)
    study = open_study(optuna, cfg)
    for _ in range(3):
        with take_trial(optuna, study, cfg) as trial:
            assert trial is not None
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with take_trial(optuna, study, cfg) as trial:
        assert trial is None


def test_a_search_that_began_well_goes_on_after_failures(tmp_path):
    cfg = settings(tmp_path, "lr=1e-4..1e-2:log", "trials=30")
    cfg.run_dir.mkdir(parents=True)
    study = open_study(optuna, cfg)
    for state in ("COMPLETE", "FAIL", "FAIL", "FAIL"):
        with take_trial(optuna, study, cfg) as trial:
            study.tell(trial, 0.1 if state == "COMPLETE" else None, optuna.trial.TrialState[state])
    with take_trial(optuna, study, cfg) as trial:
        assert trial is not None


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rsna.core.locks import file_lock
with file_lock(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_stopped_trial_goes_on_and_one_at_work_is_left_alone(tmp_path):
    cfg = settings(tmp_path, "lr=1e-4..1e-2:log", "trials=3")
    cfg.run_dir.mkdir(parents=True)
    study = open_study(optuna, cfg)
    stopped, working = study.ask(), study.ask()
    rate = stopped.suggest_float("lr", 1e-4, 1e-2, log=True)
    words = [sys.executable, "-c", HOLD, str(SRC), str(cfg.run_dir / "locks" / str(working.number))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        found = []
        for _ in range(2):
            with take_trial(optuna, study, cfg) as trial:
                found.append((trial.number, trial.suggest_float("lr", 1e-4, 1e-2, log=True)))
                study.tell(trial, 0.1)
        with take_trial(optuna, study, cfg) as trial:
            assert trial is None
        other.kill()
    assert [number for number, _ in found] == [0, 2]
    assert found[0][1] == rate, "with the values that it had"


def test_what_a_trial_tries_depends_on_its_number_and_those_before(tmp_path):
    """Not on which process takes it, nor on how often the search was stopped; trials at the same moment differ."""
    drawn = []
    for name in ("once", "again"):
        cfg = settings(tmp_path, "lr=1e-4..1e-2:log", f"name={name}", "trials=4")
        cfg.run_dir.mkdir(parents=True)
        drawn.append([])
        study = open_study(optuna, cfg)
        for _ in range(4):
            study = study if name == "once" else open_study(optuna, cfg)
            with take_trial(optuna, study, cfg) as trial:
                drawn[-1].append(trial.suggest_float("lr", 1e-4, 1e-2, log=True))
                study.tell(trial, 0.1)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_the_whole_search(tmp_path):
    words = [f"root={tmp_path}", "demo_train=24", "demo_test=4", "size=64", "n_folds=2", "epochs=1", "weights=none"]
    words += ["workers=0", "bootstrap=10"]
    for name in ("make_demo", "make_folds", "cache_images"):
        assert run_command(name, *words).returncode == 0
    own = [*words, "name=search", "fold=0", "trials=2", "jobs=2", "space=lr=1e-4..1e-2:log flip=0|0.5"]
    result = run_command("tune", *own)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    folder = tmp_path / "working/search"
    assert pd.read_csv(folder / "trials.csv")["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert "the same settings with seed=43: mAP" in result.stdout
    assert "on fold 1, which the search has not seen: mAP" in result.stdout
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("to train it: ./run.sh "))
    assert parse(command.split("./run.sh ")[1].split(), settings_of).name == "search_best"
    compared = run_command("compare", *words, f"working={folder / 'trials'}")
    assert compared.returncode == 0, compared.stderr
    assert "trial001" in compared.stdout
    again = run_command("tune", *own)
    assert " epoch 1/1" not in again.stdout, "what is done is not done again"
    more = run_command("tune", *own, "trials=3")
    assert (more.returncode, more.stderr) == (0, ""), "a search that is continued may find another winner"


@pytest.mark.slow
def test_two_searches_at_once_agree_on_the_winner(tmp_path):
    words = [f"root={tmp_path}", "demo_train=24", "demo_test=4", "size=64", "n_folds=2", "epochs=1", "weights=none"]
    words += ["workers=0", "bootstrap=10"]
    for name in ("make_demo", "make_folds", "cache_images"):
        assert run_command(name, *words).returncode == 0
    own = [*words, "name=search", "fold=0", "trials=2", "space=lr=1e-4..1e-2:log"]
    # processes of their own: run_command takes one command after the other
    argv = [sys.executable, str(SRC / "tune.py"), *own]
    searches = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [search.communicate() for search in searches]
    assert [(search.returncode, err) for search, (_, err) in zip(searches, results, strict=True)] == [(0, "")] * 2
    best = [line for out, _ in results for line in out.splitlines() if line.startswith("best: trial")]
    assert len(best) == 2
    assert best[0] == best[1]
    assert "of 2 trials" in best[0]
