"""Every input is changed after a finished run, and then every command is run alone: no old result is shown or kept.

The pairs come from the table of provenance, so that a new command is covered once it is declared there.
"""

import json
import os
import re
from pathlib import Path

import pytest
from helpers.finished_run import copy_workspace, run_main, settings, without_networks

from rsna.core.artifacts import manifest_path, read_manifest
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.sources import hash_of
from rsna.core.stages import STAGES, TRAIN_IMAGES, files_of

# commands that write no manifest, and the one whose outputs they show
READERS = {
    "summary": "make_submission",
    "show_submission": "make_submission",
    "show_results": "evaluate",
    "compare": "evaluate",
    "show_history": "train",
}
COMMANDS = {name: name for name in STAGES if name != "make_demo"} | READERS


def upstream(name):
    """A command, and all commands that it depends on, directly or indirectly."""
    return {name, *(other for first in STAGES[name].after for other in upstream(first))}


def inputs_of(command):
    return sorted({template for name in upstream(COMMANDS[command]) for template in STAGES[name].inputs})


PAIRS = [(command, template) for command in COMMANDS for template in inputs_of(command)]


def change(path):
    """Change the content but not the form: the order of rows, or the source of a cached image."""
    path, _, split = str(path).partition("#")
    path = Path(path)
    if path.suffix == ".csv":
        head, first, second, *rest = path.read_text().splitlines(keepends=True)
        lines = [head, second, first, *rest]
        if split:
            rows = path.read_text().splitlines(keepends=True)
            place = next(k for k, row in enumerate(rows) if f",{split}," in row)
            rows[place] = re.sub(r"\b[0-9a-f]{16}\b", "00000000000000ff", rows[place])
            lines = rows
        content = "".join(lines).encode()
    elif path.name == "scores.json":
        content = path.read_bytes() + b"\n"
    elif path.suffix == ".json":
        content = json.dumps(json.loads(path.read_text())[::-1]).encode()
    elif path.suffix == ".txt":
        content = path.read_text().partition("\n")[2].encode()
    else:
        content = path.read_bytes() + b"0"
    assert content != path.read_bytes()
    path.unlink()  # it may be linked
    path.write_bytes(content)


def folds_of(cfg, name):
    return cfg.fold_list if "{fold}" in STAGES[name].manifest else [None]


def untrue(cfg, command):
    """The statements in the manifests behind a command that contradict a file."""
    for name in upstream(COMMANDS[command]):
        for fold in folds_of(cfg, name):
            manifest = read_manifest(manifest_path(cfg, name, fold))
            for kind in ("inputs", "outputs"):
                for key, path in files_of(getattr(STAGES[name], kind), cfg, fold).items():
                    if manifest[kind].get(key) != hash_of(path):
                        yield f"{name}: {key}"


@pytest.mark.parametrize(("command", "template"), PAIRS)
def test_after_a_change_a_command_refuses_or_reruns(finished, tmp_path, monkeypatch, capsys, command, template):
    copy_workspace(finished, tmp_path / "w")
    without_networks(monkeypatch)
    cfg = parse(settings(tmp_path / "w"))
    change(next(iter(files_of([template], cfg, cfg.fold_list[-1]).values())))
    try:
        run_main(command, cfg)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert list(untrue(cfg, command)) == []
    assert not message or re.search("run: |restore|delete|name=", message)
    assert "\n" not in message


# all commands depend on the training images, and some on the test images
OF_IMAGES = [(command, "train") for command, template in PAIRS if template == TRAIN_IMAGES]
OF_IMAGES += [("predict", "test"), ("make_submission", "test")]


@pytest.mark.parametrize(("command", "split"), OF_IMAGES)
def test_every_command_names_a_dicom_that_was_replaced(finished, tmp_path, monkeypatch, capsys, command, split):
    copy_workspace(finished, tmp_path / "w")
    without_networks(monkeypatch)
    cfg = parse(settings(tmp_path / "w"))
    images = tmp_path / f"w/input/stage_2_{split}_images"
    replaced = max(images.iterdir())
    before = replaced.stat()
    text = replaced.read_text()
    replaced.unlink()
    replaced.write_text(text[::-1])
    os.utime(replaced, ns=(before.st_atime_ns, before.st_mtime_ns))  # with equal size and time
    with pytest.raises(UserError, match=r"run: .*cache_images") as caught:
        run_main(command, cfg)
    assert f"{replaced}: not the file that was cached; restore it, or run: " in str(caught.value)


def test_a_copied_touched_or_deleted_dicom_changes_nothing(finished, tmp_path, monkeypatch, capsys):
    copy_workspace(finished, tmp_path / "w")
    cfg = parse(settings(tmp_path / "w"))
    gone, touched, *_ = (tmp_path / "w/input/stage_2_train_images").iterdir()
    gone.unlink()
    touched.touch()
    run_main("summary", cfg)
    assert f"run {cfg.name}" in capsys.readouterr().out


OUTPUTS = {
    "report": "working/first/report.html",
    "show_results": "working/first/results.png",
    "show_history": "working/first/history.png",
    "compare": "working/compare.csv",
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_users_file_under_the_name_of_an_output_is_left_alone(finished, tmp_path, capsys, command):
    copy_workspace(finished, tmp_path / "w")
    cfg, path = parse(settings(tmp_path / "w", "runs=")), tmp_path / "w" / OUTPUTS[command]
    path.unlink(missing_ok=True)
    path.write_text("name,value\nmine,1\n")
    with pytest.raises(UserError, match=rf"{path.name}: a file that this program did not write is in the way; move it"):
        run_main(command, cfg)
    assert path.read_text() == "name,value\nmine,1\n"
    path.rename(path.with_name("mine"))
    for _ in range(2):  # it replaces its own file
        run_main(command, cfg)
    assert path.stat().st_size > 100
