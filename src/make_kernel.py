"""Build what Kaggle needs to run this project: a dataset (code, wheels, trained folds) and two notebooks.

    python src/make_kernel.py name=<run> user=<your Kaggle name> [fold=0..4] [wheels=<folder>] [push=true]

Writes working/<name>/kaggle/{dataset,inference,training}/ and prints the commands that upload and submit; push=true
runs them. Say the settings of the run as to any stage. Before anything is trained there is no inference kernel: the
training kernel begins from nothing.
"""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsna.startup import run
from rsna.core.artifacts import require
from rsna.core.config import (
    AugmentSettings,
    CacheSettings,
    ComputeSettings,
    Config,
    FoldSettings,
    FusionSettings,
    ModelSettings,
    PredictSettings,
    SeedSettings,
    SubmissionSettings,
    TrainSettings,
    parse,
)
from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json
from rsna.core.locks import file_lock
from rsna.core.stages import FREE_TO_USERS
from rsna.core.stamps import SCORES_JSON
from rsna.kaggle.bundle import (
    address_of,
    check_limits,
    collect_wheels,
    copy_code,
    link_files,
    megabytes,
    sizes,
    user_slug,
    write_metadata,
)
from rsna.kaggle.client import Upload, instructions, push_command, upload_and_submit
from rsna.kaggle.notebooks import Kernel, inference_notebook, training_notebook, write_kernel
from rsna.models.checkpoint import load_checkpoint


