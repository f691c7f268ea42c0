"""Provenance: what is current, what differs; a workspace may be moved, copied and touched."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from rsna.core.artifacts import current_manifest, differences, is_current, record, require, with_settings, withdraw
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.stages import FREE_TO_USERS, STAGES, files_of

RUN = ["n_folds=2", "size=64", "weights=none", "name=first"]
INDEX = "patientId,split,status,reason,scale_x,source_hash,png_hash\n"


def config(root, *words):
    return parse([f"root={root}", *RUN, *words])


def write(cfg, templates, fold=None, text=""):
    for path in files_of(templates, cfg, fold).values():
        path = Path(str(path).partition("#")[0])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text or f"{path.name} of {path.parent.name}")


def finish(cfg, name, fold=None):
    """Make up a command's outputs; its inputs must exist."""
    write(cfg, STAGES[name].outputs, fold)
    record(cfg, name, fold)


@pytest.fixture
def workspace(tmp_path):
    """Every command has finished; file contents are made up."""
    cfg = config(tmp_path / "workspace")
    write(cfg, STAGES["make_folds"].inputs + STAGES["predict"].inputs[2:3])
    cfg.cache_dir.mkdir(parents=True)
    rows = [f"{split}{k},{split},ok,,0.5,aaaa{k},bbbb{k}\n" for split in ("train", "test") for k in range(3)]
    (cfg.cache_dir / "index.csv").write_text(INDEX + "".join(rows))
    finish(cfg, "make_folds")
    for name in ("train", "predict"):
        for fold in (0, 1):
            finish(cfg, name, fold)
    for name in ("ensemble", "evaluate", "make_submission", "infer", "report"):
        finish(cfg, name)
    return cfg


def everything(cfg):
    """Whether each command is current."""
    folds = {name: cfg.fold_list if "{fold}" in STAGES[name].manifest else [None] for name in STAGES}
    return {name: all(is_current(cfg, name, k) for k in folds[name]) for name in STAGES if name != "make_demo"}


def test_all_is_current_after_a_run(workspace):
    assert set(everything(workspace).values()) == {True}
    require(workspace, "make_submission")


def test_a_workspace_that_was_copied_moved_and_touched_is_current(workspace, tmp_path):
    moved = tmp_path / "elsewhere" / "with another # name"
    shutil.copytree(workspace.root, moved)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert set(everything(config(moved)).values()) == {True}
    assert all(str(tmp_path) not in path.read_text() for path in moved.rglob("*.json"))


@pytest.mark.parametrize(
    ("change", "first", "message"),
    [
        ("input/stage_2_train_labels.csv", "make_folds", "made from another input/stage_2_train_labels.csv"),
        ("folds/folds.csv", "make_folds", "folds.csv: not as make_folds wrote it"),
        ("working/first/fold1/best.pt", "train", "best.pt: not as train wrote it"),
        ("working/first/fold0/valid.csv", "predict", "fold0/valid.csv: not as predict wrote it"),
        ("working/first/oof.csv", "ensemble", "oof.csv: not as ensemble wrote it"),
        ("working/first/scores.json", "evaluate", "scores.json: not as evaluate wrote it"),
        ("submissions/first.csv", "make_submission", "first.csv: not as make_submission wrote it"),
    ],
)
def test_a_change_is_named_however_far_upstream(workspace, change, first, message):
    path = Path(workspace.root) / change
    path.write_text("something else")
    assert not everything(workspace)[first]
    own_fold = int((re.findall(r"fold(\d)", change) or [0])[0])
    # the report and infer check the scores, not the submission
    unaware = ("report", "infer") if first == "make_submission" else ()
    for name in [name for name in list(STAGES)[list(STAGES).index(first) :] if name not in unaware]:
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            require(workspace, name, own_fold if "{fold}" in STAGES[name].manifest else None)


def test_another_png_library_changes_nothing_but_another_source_does(workspace):
    index = workspace.cache_dir / "index.csv"
    index.write_text(index.read_text().replace("bbbb1", "cccc1"))
    assert everything(workspace)["train"]
    index.write_text(index.read_text().replace("train1,train,ok,,0.5,aaaa1", "train1,train,ok,,0.5,dddd1"))
    assert not everything(workspace)["train"]
    with pytest.raises(UserError, match="made from another cached images, train"):
        require(workspace, "train", 0)


def test_a_deleted_input_is_not_a_changed_input(workspace):
    """The training images may be deleted, or missing on a machine that only predicts."""
    shutil.rmtree(workspace.cache_dir)
    (Path(workspace.input) / "stage_2_train_labels.csv").unlink()
    require(workspace, "evaluate")


def test_settings_are_compared_on_demand(workspace):
    other = config(workspace.root, "lr=0.5", "precision=float32")
    require(other, "train", 0)
    with pytest.raises(UserError, match=r"other settings or files \(precision: auto -> float32; lr: 0.001 -> 0.5\)"):
        require(other, "train", 0, settings=True)
    only_precision = config(workspace.root, "precision=float32")
    require(only_precision, "train", 0, settings=True, ignore=FREE_TO_USERS)
    with pytest.raises(UserError, match=r"run: \./run\.sh train .*fold=1"):
        require(other, "train", 1, settings=True)


