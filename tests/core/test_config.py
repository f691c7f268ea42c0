"""Settings: a mistake ends with one readable line and status 2."""

import shlex
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from rsna.core.command_line import command, parse
from rsna.core.config import GROUPS, Config
from rsna.core.errors import UserError
from rsna.core.presets import PRESETS, WORKSPACE
from rsna.core.validation import parse_folds
from rsna.models.registry import names, settings_of


def test_defaults_are_the_workspace():
    cfg = parse([])
    assert cfg.folds_csv == WORKSPACE / "folds" / "folds.csv"
    assert cfg.cache_dir == WORKSPACE / "working" / "png_512"
    assert cfg.fold_list == [0, 1, 2, 3, 4]
    assert cfg.weights == "imagenet"


def test_paths_are_relative_to_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = parse(["root=here", "input=~/rsna"])
    assert cfg.working == str(tmp_path / "here" / "working")
    assert cfg.input == str(Path.home() / "rsna")


@pytest.mark.parametrize("name", ["a ${x} b", "${root}", "a\\${x}", "$HOME", "it's", 'a"b', "{name}", "caf\udce9"])
def test_a_folder_may_have_any_name(tmp_path, name):
    cfg = parse([f"root={tmp_path / name}", f"working={tmp_path}/w{name}"])
    assert cfg.root == str(tmp_path / name)
    assert cfg.input == str(tmp_path / name / "input")
    assert cfg.working == f"{tmp_path}/w{name}"
    assert parse(shlex.split(command(cfg, "train"))[2:]) == cfg


def test_a_tilde_with_an_unknown_user_is_an_ordinary_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["input=~no-such-user/x"]).input == str(tmp_path / "~no-such-user" / "x")


def test_words_on_the_command_line_override_the_preset():
    cfg = parse(["size=96", "preset=demo"])
    assert (cfg.size, cfg.name, cfg.weights) == (96, "demo", "none")
    assert cfg.input == str(WORKSPACE / "demo" / "input")


def test_presets_name_real_settings():
    for overrides in PRESETS.values():
        model = fields(settings_of(overrides.get("model", "single_box")))
        assert set(overrides) <= {f.name for f in (*fields(Config), *model)}


def test_every_setting_is_in_one_group():
    grouped = [f.name for group in GROUPS for f in fields(group)]
    assert sorted(grouped) == sorted({f.name for f in fields(Config)} - {"model_settings", "member_configs", "typed"})


def test_a_model_has_settings_of_its_own():
    cfg = parse(["box_weight=2", "dropout=0.2"], settings_of)
    assert cfg.model_settings == {"box_weight": 2.0}, "what equals the default is left out"
    assert command(cfg, "train") == "./run.sh train box_weight=2.0"
    fastai = parse(["preset=fastai"], settings_of)
    assert fastai.model_settings == {"full_image_negatives": True}
    assert command(fastai, "train") == "./run.sh train preset=fastai"
    default = "./run.sh train preset=fastai full_image_negatives=False"
    assert command(parse(default.split()[2:], settings_of), "train") == default, "a preset is overruled by a default"
    for word, message in (
        ("box_weigth=2", "did you mean box_weight?"),
        ("box_weight=heavy", "box_weight is a number"),
        ("dropout=2", "dropout=2.0: must be from 0 to 0.95"),
        ("full_image_negatives=true", "there is no setting 'full_image_negatives'"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            parse([word], settings_of)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head=places", "model"),
        ("elsewhere=0", "missing_weight"),
        ("light=0.1", "brightness_contrast"),
        ("clip=1", "grad_clip"),
    ],
)
def test_a_renamed_setting_is_pointed_to(old, new):
    with pytest.raises(UserError, match=f"did you mean {new}"):
        parse([old])


@pytest.mark.parametrize(
    ("text", "folds"), [("3", [3]), ("0,2", [0, 2]), ("0..4", [0, 1, 2, 3, 4]), ("4,0..1", [0, 1, 4])]
)
def test_the_syntax_of_fold(text, folds):
    assert parse_folds(text, 5) == folds


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runs=a,a", "each once"),
        ("runs=../a", "names of runs"),
        ("root=", "must not be empty"),
        ("working=", "must not be empty"),
        ("sizee=3", "did you mean size"),
        ("size", "written key=value"),
        ("size=big", "size is a whole number"),
        ("lr=fast", "lr is a number"),
        ("lr=0", "must be from"),
        ("lr=nan", "must be from"),
        ("size=100", "multiple of 32"),
        ("device=gpu", "device=gpu: auto, cpu, cuda, cuda:1 or mps"),
        ("fold=5", "folds are 0..4"),
        ("fold=3..1", "folds are 0..4"),
        ("fold=x", "write all, 3"),
        ("name=../a", "becomes a folder"),
        ("name=", "becomes a folder"),
        ("name=png_64", "not png_<n>"),
        ("name=" + "x" * 201, "becomes a folder"),
        ("bootstrap=" + "9" * 30, "must be from 10 to 1000000"),
        ("batch_size=99999999", "must be from 2 to 1000000"),
        ("lr=inf", "must be from"),
        ("threshold=2", "from 0 to 1"),
        ("preset=big", "no such preset"),
        ("checkpoint=first", "best or last"),
        ("workers=-2", "must be from -1"),
        ("missing_weight=1.5", "must be from 0 to 1"),
        ("rotate=-5", "must be from 0 to 90"),
        ("seed=5000000000", "must be from"),
        ("tta=typo", "views are plain, hflip"),
        ("tta=hflip", "plain is always one"),
        ("tta_scales=x", "separated by commas"),
        ("tta_scales=0.9", "1.0 among them"),
        ("name=${x}", "settings: |becomes a folder"),
    ],
)
def test_wrong_words_are_explained(word, message):
    with pytest.raises(UserError, match=message):
        parse([word])


