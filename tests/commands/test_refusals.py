"""What must not go unnoticed: folds that do not match, somebody else's files, lack of memory."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers.commands import SRC, run_command
from helpers.finished_run import copy_workspace, settings

from rsna.core.errors import UserError
from rsna.core.files import read_json
from rsna.core.tables import read_table
from rsna.data.competition import MAPPING_JSON, read_people
from rsna.models.backbone import read_weights
from rsna.models.checkpoint import people_of_checkpoint


@pytest.fixture
def root(finished, tmp_path):
    copy_workspace(finished, tmp_path / "workspace")
    return tmp_path / "workspace"


def change(path, **values):
    content = read_json(path)
    path.unlink()  # a link to the shared file
    path.write_text(json.dumps({**content, **values}))


def refused(name, root, *words):
    result = run_command(name, *settings(root, *words))
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(("command", "key", "other"), [("predict", "tta", "plain"), ("train", "epochs", 9)])
def test_folds_of_different_settings_are_not_fused(root, command, key, other):
    path = root / "working/first/fold1" / f"{command}.json"
    change(path, settings={**read_json(path)["settings"], key: other})
    (root / "working/first/ensemble.json").unlink()
    assert f"fold 1 was made with {key}={other}, fold 0 with {key}=" in refused("ensemble", root)


@pytest.mark.parametrize("manifest", [True, False])
def test_the_users_own_folds_are_compared_with_the_mapping(root, manifest):
    path = root / "folds/folds.csv"
    folds = pd.read_csv(path, dtype=str)
    path.unlink()
    folds.assign(group=folds["patientId"], fold=[str(k % 2) for k in range(len(folds))]).to_csv(path, index=False)
    if not manifest:
        (root / "folds/folds.json").unlink()
    output = run_command("make_folds", *settings(root)).stdout
    assert "WARNING: patients with images in more than one fold" in output
    assert "none of them in more than one fold" not in output


def test_a_mapping_that_contradicts_itself_is_refused(tmp_path):
    rows = [{"subset_img_id": "a", "img_id": f"0000000{k}_000.png"} for k in (1, 2)]
    (tmp_path / MAPPING_JSON).write_text(json.dumps(rows + rows))
    with pytest.raises(UserError, match="image a has two patients"):
        read_people(tmp_path)


def test_somebody_elses_submission_is_not_overwritten(root):
    path = root / "submissions/first.csv"
    path.unlink()
    path.write_text("mine")
    assert f"{path}: not as make_submission wrote it, and not overwritten" in refused("make_submission", root)
    assert path.read_text() == "mine"
    path.unlink()
    assert run_command("make_submission", *settings(root)).returncode == 0
    path.with_suffix(".json").unlink()  # as if the command was killed between writing the two
    assert run_command("make_submission", *settings(root)).returncode == 0


def test_a_checkpoint_that_lacks_fields_is_not_resumed(root):
    (root / "working/first/fold0/train.json").unlink()
    result = run_command("train", *settings(root, "fold=0"))  # its history has no scores
    assert result.returncode == 1
    assert "last.pt: incomplete, so training cannot resume from it; delete it and run: ./run.sh train" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "words"), [("9" * 5000, "not JSON"), ("-1", r"seed=-1: must be from 0"), ("1e999", "is not valid")]
)
def test_numbers_in_manifests_are_in_range(root, content, words):
    path = root / "working/first/fold0/train.json"
    text = path.read_text().replace('"seed": 42', f'"seed": {content}')
    path.unlink()
    path.write_text(text)
    assert f'"seed": {content}' in text
    assert re.search(words, refused("report", root))


@pytest.mark.parametrize(("images", "threshold"), [(0, 0.5), (-3, 0.5), (20, 10**400)])
def test_an_implausible_submission_manifest_is_named(root, images, threshold):
    change(root / "submissions/first.json", images=images, threshold=threshold)
    assert "not valid" in refused("summary", root)


def test_huge_files_are_refused_before_they_are_read(tmp_path):
    for name, reader in (("table.csv", lambda path: read_table(path, ["patientId"])), ("manifest.json", read_json)):
        with (tmp_path / name).open("w") as file:
            file.truncate(2**33)  # sparse
        with pytest.raises(UserError, match="larger than"):
            reader(tmp_path / name)


def test_compressed_weights_are_refused_before_they_are_read(tmp_path):
    torch.save({"x": torch.zeros(2**20)}, tmp_path / "plain.pt")
    subprocess.run([sys.executable, "-c", REPACK, tmp_path / "plain.pt", tmp_path / "bomb.pt"], check=True)
    with pytest.raises(UserError, match="compressed"):
        read_weights(tmp_path / "bomb.pt")
    assert list(read_weights(tmp_path / "plain.pt")) == ["x"]


REPACK = """
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as source, zipfile.ZipFile(sys.argv[2], "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        target.writestr(name, source.read(name))
"""


def test_a_checkpoint_with_invalid_people(tmp_path):
    torch.save({"model": {}, "people": 5}, tmp_path / "other.pt")
    assert people_of_checkpoint(tmp_path / "other.pt") == set()


@pytest.mark.parametrize("megabytes", [300, 900])
def test_too_little_memory_ends_in_one_line(root, megabytes):
    words = [sys.executable, str(SRC / "report.py"), *settings(root)]
    limited = f"ulimit -v {megabytes * 1024}; exec " + '"$@"'
    done = subprocess.run(["sh", "-c", limited, "sh", *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith(("error: ", "OpenBLAS")), done.stderr


def test_an_unclosed_csv_field_ends_in_one_line(root):
    """As after a missing quote: Python's CSV reader has a limit, and raises its own error."""
    path = root / "working/png_64/index.csv"
    text = path.read_text().replace("ok", '"' + "x" * 200_000, 1)
    path.unlink()
    path.write_text(text)
    for name in ("report", "ensemble", "make_submission"):
        refused(name, root)


def test_a_cached_image_in_place_of_another_is_named(tmp_path):
    words = [f"root={tmp_path}", "demo_train=24", "demo_test=4", "size=64", "n_folds=2", "epochs=1", "weights=none"]
    for name in ("make_demo", "make_folds", "cache_images"):
        assert run_command(name, *words).returncode == 0
    first, second = sorted((tmp_path / "working/png_64/train").glob("*.png"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    result = run_command("train", *words, "fold=0")
    assert result.returncode == 1
    assert f"{first}: not as cache_images wrote it; run: ./run.sh cache_images" in result.stderr
    assert "1 images written" in run_command("cache_images", *words).stdout
    assert first.read_bytes() == content
    assert run_command("train", *words, "fold=0").returncode == 0
