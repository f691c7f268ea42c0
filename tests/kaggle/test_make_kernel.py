"""The bundle for Kaggle: uploaded by the real client, unpacked as on Kaggle; its notebooks run without a network."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.commands import run_command
from helpers.kaggle_world import KaggleServer, make_image, make_wheels, run_notebook, shown
from slugify import slugify

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.files import read_json
from rsna.core.presets import PRESETS
from rsna.kaggle import client as kaggle_client
from rsna.kaggle.bundle import PACKAGES, address_of, collect_wheels, title_of, user_slug, write_metadata
from rsna.kaggle.client import commands_for, status_in, upload_and_submit, wait_until
from rsna.kaggle.kernels import plan_bundle, print_bundle, print_commands, run_words, write_bundle
from rsna.kaggle.notebooks import Kernel, inference_notebook, training_notebook, write_kernel
from rsna.models.registry import settings_of

SOURCE = Path(__file__).resolve().parents[2] / "src"
DATA = "rsna-pneumonia-detection-challenge"
COMMANDS = ["make_demo", "make_folds", "cache_images", "predict", "ensemble", "evaluate", "make_submission"]
SMALL = ["size=64", "n_folds=2", "epochs=1", "batch_size=8", "encoder=mobilenet_v2", "weights=none", "bootstrap=20"]
SMALL += ["demo_train=20", "demo_test=6", "name=tiny.Run"]
MEMBERS = ["preset=demo,best", "members=detector,classifier", "name=pair", "encoder=resnet18"]
# with a process for each command and fold, most of the time would go into imports
IN_ONE_PROCESS = """
import importlib, sys
from rsna.core.command_line import parse
from rsna.models.registry import settings_of
from rsna.training.fold import train_fold
cfg = parse(sys.argv[2:], settings_of)
for command in sys.argv[1].split(","):
    if command == "predict":
        for run in cfg.trained_runs:
            for fold in run.fold_list:
                train_fold(run, fold)
    importlib.import_module(command).main(cfg)
"""


@pytest.mark.parametrize(
    ("run", "slug"),
    [
        ("resnet34", "resnet34"),
        ("a-b", "a-b"),
        ("a.b", "a-b-"),
        ("a_b", "a-b-"),
        ("A", "a-"),
        ("x" * 99, "x" * 20 + "-"),
    ],
)
def test_names_become_addresses(run, slug):
    """A name that Kaggle does not allow is changed, but never into the address of another run."""
    digest = hashlib.sha256(run.encode()).hexdigest()[:4]
    assert address_of(run) == "rsna-pneumonia-" + (slug if slug == run else slug + digest)
    for suffix in ("", "-inference", "-training"):
        whole = address_of(run, suffix)
        assert 6 <= len(whole) <= 50
        assert slugify(title_of(whole)) == whole, "the client would warn of a title that leads to another address"


@pytest.mark.parametrize("user", ["some-one", "Some-One", " someone1 ", "https://www.kaggle.com/some-one/"])
def test_user_names(user):
    assert user_slug(user) in ("some-one", "someone1")


@pytest.mark.parametrize("user", ["", "a b", "../x", "a/b", "x" * 60, "né"])
def test_invalid_user_names(user):
    with pytest.raises(UserError, match="Kaggle user name"):
        user_slug(user)


@pytest.mark.parametrize("make", [inference_notebook, training_notebook])
def test_notebooks_are_complete_and_deterministic(make):
    kernel = Kernel("u", "r", ["name=r", "tta=plain,hflip"])
    book = make(kernel)
    nbformat.validate(book)
    assert nbformat.writes(book) == nbformat.writes(make(kernel))
    kinds = [cell["cell_type"] for cell in book["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2), "text between the code"
    for cell in book["cells"][1::2]:
        compile(cell["source"], cell["id"], "exec")
    text = nbformat.writes(book)
    assert "$" not in text, "a name was not filled in"


def first_cell(kaggle, monkeypatch):
    """The folders that the notebook's first code cell finds."""
    monkeypatch.setenv("KAGGLE_FOLDER", str(kaggle))
    found = {}
    exec(inference_notebook(Kernel("some-one", "r", []))["cells"][1]["source"], found)
    return found