def main(cfg: Config) -> None:
    user = user_slug(cfg.user)
    folder = cfg.run_dir / "kaggle"
    files = run_files(cfg)
    trained = any(name.endswith(f"/{cfg.checkpoint}.pt") for name in files)
    with file_lock(cfg.run_dir), replacing(folder) as new:
        write_dataset(cfg, user, files, new / "dataset")
        write_kernels(cfg, user, trained, new)
    print_bundle(folder)
    print_commands(cfg, user, folder, trained)
    if cfg.push:
        upload_and_submit(upload_of(cfg, user, folder, trained))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` once the block ended well; what is left of a killed run goes."""
    new = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def run_files(cfg: Config) -> dict[str, Path]:
    """The files that the kernels need, by their names in the dataset; of an untrained run only what there is.

    Raises UserError where a trained run is not whole or was made with other settings than those said now.
    """
    if cfg.runs:
        raise UserError("runs=: an ensemble of runs has no kernel; make one for each run: name=<run>, without runs=")
    files = {f"weights/{weights_name(cfg)}": Path(cfg.weights)} if has_weights_file(cfg) else {}
    if cfg.folds_csv.is_file():
        files["run/folds.csv"] = cfg.folds_csv
    if not any((cfg.fold_dir(fold) / f"{cfg.checkpoint}.pt").is_file() for fold in cfg.fold_list):
        return files
    for fold in cfg.fold_list:
        check_fold(cfg, fold)
        names = (f"{cfg.checkpoint}.pt", "history.csv", "valid.csv", "valid_images.csv", "train.json", "predict.json")
        files |= {f"run/fold{fold}/{name}": cfg.fold_dir(fold) / name for name in names}
    check_ensemble(cfg)
    return files


def has_weights_file(cfg: Config) -> bool:
    return cfg.weights not in ("none", "imagenet")


def weights_name(cfg: Config) -> str:
    """Name of the weights file in the dataset: its own could hold anything, and how it is read goes by the suffix."""
    return "start.safetensors" if Path(cfg.weights).suffix == ".safetensors" else "start.pth"


def check_fold(cfg: Config, fold: int) -> None:
    """Raise UserError unless a fold is trained and predicted with these settings: on Kaggle it would be too late."""
    require(cfg, "train", fold, settings=True, ignore=FREE_TO_USERS)
    load_checkpoint(cfg.fold_dir(fold) / f"{cfg.checkpoint}.pt", cfg, fold, FREE_TO_USERS)
    require(cfg, "predict", fold, settings=True)


def check_ensemble(cfg: Config) -> None:
    """Raise UserError unless ensemble and scores are of these settings and of each other."""
    require(cfg, "ensemble", settings=True)
    if cfg.threshold == "auto":
        require(cfg, "evaluate", settings=True)


def write_dataset(cfg: Config, user: str, files: dict[str, Path], folder: Path) -> None:
    """Code, wheels, files of the run, metadata. Raises UserError if Kaggle would not take it."""
    copy_code(folder)
    link_files(files, folder)
    check_limits(folder)
    pythons = collect_wheels(folder / "wheels", cfg.wheels)
    submission = content_hash(cfg.submission_csv) if cfg.submission_csv.is_file() else "none"
    facts = {"run": cfg.name, "settings": run_words(cfg), "pythons": pythons, "submission": submission}
    write_metadata(folder, user, cfg.name, facts)
    check_limits(folder)


def write_kernels(cfg: Config, user: str, trained: bool, folder: Path) -> None:
    """The training notebook and, of a trained run, the one that predicts."""
    words = run_words(cfg)
    if trained:
        scores = cfg.run_dir / "scores.json"
        kernel = Kernel(user, cfg.name, words, read_json(scores, expected=SCORES_JSON) if scores.is_file() else None)
        write_kernel(inference_notebook(kernel), folder / "inference", kernel, "-inference")
    if has_weights_file(cfg):
        kernel = Kernel(user, cfg.name, words, weights=weights_name(cfg))
    else:
        kernel = Kernel(user, cfg.name, [*words, f"weights={cfg.weights}"], internet=cfg.weights == "imagenet")
    write_kernel(training_notebook(kernel), folder / "training", kernel, "-training")


def run_words(cfg: Config) -> list[str]:
    """The settings that make this run what it is, as words; where its encoder starts is the training kernel's own."""
    preset = [f"preset={cfg.preset}"] if cfg.preset else []
    usual = parse(preset)
    stages = (
        FoldSettings,
        SeedSettings,
        CacheSettings,
        ModelSettings,
        ComputeSettings,
        TrainSettings,
        AugmentSettings,
        PredictSettings,
        FusionSettings,
        SubmissionSettings,
    )
    settings = {key: value for key, value in cfg.only(*stages).items() if key not in ("weights", "runs")}
    differing = {key: value for key, value in settings.items() if value != getattr(usual, key)}
    return [f"name={cfg.name}", f"fold={cfg.fold}", *preset, *(f"{key}={value}" for key, value in differing.items())]


def upload_of(cfg: Config, user: str, folder: Path, trained: bool) -> Upload:
    suffix = "inference" if trained else "training"
    kernel = f"{user}/{address_of(cfg.name, f'-{suffix}')}"
    dataset = f"{user}/{address_of(cfg.name)}"
    return Upload(dataset, folder / "dataset", kernel, folder / suffix, cfg.name)


def print_bundle(folder: Path) -> None:
    """What there is now and how large it is."""
    found = sizes(folder / "dataset")
    parts = ", ".join(f"{name} {megabytes(count)}" for name, count in found.items() if count > 1e5)
    print(f"dataset: {megabytes(sum(found.values()))} ({parts}) -> {folder / 'dataset'}")
    pythons = read_json(folder / "dataset" / "bundle.json")["pythons"]
    wheels = sorted(path.name for path in (folder / "dataset" / "wheels").glob("*.whl"))
    print(f"{len(wheels)} wheels for Python {', '.join(pythons)}: {', '.join(name.split('-')[0] for name in wheels)}")
    for path in sorted(folder.glob("*/*.ipynb")):
        print(f"{path.parent.name}: {path.stat().st_size / 1e3:.1f} kB -> {path}")


def print_commands(cfg: Config, user: str, folder: Path, trained: bool) -> None:
    """The way from here to a score."""
    if "demo" in cfg.preset.split(","):
        print("synthetic images: Kaggle has none of them; with its files in input/ this is the way:")
    if not trained:
        print(f"run {cfg.name} is not trained: the training kernel begins from nothing and ends with a submission")
    print("\n".join(instructions(upload_of(cfg, user, folder, trained))))
    if trained:
        push = shlex.join(push_command(folder / "training"))
        print(f"to train on Kaggle instead of at home, in place of the notebook above: {push}")


if __name__ == "__main__":
    run(main)