def test_files_are_found_by_the_settings_that_made_them(workspace):
    """`evaluate name=first` without size= must not compare with the cache of another size."""
    require(parse([f"root={workspace.root}", "name=first"]), "evaluate")


def test_a_missing_manifest_names_its_command(workspace):
    withdraw(workspace, "predict", 1)
    assert not is_current(workspace, "predict", 1)
    with pytest.raises(UserError, match=r"fold1/predict\.json: no such file.*run: \./run\.sh predict .*fold=1"):
        require(workspace, "predict", 1)


def test_runs_are_fused_from_all_of_their_folds(workspace):
    second = config(workspace.root, "name=second")
    for fold in (0, 1):
        finish(second, "train", fold)
        finish(second, "predict", fold)
    both = config(workspace.root, "name=both", "runs=first,second")
    finish(both, "ensemble")
    found = current_manifest(both, "ensemble")
    assert {"first/fold0/valid.csv", "second/fold1/test.csv"} <= set(found["inputs"])
    require(both, "ensemble")
    (second.fold_dir(1) / "test.csv").write_text("other")
    with pytest.raises(UserError, match=r"second/fold1/test\.csv: not as predict wrote it"):
        require(both, "ensemble")
    record(second, "predict", 1)
    with pytest.raises(UserError, match=r"made from another second/fold1/test\.csv .*run: \./run\.sh ensemble"):
        require(both, "ensemble")


@pytest.mark.parametrize(
    ("members", "names"), [("", ["other"]), ("detector,classifier", ["other_detector", "other_classifier"])]
)
def test_a_run_has_the_members_that_it_was_made_of(members, names):
    """Also where the command names a preset with other members."""
    made = with_settings(parse(["preset=best", "name=other"]), {"settings": {"members": members}})
    assert [run.name for run in made.fused_runs] == names


def test_a_weights_file_is_compared_by_its_content(tmp_path):
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    for path in (first, second):
        path.write_text("weights")
    manifests = [current_manifest(config(tmp_path, f"weights={path}"), "train", 0) for path in (first, second)]
    assert manifests[0] == manifests[1]
    second.write_text("other weights")
    assert "weights: " in differences(manifests[0], current_manifest(config(tmp_path, f"weights={second}"), "train", 0))


def test_differences_name_settings_inputs_and_version():
    old = {"version": 1, "settings": {"size": 512, "gone": 1}, "inputs": {"a.csv": "1", "b.csv": "2"}}
    new = {"version": 2, "settings": {"size": 256, "new": 0}, "inputs": {"a.csv": "3", "b.csv": "absent"}}
    expected = "version: 1 -> 2; size: 512 -> 256; new: None -> 0; a.csv: 1 -> 3; gone: 1 -> None"
    assert differences(old, new) == expected
    assert differences(old, old) == ""


BROKEN = [{"fold_list": ["x"]}, {"fold_list": 3}, {"runs": 5}, {"max_boxes": None}, {"wbf_iou": "a"}]


@pytest.mark.parametrize("settings", BROKEN)
def test_a_setting_of_another_type_in_a_manifest_is_named(workspace, settings):
    path = workspace.run_dir / "ensemble.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"settings": content["settings"] | settings}))
    for name in ("ensemble", "evaluate", "report"):
        with pytest.raises(
            UserError, match=rf"ensemble\.json: '{next(iter(settings))}' is not valid; delete it and run"
        ):
            require(workspace, name)


def test_a_command_that_was_killed_is_not_skipped(workspace):
    """Without a manifest outputs may be old; only folds may be the user's own."""
    withdraw(workspace, "ensemble")
    with pytest.raises(UserError, match=r"ensemble\.json: no such file.*run: \./run\.sh ensemble"):
        require(workspace, "report")


def test_the_named_command_repeats_the_settings_of_the_run(workspace):
    other = config(workspace.root, "wbf_iou=0.3", "fold=0")
    record(other, "ensemble")
    (workspace.run_dir / "oof.csv").write_text("other")
    with pytest.raises(UserError, match=r"run: \./run\.sh ensemble .*fold=0 .*wbf_iou=0\.3"):
        require(config(workspace.root), "evaluate")


@pytest.mark.parametrize("content", ["[]", "{", '{"settings": 3}', '{"settings": {}, "inputs": {}, "outputs": []}'])
def test_a_broken_manifest_is_named(workspace, content):
    path = workspace.run_dir / "ensemble.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"ensemble\.json: .*delete it"):
        require(workspace, "ensemble")


def test_manifests_hold_plain_json(workspace):
    content = json.loads((workspace.run_dir / "ensemble.json").read_text())
    assert content["settings"]["fold_list"] == [0, 1]
    assert content["command"] == "ensemble"