@pytest.mark.parametrize(
    ("data", "dataset"), [(DATA, "rsna-pneumonia-r"), (f"competitions/{DATA}", "datasets/some-one/rsna-pneumonia-r")]
)
def test_inputs_are_found_where_older_and_newer_kernels_have_them(data, dataset, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"{DATA} is not attached"):
        first_cell(tmp_path, monkeypatch)
    (tmp_path / "input" / data).mkdir(parents=True)
    (tmp_path / "input" / dataset / "src").mkdir(parents=True)
    found = first_cell(tmp_path, monkeypatch)
    assert found["COMPETITION"] == tmp_path / "input" / data
    assert found["SOURCE"] == tmp_path / "input" / dataset / "src"


def test_archives_that_kaggle_left_packed_are_unpacked(tmp_path, monkeypatch):
    dataset = tmp_path / "input/rsna-pneumonia-r"
    for folder in (tmp_path / "input" / DATA, tmp_path / "src", dataset):
        folder.mkdir(parents=True)
    (tmp_path / "src" / "predict.py").write_text("here")
    shutil.make_archive(str(dataset / "src"), "zip", tmp_path / "src")
    assert (first_cell(tmp_path, monkeypatch)["SOURCE"] / "predict.py").read_text() == "here"


def test_without_internet_the_error_names_wheels(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"is there internet\? Without it, set wheels=<folder>\..*pydicom==3"):
        collect_wheels(tmp_path / "wheels", "")
    with pytest.raises(UserError, match="no such folder"):
        collect_wheels(tmp_path / "other", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="No matching distribution found for"):
        collect_wheels(tmp_path / "third", str(tmp_path))


def test_every_requirement_is_in_kaggles_image_or_in_the_bundle():
    """A new package must be available to a kernel without internet."""
    image = ["torch", "torchvision", "pillow", "opencv-python-headless", "scikit-learn", "pandas", "numpy", "tqdm"]
    image += ["matplotlib", "jinja2"]
    lines = [line.split("#")[0].strip() for line in (SOURCE.parent / "requirements.txt").read_text().splitlines()]
    needs = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines if line)
    assert set(needs) <= {*image, *PACKAGES}
    shared = set(needs) & set(PACKAGES)
    assert {name: needs[name] for name in shared} == {name: PACKAGES[name] for name in shared}


def test_statuses_are_parsed():
    assert status_in('u/k has status "KernelWorkerStatus.COMPLETE"\n') == "complete"
    assert status_in('u/k has status "error"\nFailure message: "x"') == "error"
    assert status_in("Warning: old client\nready") == "ready"
    assert status_in("") == "unknown"


