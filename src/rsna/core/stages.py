"""The provenance table: for each command, its settings, inputs and outputs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rsna.core import config
from rsna.core.config import FILE_OR_WORD, Config


@dataclass(frozen=True)
class Stage:
    """One command: the settings that change its outputs, its files, and the commands whose outputs it reads.

    Files are templates: {input}, {folds}, {cache}, {run}, {root} and {submissions} are the folders of the config,
    {name} is the name of the run, {fold} the fold, {source} the folder of each fused run; {test_labels}, {weights} and
    {calibrate} are the files in these settings. `index.csv#train` stands for the index's rows of training images.
    """

    settings: tuple[type, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    manifest: str
    after: tuple[str, ...] = ()
    remedy: str = "run: "  # the text before the command in an error about a changed file
    version: int = 1  # increase it when the same settings and inputs give different outputs than before


LABELS, CLASSES = "{input}/stage_2_train_labels.csv", "{input}/stage_2_detailed_class_info.csv"
MAPPING = "{input}/pneumonia-challenge-dataset-mappings_2018.json"
SAMPLE, HEADERS = "{input}/stage_2_sample_submission.csv", "{input}/dicom_headers.csv"
FOLDS, TRAIN_IMAGES, TEST_IMAGES = "{folds}/folds.csv", "{cache}/index.csv#train", "{cache}/index.csv#test"
FOLD, TABLES = "{run}/fold{fold}", ("valid", "valid_images", "test", "test_images")
FUSED = ("oof", "oof_images", "oof_no_tta", "test", "test_images", "test_by_fold")

# fmt: off
STAGES = {
    "make_demo": Stage(
        settings=(config.DemoSettings, config.SeedSettings), inputs=(), manifest="{root}/demo.json", version=4,
        outputs=("{test_labels}", MAPPING, SAMPLE, CLASSES, LABELS),
    ),
    "make_folds": Stage(
        settings=(config.FoldSettings, config.SeedSettings), inputs=(LABELS, CLASSES, MAPPING, HEADERS),
        outputs=(FOLDS,), manifest="{folds}/folds.json", remedy="restore it, or to accept it run: ",
    ),
    "train": Stage(
        settings=(
            config.FoldSettings, config.SeedSettings, config.CacheSettings, config.ModelSettings,
            config.ComputeSettings, config.TrainSettings, config.AugmentSettings,
        ),
        inputs=(FOLDS, LABELS, TRAIN_IMAGES, "{weights}"),
        outputs=(f"{FOLD}/best.pt", f"{FOLD}/last.pt", f"{FOLD}/history.csv"),
        manifest=f"{FOLD}/train.json", after=("make_folds",), version=2,
        remedy=f"restore it, or give this run another name=, or delete {FOLD} and run: ",
    ),
    "predict": Stage(
        settings=(config.CacheSettings, config.ModelSettings, config.ComputeSettings, config.PredictSettings),
        inputs=(f"{FOLD}/{{checkpoint}}.pt", FOLDS, SAMPLE, TRAIN_IMAGES, TEST_IMAGES),
        outputs=tuple(f"{FOLD}/{table}.csv" for table in TABLES),
        manifest=f"{FOLD}/predict.json", after=("train",), version=2,
    ),
    "ensemble": Stage(
        settings=(config.FusionSettings,),
        inputs=(FOLDS, LABELS, *(f"{{source}}/fold{{fold}}/{table}.csv" for table in TABLES)),
        outputs=tuple(f"{{run}}/{table}.csv" for table in FUSED),
        manifest="{run}/ensemble.json", after=("predict",), version=5,
    ),
    "evaluate": Stage(
        settings=(config.EvaluationSettings, config.OperatingPointSettings, config.SeedSettings),
        inputs=("{run}/oof.csv", "{run}/oof_images.csv", "{run}/oof_no_tta.csv", FOLDS, LABELS, "{calibrate}"),
        outputs=("{run}/scores.json", "{run}/threshold.csv", "{run}/surface.csv"),
        manifest="{run}/evaluate.json", after=("ensemble",), version=7,
    ),
    "make_submission": Stage(
        settings=(config.OperatingPointSettings, config.SubmissionSettings),
        inputs=(
            "{run}/test.csv", "{run}/test_by_fold.csv", "{run}/scores.json", "{run}/surface.csv", SAMPLE, TEST_IMAGES,
        ),
        outputs=("{submissions}/{name}.csv",),
        manifest="{submissions}/{name}.json", after=("evaluate",), version=3,
    ),
    "infer": Stage(  # only what it keeps in the run's folder: the statistics of training images, to detect outliers
        settings=(), inputs=("{source}/fold{fold}/{checkpoint}.pt",), outputs=("{run}/outliers.npz",),
        manifest="{run}/outliers.json", after=("evaluate",),
    ),
    "report": Stage(
        settings=(),
        inputs=(
            "{run}/oof.csv", "{run}/scores.json", "{run}/threshold.csv", "{run}/surface.csv",
            "{submissions}/{name}.csv",
        ),
        outputs=("{run}/report.html",), manifest="{run}/report.json", after=("evaluate",),
    ),
}
# fmt: on
# settings that may differ after training: the precision, and the initial weights, which a user of the run may not have
FREE_TO_USERS = ("weights", "precision")


def files_of(templates: Iterable[str], cfg: Config, fold: int | None = None) -> dict[str, Path]:
    """Templates -> name in manifests (without this machine's folders) -> path; `{source}` expands to several files."""
    found: dict[str, Path] = {}
    for template in templates:
        if template.strip("{}") in FILE_OR_WORD and not names_file(cfg, template.strip("{}")):
            continue
        runs = [(cfg, fold)]
        if "{source}" in template:
            runs = [(run, k) for run in cfg.fused_runs for k in cfg.fold_list]
        key = re.sub(r"^\{(input|folds|root|submissions|weights|calibrate|test_labels)\}", r"\1", template)
        for part, short in (("{source}/", "{name}/"), ("{run}/", ""), ("{cache}/index.csv#", "cached images, ")):
            key = key.replace(part, short)
        template = template.replace("{source}", "{run}")
        found |= {fill(key, run, k): Path(fill(template, run, k)) for run, k in runs}
    return found


def fill(template: str, cfg: Config, fold: int | None) -> str:
    return template.format_map({**vars(cfg), "run": cfg.run_dir, "cache": cfg.cache_dir, "fold": fold})


def names_file(cfg: Config, key: str) -> bool:
    """Whether a setting of FILE_OR_WORD is the path of a file."""
    return getattr(cfg, key) not in FILE_OR_WORD[key]
