"""Finished runs of several seeds, compared on the same images: cross-fitted mAP, or that of the submissions.

    python bench/seeds.py runs=best_single_box,best_detector,best roots=<a>,<b>,<c> input=<Kaggle's files>
    python bench/seeds.py runs=... roots=... input=... labels=<labels of the test images>     of submissions/<run>.csv
    python bench/seeds.py quick=true                                    two small runs on the synthetic competition

roots: one workspace per seed, all with the same folds.csv, in which every run has been evaluated; with labels=
submitted. Nothing is trained (except with quick=true). A gated run takes the gate of each fold from the other folds, as
`evaluate` does. Ratios are to the first run.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
from comparison import (
    QUICK,
    Result,
    as_words,
    command,
    make_workspace,
    people_of_folds,
    print_comparison,
    read_words,
    score_table,
)

from rsna.core.artifacts import require
from rsna.core.command_line import parse
from rsna.core.config import Config
from rsna.core.errors import UserError, end_with_one_line
from rsna.core.files import content_hash
from rsna.data.competition import people_of_images, read_labels, truth_boxes
from rsna.data.submission_format import parse_submission
from rsna.evaluation.metric import image_scores, of_images
from rsna.evaluation.runs import as_made, training_seconds
from rsna.evaluation.scores import read_out_of_fold, read_scores
from rsna.evaluation.threshold import with_scaled_boxes
from rsna.models.registry import settings_of


def score(cfg: Config) -> Result:
    """The scores of a run, and the cross-fitted one of each image."""
    cfg = as_made(cfg)
    require(cfg, "evaluate")
    found = read_out_of_fold(cfg)
    scores = read_scores(cfg.run_dir, f"./run.sh evaluate name={cfg.name}")
    predictions = with_scaled_boxes(found.predictions, scores["box_scale"])
    return score_table(cfg.name, predictions, cfg, training_seconds(cfg.run_dir), found.gated)


def score_submission(cfg: Config, labels: pd.DataFrame) -> Result:
    """The score of a submission and of each of its images, as `evaluate predictions=` computes it."""
    predictions = parse_submission(cfg.submission_csv)
    if unknown := set(predictions["patientId"]) - set(labels["patientId"]):
        raise UserError(
            f"{cfg.submission_csv}: {len(unknown)} images have no label, such as {min(unknown)}; set labels="
        )
    scores = image_scores(of_images(truth_boxes(labels), predictions["patientId"]), predictions).mean(axis=1)
    print(f"{cfg.submission_csv}: mAP {scores.mean():.4f}", flush=True)
    return Result(cfg.name, {"mAP": float(scores.mean())}, scores)


def train_quickly(root: str) -> None:
    """Two runs of one epoch on a few images."""
    settings = {**QUICK, "root": root, "n_folds": "2", "weights": "none", "workers": "0", "bootstrap": "10"}
    settings.pop("seeds")
    make_workspace(as_words(settings), has_data=False)
    for seed in ("1", "2"):
        for name in ("train", "predict", "ensemble", "evaluate"):
            command(name, *as_words({**settings, "name": f"seed{seed}", "seed": seed}))


def main(words: dict[str, str]) -> None:
    names, roots = (words.pop(key, "").split(",") for key in ("runs", "roots"))
    for key, given in {"runs": names, "roots": roots}.items():
        if "" in given or len({*given}) < len(given):
            raise UserError(f"{key}={','.join(given)}: list one or more, separated by commas, each only once")
    worlds = [parse(as_words({**words, "root": root}), settings_of) for root in roots]
    runs, pairs = [cfg.of_run(name) for name in names for cfg in worlds], [(name, names[0]) for name in names[1:]]
    if "labels" in words:
        labels = read_labels(Path(worlds[0].labels))
        people = people_of_images(Path(worlds[0].input), labels["patientId"].drop_duplicates())
        print_comparison([score_submission(run, labels) for run in runs], people, pairs)
        return
    if len({content_hash(cfg.folds_csv) for cfg in worlds}) > 1:
        raise UserError("the workspaces differ in folds/folds.csv, so their images cannot be compared in pairs")
    print_comparison([score(run) for run in runs], people_of_folds(worlds[0]), pairs)


if __name__ == "__main__":
    end_with_one_line()
    given = read_words(sys.argv[1:], {})
    if given.pop("quick", "") == "true":
        with tempfile.TemporaryDirectory() as folder:
            train_quickly(folder)
            main({"runs": "seed1,seed2", "roots": folder})
    else:
        main(given)