def test_polling_ends_with_a_final_status(monkeypatch, capsys):
    answers, pauses = iter(["queued", "running", "complete"]), []
    monkeypatch.setattr(kaggle_client.time, "sleep", pauses.append)
    monkeypatch.setattr(kaggle_client, "ask", lambda words: (True, next(answers)))
    wait_until(["status", "u/k"], "complete", 100)
    assert len(pauses) == 2
    assert "u/k: complete" in capsys.readouterr().out
    monkeypatch.setattr(kaggle_client, "ask", lambda words: (True, "error"))
    with pytest.raises(UserError, match="u/k: error; its page"):
        wait_until(["status", "u/k"], "complete", 100)
    monkeypatch.setattr(kaggle_client, "ask", lambda words: (True, "running"))
    with pytest.raises(UserError, match=r"still running after .*status u/k"):
        wait_until(["status", "u/k"], "complete", 100)
    monkeypatch.setattr(kaggle_client, "ask", lambda words: (False, "403 Forbidden"))
    with pytest.raises(UserError, match=r"still no answer .*403 Forbidden"):
        wait_until(["status", "u/k"], "complete", 1e9)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained run and one with members, wheels, and a Python like Kaggle's."""
    folder = tmp_path_factory.mktemp("kernel")
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    for commands, words in ((COMMANDS, []), (COMMANDS[3:], MEMBERS)):
        words = [*SMALL, f"root={folder / 'home'}", *words]
        command = [sys.executable, "-c", IN_ONE_PROCESS, ",".join(commands), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    make_wheels(folder / "wheels")
    make_image(folder / "image")
    return folder


def config(world, *words):
    words = [*SMALL, f"root={world / 'home'}", f"wheels={world / 'wheels'}", "user=Some-One", *words]
    return parse(words, settings_of)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = KaggleServer()
    for name, value in server.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setattr(kaggle_client, "SECONDS_BETWEEN_POLLS", 0.01)
    yield server
    server.close()


def make_kernel(cfg):
    """What the command does."""
    bundle = plan_bundle(cfg)
    write_bundle(bundle)
    print_bundle(bundle)
    print_commands(bundle)
    if cfg.push:
        upload_and_submit(bundle.upload)


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "words"), [("tiny.Run", []), ("pair", MEMBERS)])
def test_from_the_trained_run_to_the_submission(name, words, world, server, tmp_path, capsys):
    """The real client uploads; the uploaded notebook runs in Kaggle's folders; its submission equals the local one."""
    # a separate image, since the notebook installs packages into it
    kaggle, python = tmp_path / "kaggle", make_image(tmp_path / "image")
    address, notebook = address_of(name), tmp_path / "inference.ipynb"

    def run(text):
        server.mount(f"some-one/{address}", kaggle / f"input/datasets/some-one/{address}")
        shutil.copytree(world / "home/input", kaggle / f"input/competitions/{DATA}")
        # prediction reads test images only
        shutil.rmtree(kaggle / f"input/competitions/{DATA}/stage_2_train_images")
        notebook.write_text(text)
        before = contents(kaggle / "input")
        done = run_notebook(notebook, kaggle, python)
        assert done.returncode == 0, done.stderr
        assert contents(kaggle / "input") == before, "the input was written to"
        return (kaggle / "working/submission.csv").read_bytes()

    server.on_run = run
    make_kernel(config(world, "push=true", *words))
    printed = capsys.readouterr().out
    home = (world / f"home/submissions/{name}.csv").read_bytes()
    assert server.output == home
    assert server.submitted[1] == home
    assert server.submitted[0]["competitionName"] == DATA
    assert "1 submissions" not in printed
    assert "4 submissions remaining today" in printed
    methods = [method for method, _, _ in server.calls]
    assert "CreateDataset" in methods
    assert methods.index("CreateDataset") < methods.index("SaveKernel") < methods.index("CreateSubmission")
    kernel = server.kernel
    assert (kernel["enableGpu"], kernel["enableInternet"], kernel["isPrivate"]) == (True, False, True)
    assert kernel["competitionDataSources"] == [DATA]
    assert kernel["datasetDataSources"] == [f"some-one/{address}"]
    text, images = shown(notebook)
    assert "Successfully installed" in text
    assert "segmentation-models-pytorch" in text.split("Successfully installed")[1].splitlines()[0]
    assert "the same file, byte for byte" in text
    assert bool(re.search(r"ensemble: (no )?gate", text)) == (name == "pair"), "chosen anew from the labels"
    assert images == 1
    no_secrets(printed, [world / f"home/working/{name}/kaggle", notebook])
    assert all("secret" not in json.dumps(request) for _, request, _ in server.calls)


def no_secrets(printed, places):
    """Check that the token was neither printed nor written."""
    assert "secret-of-someone" not in printed
    paths = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    assert all(b"secret-of-someone" not in path.read_bytes() for path in paths if path.suffix not in (".pt", ".whl"))


def test_errors_of_the_server_are_errors(server, tmp_path, capsys):
    """The client exits with status 0 after many errors."""
    dataset, kernel = tmp_path / "new/dataset", Kernel("some-one", "r", [])
    upload = commands_for("some-one", "r", tmp_path / "new", "inference")
    dataset.mkdir(parents=True)
    write_metadata(dataset, "some-one", "r", {})
    write_kernel(inference_notebook(kernel), tmp_path / "new/inference", kernel, "-inference")
    server.refuse["PUT"] = ({}, 400)
    # newer clients print errors to stderr
    with pytest.raises(UserError, match=r"datasets create failed: (Upload unsuccessful: bundle\.json|see above)"):
        upload_and_submit(upload)
    server.datasets.clear()
    server.refuse = {"CreateDataset": ({"status": "error", "error": "over your quota", "url": ""},)}
    with pytest.raises(UserError, match=r"kaggle datasets create failed: .*over your quota"):
        upload_and_submit(upload)
    server.datasets["some-one/rsna-pneumonia-r"] = {}
    server.refuse["SaveKernel"] = ({"error": "Maximum weekly GPU quota reached", "url": ""},)
    with pytest.raises(UserError, match=r"kaggle kernels push failed: .*GPU quota"):
        upload_and_submit(upload)
    assert "CreateDatasetVersion" in [method for method, _, _ in server.calls], "it was there already"
    server.refuse["SaveKernel"] = ({"versionNumber": 2, "url": "", "invalidCompetitionSources": ["x"]},)
    with pytest.raises(UserError, match=r"not valid competition sources"):
        upload_and_submit(upload)
    server.refuse = {"GetKernelSessionStatus": ({"status": "ERROR", "failureMessage": "out of memory"},)}
    with pytest.raises(UserError, match=r"r-inference: error; its page"):
        upload_and_submit(upload)
    server.refuse = {"ListKernelSessionOutput": ({"files": [], "log": ""},)}
    with pytest.raises(UserError, match=r"has no submission\.csv among its output"):
        upload_and_submit(upload)
    server.refuse = {"CreateDatasetVersion": ({"code": 401, "message": "Unauthorized"}, 401)}
    with pytest.raises(UserError, match=r"kaggle datasets version failed: see above"):
        upload_and_submit(upload)
    assert server.submitted is None
    no_secrets(capsys.readouterr().out, [tmp_path])


