"""What make_kernel writes for a run or its members: a dataset and notebooks."""

import shlex
import shutil
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from rsna.core.artifacts import require
from rsna.core.command_line import command, parse
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json
from rsna.core.locks import file_lock
from rsna.core.stages import FREE_TO_USERS, STAGES, names_file
from rsna.evaluation.scores import read_scores
from rsna.kaggle.bundle import BUNDLE_JSON, user_slug, write_files, write_metadata
from rsna.kaggle.client import COMMENTS, commands_for
from rsna.kaggle.notebooks import Kernel, inference_notebook, training_notebook, write_kernel
from rsna.models.registry import settings_of

COMMANDS = ("train", "predict", "ensemble", "evaluate", "make_submission")
RUN_SETTINGS = [kind for name in COMMANDS for kind in STAGES[name].settings]


@dataclass(frozen=True)
class Bundle:
    """The plan of a dataset and its notebooks; files: name in the dataset -> path here."""

    cfg: Config
    user: str
    files: dict[str, Path]
    trained: bool

    @property
    def folder(self) -> Path:
        return self.cfg.run_dir / "kaggle"

    @property
    def upload(self) -> dict[str, list[str]]:
        return commands_for(self.user, self.cfg.name, self.folder, "inference" if self.trained else "training")


def plan_bundle(cfg: Config) -> Bundle:
    """Choose the files that the kernels need; for a run that is not trained, only folds and weights, if they exist.

    Raises UserError if a trained run is incomplete, not current, or was made with other settings than these.
    """
    user = user_slug(cfg.user)
    if cfg.runs:
        raise UserError(
            f"runs={cfg.runs}: how these runs were trained is not known here; make a kernel for each of them "
            "(name=<run>, without runs=), or train their presets as members of one run: members=<preset>,<preset>"
        )
    if names_file(cfg, "calibrate"):
        raise UserError(f"calibrate={cfg.calibrate}: a kernel has no such file; set calibrate=test_like or all")
    files = {f"weights/{weights_name(cfg)}": Path(cfg.weights)} if names_file(cfg, "weights") else {}
    folds = [run.fold_dir(fold) for run in cfg.trained_runs for fold in run.fold_list]
    trained = any((folder / f"{cfg.checkpoint}.pt").is_file() for folder in folds)
    if not trained and (cfg.run_dir / "ensemble.json").is_file():
        raise UserError(f"{cfg.run_dir} was fused from other runs; set the preset= or members= that it was made with")
    if trained or cfg.folds_csv.is_file():
        files["run/folds/folds.csv"] = cfg.folds_csv
    if trained:
        files |= trained_files(cfg)
    return Bundle(cfg, user, files, trained)


def trained_files(cfg: Config) -> dict[str, Path]:
    """The files of the trained folds. Raises UserError if anything behind the submission is missing or not current."""
    # an error on Kaggle would come too late
    names = (f"{cfg.checkpoint}.pt", "train.json", "predict.json", "valid.csv", "valid_images.csv")
    files: dict[str, Path] = {}
    for run, fold in product(cfg.trained_runs, cfg.fold_list):
        require(run, "train", fold, settings=True, ignore=FREE_TO_USERS)
        require(run, "predict", fold, settings=True)
        files |= {f"run/working/{run.name}/fold{fold}/{name}": run.fold_dir(fold) / name for name in names}
    for path in (cfg.folds_csv, *files.values()):
        if not path.is_file():
            raise UserError(f"{path}: no such file; run: {command(cfg, 'train')} and predict")
    require(cfg, "ensemble", settings=True)
    if cfg.threshold == "auto" or (cfg.run_dir / "scores.json").is_file():  # the notebook shows the scores
        require(cfg, "evaluate")
    return files


def weights_name(cfg: Config) -> str:
    """A safe name for the weights file in the dataset, with the suffix that determines how it is read."""
    return "start.safetensors" if Path(cfg.weights).suffix == ".safetensors" else "start.pth"


