"""This project's detector against torchvision's RetinaNet (v2) and FCOS: same encoder, images, folds and training.

    python bench/detectors.py [quick=true]                                on the synthetic competition, 64 px, 2 folds
    python bench/detectors.py data=<Kaggle's files> size=128 [weights=<file>] [n_folds=5] [epochs=12] [seeds=42,43,44]
    python bench/detectors.py runs=single_box,torchvision_fcos            the first run is compared with the others

The peers are registered here as models of this project, so that encoder, initial weights, batches, augmentation,
optimiser, schedule, test-time views and fusion are the same for all; see torchvision_peers.py for what was adapted to
small inputs. Two trainings of one thread each at a time (jobs=2), in the workspace root= (default: working/detectors).
There it resumes: what is current is not trained again. mAP is cross-fitted; seconds are those of all folds.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torchvision_peers  # noqa: F401 (registers the peers)
from comparison import as_words, make_workspace, people_of_folds, print_comparison, read_words, score_table, workspace

from rsna.core.command_line import parse
from rsna.data.competition import read_predictions
from rsna.evaluation.runs import training_seconds
from rsna.evaluation.scores import evaluate_run
from rsna.inference.ensemble import fuse_run
from rsna.inference.predictor import predict_fold
from rsna.models.registry import check_name, settings_of
from rsna.training.fold import train_fold

ENCODER = "resnet34"  # from random weights, which the demo has, smaller encoders learn nothing in so few steps
DEFAULTS = {
    "size": "64",
    "n_folds": "2",
    "epochs": "10",
    "encoder": ENCODER,
    "weights": "none",
    "seeds": "42,43,44",
    "max_boxes": "4",
    "missing_weight": "0",
}
RUNS = ("detector", "torchvision_retinanet", "torchvision_fcos")


def train_run(words: list[str]) -> None:
    """Train, predict, fuse and score a run in this process; what is current stays."""
    cfg = parse(words, settings_of)
    for fold in cfg.fold_list:
        train_fold(cfg, fold)
        predict_fold(cfg, fold)
    fuse_run(cfg)
    evaluate_run(cfg)


def main(words: dict[str, str], world: dict[str, str]) -> None:
    runs = words["runs"].split(",") if "runs" in words else list(RUNS)
    for run in runs:
        check_name(run)
    seeds, cfg = words["seeds"].split(","), parse(as_words(world))
    make_workspace([*as_words(world), f"seed={seeds[0]}"], "data" in words)
    jobs = [
        as_words({**world, "checkpoint": "last", "model": run, "seed": seed, "name": f"{run}-{seed}"})
        for seed in seeds
        for run in runs
    ]
    # spawned processes import this file, and so know the peers
    with ProcessPoolExecutor(int(words.get("jobs", 2)), get_context("spawn")) as pool:
        list(pool.map(train_run, jobs))
    results = []
    for run in runs:
        for folder in (cfg.cache_dir.parent / f"{run}-{seed}" for seed in seeds):
            results.append(score_table(run, read_predictions(folder / "oof.csv"), cfg, training_seconds(folder)))
    print_comparison(results, people_of_folds(cfg), [(runs[0], peer) for peer in runs[1:]])


if __name__ == "__main__":
    given = read_words(sys.argv[1:], DEFAULTS)
    with workspace(given, "detectors") as shared:
        main(given, shared)