def test_a_missing_token_is_reported(server, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(UserError, match=r"kaggle datasets create failed: see above"):
        upload_and_submit(commands_for("u", "r", tmp_path, "inference"))
    assert "API" in capsys.readouterr().out
    assert server.calls == []


def test_the_training_notebook_needs_the_competition_only(world, tmp_path, capsys):
    """Folds, cache, training from a weights file, submission; with a packed dataset and the older input folders."""
    weights = world / "home/working/tiny.Run/fold0/best.pt"
    words = [
        "preset=demo,best",
        "members=detector,classifier",
        "name=fresh",
        "fold=0",
        f"weights={weights}",
        f"folds={tmp_path / 'none'}",
    ]
    make_kernel(config(world, *words))
    printed = capsys.readouterr().out
    assert "is not trained" in printed
    assert "kernels push" in printed
    assert "fresh-training" in printed
    bundle = world / "home/working/fresh/kaggle"
    assert not (bundle / "inference").exists()
    metadata = read_json(bundle / "training/kernel-metadata.json")
    assert metadata["enable_internet"] is False
    kaggle = tmp_path / "kaggle"
    dataset = kaggle / "input" / address_of("fresh")
    shutil.copytree(bundle / "dataset", dataset)
    shutil.make_archive(str(dataset / "wheels"), "zip", dataset / "wheels")
    shutil.rmtree(dataset / "wheels")
    shutil.copytree(world / "home/input", kaggle / "input" / DATA)
    notebook = tmp_path / "training.ipynb"
    shutil.copyfile(bundle / "training" / metadata["code_file"], notebook)
    done = run_notebook(notebook, kaggle, world / "image/python/bin/python")
    assert done.returncode == 0, done.stderr
    text, images = shown(notebook)
    assert text.count("fold 0 epoch 1/1") == 2, "both members"
    assert images == 3, "a history of each member, and results"
    submission = pd.read_csv(kaggle / "working/submission.csv")
    sample = pd.read_csv(world / "home/input/stage_2_sample_submission.csv")
    assert submission["patientId"].tolist() == sample["patientId"].tolist()
    # local commands can continue with the run that the notebook saved
    kept = kaggle / "working/run"
    home = config(world, *words[:4], f"root={kept}", f"input={world / 'home/input'}")
    bundle = plan_bundle(home)
    assert bundle.trained
    assert {Path(name).parent.as_posix() for name in bundle.files} == {
        *("run/folds", "run/working/fresh_detector/fold0", "run/working/fresh_classifier/fold0")
    }


def test_an_incomplete_run_or_other_settings_give_no_kernel(world, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(world / "home", home)
    words = [f"root={home}"]
    before = contents(home)
    for word, reason in {
        "tta=plain": r"predict\.json: predict ran with other settings or files \(tta: plain,hflip -> plain\)",
        "wbf_iou=0.5": r"ensemble\.json: ensemble ran with other .*wbf_iou: 0.4 -> 0.5",
        "lr=0.01": r"train\.json: train ran with other settings.*lr: 0.001 -> 0.01",
        "dropout=0.25": r"train\.json: train ran with other settings.*dropout: None -> 0.25",
        "runs=a,b": r"runs=a,b: how these runs were trained is not known",
        "name=pair": "pair was fused from other runs; set the preset=",
        "user=": "Kaggle user name",
    }.items():
        with pytest.raises(UserError, match=reason):
            make_kernel(config(world, *words, word))
    assert contents(home) == before
    run = home / "working/tiny.Run"
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(scores | {"mAP": 1}))
    with pytest.raises(UserError, match=r"scores\.json: not as evaluate wrote it"):
        make_kernel(config(world, *words, "threshold=0.3"))  # the notebook shows them
    (run / "scores.json").unlink()
    assert plan_bundle(config(world, *words, "threshold=0.3")).trained, "no scores needed"
    (run / "fold1/best.pt").unlink()
    with pytest.raises(UserError, match=r"fold1/best\.pt: no such file; run: \./run\.sh train"):
        make_kernel(config(world, *words))
    (run / "fold1/train.json").unlink()
    with pytest.raises(UserError, match=r"train has not finished; run: \./run\.sh train .*fold=1"):
        make_kernel(config(world, *words))


def test_settings_of_the_model_reach_the_kernel():
    """The settings that differ from the model's defaults or, if a preset sets them, from the preset."""
    assert "dropout=0.25" in run_words(parse(["dropout=0.25"], settings_of))
    assert not [word for word in run_words(parse(["preset=fastai"], settings_of)) if "full_image" in word]
    changed = parse(["preset=fastai", "full_image_negatives=false"], settings_of)
    assert parse(run_words(changed), settings_of) == changed


def test_settings_of_members_reach_the_kernel(monkeypatch):
    """Including a setting that equals the default of the ensemble but not that of a member."""
    monkeypatch.setitem(PRESETS, "detector", {**PRESETS["detector"], "size": "640"})
    changes = [["size=512", "seed=3"], ["members=detector,classifier"], ["members="]]
    for words in (["preset=best"], *(["preset=best", *own] for own in changes), ["members=detector,classifier"]):
        cfg = parse(words, settings_of)
        again = parse(run_words(cfg), settings_of)
        assert again == cfg
    assert [run.size for run in parse(run_words(parse(["preset=best"], settings_of)), settings_of).trained_runs] == [
        *(640, 512, 512)
    ]


def test_folds_alone_are_not_a_trained_run(world, tmp_path, capsys):
    """Also: weights files may have any name, runs any valid name, and other files in the folder are kept."""
    (downloaded := tmp_path / "submission/kaggle/submission.csv").parent.mkdir(parents=True)
    downloaded.write_text("from Kaggle")
    weights = tmp_path / "it's my $weights.pth"
    shutil.copyfile(world / "home/working/tiny.Run/fold1/best.pt", weights)
    make_kernel(config(world, "name=submission", f"weights={weights}", f"working={tmp_path}"))
    assert "is not trained" in capsys.readouterr().out
    bundle = tmp_path / "submission/kaggle"
    assert downloaded.read_text() == "from Kaggle"
    assert (bundle / "dataset/run/folds/folds.csv").is_file()
    assert not (bundle / "inference").exists()
    assert [path.name for path in (bundle / "dataset/weights").iterdir()] == ["start.pth"]
    (notebook,) = (bundle / "training").glob("*.ipynb")
    cells = [cell["source"] for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    assert all(compile("".join(cell), "cell", "exec") for cell in cells)
    assert any('if OUTPUT / "submission.csv" != submission' in "".join(cell) for cell in cells)


def printed_by(name, words):
    """Run a command; returns what it prints, or its error output if it fails."""
    done = run_command(name, *SMALL, *words)
    return done.stdout if done.returncode == 0 else done.stderr


def test_only_the_test_images(world, tmp_path):
    """Locally, only_test=true does not touch training images and their tables, and the full commands notice."""
    home = tmp_path / "home"
    shutil.copytree(world / "home", home)
    index, fold = home / "working/png_64/index.csv", home / "working/tiny.Run/fold0"
    tables = {name: (fold / f"{name}.csv").read_bytes() for name in ("valid", "valid_images", "test")}
    words = [f"root={home}", "fold=0", "workers=0"]
    printed_by("cache_images", [*words, "only_test=true"])
    assert len(pd.read_csv(index)) == 26
    (fold / "test.csv").unlink()
    assert "predicted -> test.csv" in printed_by("predict", [*words, "only_test=true"])
    assert {name: (fold / f"{name}.csv").read_bytes() for name in tables} == tables
    (fold / "valid.csv").unlink()
    assert "valid.csv" in printed_by("predict", [*words, "only_test=true"])
    assert "predicted -> valid.csv" in printed_by("predict", words)