def write_bundle(bundle: Bundle) -> None:
    """Write the dataset and the kernels, replacing earlier ones. Raises UserError if something else is in the way."""
    cfg, new = bundle.cfg, bundle.folder.with_name(f".{bundle.folder.name}.tmp")
    for path in (bundle.folder, new):
        if path.is_symlink() or path.is_file():
            raise UserError(f"{path}: a link or file that make_kernel did not make is in the way; move it elsewhere")
    with file_lock(cfg.run_dir):
        shutil.rmtree(new, ignore_errors=True)  # left by a command that was killed
        try:
            pythons = write_files(bundle.files, new / "dataset", cfg.wheels)
            submission = content_hash(cfg.submission_csv) if cfg.submission_csv.is_file() else "none"
            content = {"run": cfg.name, "settings": run_words(cfg), "pythons": pythons, "submission": submission}
            write_metadata(new / "dataset", bundle.user, cfg.name, content)
            write_kernels(bundle, new)
            # keep other files in the folder, such as a downloaded submission
            bundle.folder.mkdir(exist_ok=True)
            for part in ("dataset", "inference", "training"):
                shutil.rmtree(bundle.folder / part, ignore_errors=True)
                if (new / part).is_dir():
                    (new / part).rename(bundle.folder / part)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def write_kernels(bundle: Bundle, folder: Path) -> None:
    """Write the training notebook and, for a trained run, the inference notebook."""
    cfg, user, words = bundle.cfg, bundle.user, run_words(bundle.cfg)
    trains = [run.name for run in cfg.trained_runs]
    if bundle.trained:
        scored = (cfg.run_dir / "scores.json").is_file()
        scores = read_scores(cfg.run_dir, command(cfg, "evaluate")) if scored else None
        kernel = Kernel(user, cfg.name, words, scores)
        write_kernel(inference_notebook(kernel), folder / "inference", kernel, "-inference")
    weights = weights_name(cfg) if names_file(cfg, "weights") else ""
    words = words if weights else [*words, f"weights={cfg.weights}"]
    kernel = Kernel(user, cfg.name, words, trains=trains, weights=weights, internet=cfg.weights == "imagenet")
    write_kernel(training_notebook(kernel), folder / "training", kernel, "-training")


def run_words(cfg: Config) -> list[str]:
    """The settings of the run that differ from the defaults, as on a command line, without weights=.

    The training kernel adds weights= itself.
    """
    preset = [f"preset={cfg.preset}"] if cfg.preset else []
    members = [f"members={cfg.members}"] if cfg.members != parse(preset, settings_of).members else []
    defaults = parse([*preset, *members], settings_of)
    differing: dict[str, Any] = {}
    # a setting may equal the run's default and differ from a member's
    for run, default in zip((cfg, *cfg.member_configs), (defaults, *defaults.member_configs), strict=True):
        known = all_settings(default)
        differing |= {key: value for key, value in all_settings(run).items() if value != known.get(key)}
    words = [*members, *(f"{key}={value}" for key, value in differing.items())]
    return [f"name={cfg.name}", f"fold={cfg.fold}", *preset, *words]


def all_settings(cfg: Config) -> dict[str, Any]:
    """The settings of a run and all of its model's own settings, except weights and runs."""
    of_model = {f.name: f.default for f in fields(settings_of(cfg.model))}
    settings = of_model | cfg.only(*RUN_SETTINGS)
    return {key: value for key, value in settings.items() if key not in ("weights", "runs")}


def print_bundle(bundle: Bundle) -> None:
    """Print what was written, and its size."""
    dataset = bundle.folder / "dataset"
    found = {
        entry.name: sum(path.stat().st_size for path in (entry, *entry.rglob("*")) if path.is_file()) / 1e6
        for entry in dataset.iterdir()
    }
    largest = sorted(found, key=found.__getitem__, reverse=True)
    parts = ", ".join(f"{name} {found[name]:,.1f} MB" for name in largest if found[name] > 0.1)
    print(f"dataset: {sum(found.values()):,.1f} MB ({parts}) -> {dataset}")
    pythons = read_json(dataset / BUNDLE_JSON)["pythons"]
    wheels = sorted(path.name for path in (dataset / "wheels").glob("*.whl"))
    print(f"{len(wheels)} wheels for Python {', '.join(pythons)}: {', '.join(name.split('-')[0] for name in wheels)}")
    for path in sorted(bundle.folder.glob("*/*.ipynb")):
        print(f"{path.parent.name}: {path.stat().st_size / 1e3:.1f} kB -> {path}")


def print_commands(bundle: Bundle) -> None:
    """Print the commands from the bundle to a score."""
    if bundle.cfg.is_demo:
        print("synthetic images: Kaggle has none of them; with the competition's files in input/ the commands are:")
    if not bundle.trained:
        print(f"run {bundle.cfg.name} is not trained: the training kernel trains it and ends with a submission")
    for name, words in bundle.upload.items():
        print(shlex.join(words) + COMMENTS.get(name, ""))
    if bundle.trained:
        push = commands_for(bundle.user, bundle.cfg.name, bundle.folder, "training")["push"]
        print(f"to train on Kaggle instead of here, push this notebook in place of the one above: {shlex.join(push)}")
