"""Trackers show what history.csv holds, change no result, and stop nothing when they fail."""

import sys
import time

import cv2
import numpy as np
import pytest
from helpers.commands import run_command

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.training import tracker
from rsna.training.tracker import Tracker, track

HISTORY = [{"epoch": 1, "phase": "all", "lr": 0.1, "valid_loss": 2.5, "mAP": float("nan")}]
PICTURE = np.full((8, 8, 3), 200, np.uint8)


def settings(root, kind, name="run"):
    return parse([f"root={root}", f"name={name}", f"tracker={kind}"])


def follow(cfg, resumed=False):
    """Send an epoch and a picture, as training does."""
    with track(cfg, 0, resumed) as found:
        found.log(HISTORY)
        assert found.sink is not None
        found.attempt(lambda: found.sink.show(PICTURE, 1))
        assert found.sink is not None


def read_events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_has_each_epoch_and_training_is_the_same(tmp_path):
    pytest.importorskip("tensorboard")
    words = [f"root={tmp_path}", "demo_train=24", "demo_test=4", "size=64", "n_folds=2", "epochs=2", "weights=none"]
    for name in ("make_demo", "make_folds", "cache_images"):
        assert run_command(name, *words).returncode == 0
    for name, kind in (("shown", "tensorboard"), ("plain", "none")):
        assert run_command("train", *words, f"name={name}", f"tracker={kind}", "fold=0").returncode == 0
    shown, plain = (tmp_path / "working" / name / "fold0" for name in ("shown", "plain"))
    for name in ("best.pt", "last.pt", "history.csv"):
        assert (shown / name).read_bytes() == (plain / name).read_bytes()
    events = read_events(shown / "tensorboard")
    assert [event.step for event in events.Scalars("valid_loss")] == [1, 2]
    (image,) = events.Images("validation")
    pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (2 * (256 + 28), 4 * 256 + 3 * 4, 3)
    again = run_command("train", *words, "name=shown", "fold=0")
    assert "train: fold 0 current" in again.stdout, "the tracker is no part of provenance"


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    follow(settings(tmp_path, "wandb"))
    (run,) = (tmp_path / "working/run/fold0/wandb").glob("offline-run-*/*.wandb")
    ends = time.monotonic() + 30  # wandb's own process writes it
    while b"valid_loss" not in run.read_bytes() and time.monotonic() < ends:
        time.sleep(0.1)
    assert b"valid_loss" in run.read_bytes()
    assert len(list(run.parent.glob("files/media/images/validation_1_*.png"))) == 1


def test_wandb_continues_the_run_of_an_interrupted_training_only(tmp_path, monkeypatch):
    wandb, ids = pytest.importorskip("wandb"), []
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def init(**words):
        ids.append(words["id"])
        (tmp_path / f"working/run/fold0/wandb/offline-run-20261128_0{len(ids)}0000-{ids[-1]}").mkdir(parents=True)
        return original(**words)

    original = wandb.init
    monkeypatch.setattr(wandb, "init", init)
    cfg = settings(tmp_path, "wandb")
    for resumed in (False, True, False):
        follow(cfg, resumed)
    assert ids[0] == ids[1] != ids[2]


def test_mlflow_continues_the_run_of_an_interrupted_training_only(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = settings(tmp_path, "mlflow")
    for resumed in (False, True):
        follow(cfg, resumed)
    client = mlflow.MlflowClient((tmp_path / "working/mlruns").as_uri())
    experiment = client.get_experiment_by_name("rsna-pneumonia").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.data.metrics == {"lr": 0.1, "valid_loss": 2.5}, "what is no number is left out"
    assert run.data.tags["name"] == "run"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["validation-1.png"]
    follow(cfg)  # trained anew
    follow(settings(tmp_path, "mlflow", "other"), resumed=True)
    assert len(client.search_runs([experiment])) == 3


def test_mlflow_without_its_server_does_not_hold_up_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with track(settings(tmp_path, "mlflow"), 0, resumed=False) as found:
        assert found.sink is None
    assert time.monotonic() - started < 60
    assert "training continues without it" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["open", "log"])
def test_a_tracker_that_fails_is_one_line(tmp_path, monkeypatch, capsys, when):
    class Broken:
        def __init__(self, *_):
            if when == "open":
                raise ConnectionError("the server is away\nand more")

        def log(self, *_):
            raise ConnectionError("the server is away\nand more")

        def close(self):
            pytest.fail("nothing is left to close")

    monkeypatch.setitem(tracker.SINKS, "tensorboard", Broken)
    with track(settings(tmp_path, "tensorboard"), 0, resumed=False) as found:
        found.log(HISTORY)
        found.log(HISTORY)
    assert capsys.readouterr().out == "tracker=tensorboard: the server is away; training continues without it\n"


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=f"this needs {kind}; run: pip install -r requirements-track.txt"):
        Tracker(settings(tmp_path, kind), 0, resumed=False)