def test_a_run_cannot_change_its_settings():
    with pytest.raises(FrozenInstanceError):
        parse([]).size = 3  # type: ignore[misc]


def run_command(*words):
    return subprocess.run(
        [sys.executable, str(WORKSPACE / "src" / "summary.py"), *words], capture_output=True, text=True, check=False
    )


def test_from_the_shell():
    wrong = run_command("sizee=3")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: sizee=3: there is no setting 'sizee'; did you mean size?\n"
    listed, common = run_command("help", "all"), run_command("help")
    assert listed.returncode == common.returncode == 0
    # other tests may have registered models in this process
    models = [name for name in names() if (WORKSPACE / f"src/rsna/models/{name}.py").is_file()]
    for f in (f for group in (*GROUPS, *map(settings_of, models)) for f in fields(group)):
        assert f"  {f.name}=" in listed.stdout
        assert f.metadata["meaning"] in listed.stdout
        assert (f"  {f.name}=" in common.stdout) == f.metadata["common"]
    unknown = run_command("model=resnet")
    assert unknown.returncode == 2
    assert f"there is no such model; there are {', '.join(models)}" in unknown.stderr
    absent = run_command("name=never-trained", "root=/nonexistent-workspace")
    assert absent.returncode == 1
    assert "Traceback" not in absent.stderr
    assert "./run.sh evaluate root=/nonexistent-workspace name=never-trained" in absent.stderr


def test_commands_repeat_the_given_settings(tmp_path):
    assert command(parse([]), "train") == "./run.sh train"
    cfg = parse(["name=small", "size=96", f"root={tmp_path}", "fold=1"])
    message = command(cfg, "train", fold="0")
    assert message == f"./run.sh train root={tmp_path} name=small fold=0 size=96"
    assert command(parse(["preset=demo", "size=96"]), "evaluate") == "./run.sh evaluate preset=demo size=96"


def test_members_are_runs_of_their_own_with_the_given_words():
    cfg = parse(["preset=best", "name=mine", "epochs=3", "fold=0,1"], settings_of)
    assert [(run.name, run.model, run.epochs, run.fold_list) for run in cfg.fused_runs] == [
        ("mine_detector", "detector", 3, [0, 1]),
        ("mine_single_box", "single_box", 3, [0, 1]),
        ("mine_classifier", "classifier", 3, [0, 1]),
    ]
    again = command(cfg.fused_runs[0], "train")
    assert again == "./run.sh train preset=detector name=mine_detector fold=0,1 epochs=3"
    assert parse(again.split()[2:], settings_of) == cfg.fused_runs[0]
    assert command(cfg, "ensemble") == "./run.sh ensemble preset=best name=mine fold=0,1 epochs=3"


def test_commands_of_an_ensemble_repeat_what_differs_in_a_member_only(monkeypatch):
    monkeypatch.setitem(PRESETS, "detector", {**PRESETS["detector"], "size": "640"})
    assert command(parse(["preset=best"], settings_of), "train") == "./run.sh train preset=best"
    cfg = parse(["preset=best", "size=512"], settings_of)
    assert command(cfg, "train", fold="1") == "./run.sh train preset=best size=512 fold=1"
    assert command(cfg.fused_runs[0], "train") == "./run.sh train preset=detector name=best_detector size=512"


def test_members_of_a_preset_join_the_presets_before_it():
    cfg = parse(["preset=demo,best"], settings_of)
    assert {run.root for run in cfg.fused_runs} == {cfg.root}
    assert [run.preset for run in cfg.fused_runs] == ["demo,detector", "demo,single_box", "demo,classifier"]
    assert {run.size for run in cfg.fused_runs} == {64}


def test_a_run_of_an_ensemble_fuses_only_itself():
    cfg = parse(["preset=best"], settings_of)
    assert [run.name for run in cfg.of_run("other").fused_runs] == ["other"]
    assert [run.name for run in parse(["runs=a,b", "name=both"]).fused_runs] == ["a", "b"]
    assert [run.name for run in parse([]).fused_runs] == ["resnet34"]


def test_a_member_that_is_no_preset_is_refused():
    with pytest.raises(UserError, match="there is no such preset"):
        parse(["members=detector,best_of_all"], settings_of)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["preset=best", "runs=a,b"], r"runs=a,b: has no meaning with members="),
        (["preset=best", "model=detector"], r"model=detector: has no meaning with members="),
        (["members=detector,detector"], "each once"),
        (["members=best"], "presets of single runs"),
    ],
)
def test_invalid_members_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse(words, settings_of)


def test_commands_other_than_infer_do_not_repeat_its_settings():
    cfg = parse(["images=scans", "name=a", "overlays=all"])
    assert command(cfg, "evaluate") == "./run.sh evaluate name=a"
    assert command(cfg, "infer") == "./run.sh infer name=a images=scans overlays=all"
