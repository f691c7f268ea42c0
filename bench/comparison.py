"""Runs on the same images and folds, compared: what bench/quality.py, bench/detectors.py and bench/seeds.py share.

A workspace is made once, with the first seed; other seeds train on the same folds, since only make_folds asks for the
seed that made them. mAP is at cross-fitted thresholds, FROC the mean sensitivity.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rsna.core.command_line import split_word
from rsna.core.config import Config
from rsna.data.competition import read_folds, read_truth
from rsna.evaluation.bootstrap import paired_interval
from rsna.evaluation.detection_curves import detection_scores
from rsna.evaluation.metric import of_images
from rsna.evaluation.runs import people_of
from rsna.evaluation.scores import opacity_auc
from rsna.evaluation.threshold import cross_fit

ROOT = Path(__file__).resolve().parent.parent
SCORES = ("mAP", "AP50", "FROC", "AUC", "seconds")
N_RESAMPLES = 2000
QUICK = {"size": "32", "epochs": "1", "demo_train": "24", "demo_test": "2", "seeds": "42"}


class Result(NamedTuple):
    """One run of one seed."""

    run: str
    scores: dict[str, float]  # SCORES, or mAP alone
    image_scores: pd.Series  # by patientId, at cross-fitted thresholds


def command(name: str, *words: str) -> None:
    """Run a command of the project, see run_script."""
    run_script(ROOT / "src" / f"{name}.py", *words)


def run_script(path: Path, *words: str) -> None:
    """Run a script in one thread; its output is shown if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, str(path), *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{path.stem} {' '.join(words)}\n{done.stdout}{done.stderr}")


def make_workspace(words: list[str], has_data: bool) -> None:
    """Folds and cache, and without data of its own the synthetic competition; what is current stays."""
    for name in ("make_folds", "cache_images") if has_data else ("make_demo", "make_folds", "cache_images"):
        command(name, *words)


def score_table(
    run: str, predictions: pd.DataFrame, cfg: Config, seconds: float, gated: dict[int, pd.Series] | None = None
) -> Result:
    """The scores of an out-of-fold table; cfg: where the folds and the labels are. Prints them.

    gated: fold -> the confidences with the gate of the other folds, for the cross-fitted score.
    """
    folds = read_folds(cfg.folds_csv, "").set_index("patientId").loc[predictions["patientId"].unique()]
    truth = of_images(read_truth(Path(cfg.input)), folds.index)
    image_scores, _ = cross_fit(predictions, truth, folds["fold"], gated or {})
    curves = detection_scores(truth, predictions, len(folds))
    values = image_scores.mean(), curves["AP50"], curves["FROC"]["mean"], opacity_auc(predictions, truth), seconds
    scores = dict(zip(SCORES, map(float, values), strict=True))
    print(f"{run}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()), flush=True)
    return Result(run, scores, image_scores)


def print_comparison(results: list[Result], people: pd.Series, pairs: Sequence[tuple[str, str]]) -> None:
    """Mean and spread of each run over the seeds, paired differences of all runs, and ratio lines of these pairs.

    people: patientId -> person, of all images.
    """
    names = [*results[0].scores]
    table = pd.DataFrame([{"run": result.run, **result.scores} for result in results]).groupby("run", sort=False)
    mean, spread = table.mean(), table.std().fillna(0.0)
    how = "; mAP at cross-fitted thresholds, FROC: mean" if "FROC" in names else ""
    print(f"\nmean ± standard deviation over {table.size().max()} seed(s){how}")
    for run in mean.index:
        print(f"{run:22}" + "  ".join(f"{s} {mean.loc[run, s]:.4f} ± {spread.loc[run, s]:.4f}" for s in names))
    print_differences(results, people, list(mean.index))
    for run, other in pairs:
        for score in names:
            # a peer that finds nothing scores 0: then the ratio says nothing but that
            ratio = mean.loc[run, score] / mean.loc[other, score] if mean.loc[other, score] else np.inf
            print(f"ratio {score}_of_{run}_to_{other} {ratio:.3f}")


def print_differences(results: list[Result], people: pd.Series, runs: list[str]) -> None:
    """Paired differences in mAP. A resampled person brings all images, of all seeds: those are no new people."""
    pooled = {run: pd.concat([result.image_scores for result in results if result.run == run]) for run in runs}
    print("difference in mAP over all seeds, 95 % interval over people")
    for first, second in combinations(runs, 2):
        found = paired_interval(pooled[second], pooled[first], people, N_RESAMPLES, seed=0)
        print("{} - {}: {:+.4f} ({:+.4f} to {:+.4f})".format(second, first, *found))


def people_of_folds(cfg: Config) -> pd.Series:
    """patientId -> person, of the images in folds.csv."""
    return people_of(read_folds(cfg.folds_csv, ""))


def read_words(words: list[str], defaults: dict[str, str]) -> dict[str, str]:
    """key=value words over the defaults; with quick=true over small ones."""
    given = dict(map(split_word, words))
    return defaults | (QUICK if given.get("quick") == "true" else {}) | given


@contextmanager
def workspace(words: dict[str, str], name: str) -> Iterator[dict[str, str]]:
    """The settings of all runs: the words but for those of the script, and root; with quick=true that is not kept."""
    settings = {key: value for key, value in words.items() if key not in ("seeds", "runs", "jobs", "data", "quick")}
    if "data" in words:
        settings["input"] = str(Path(words["data"]).absolute())
    with tempfile.TemporaryDirectory() as folder:
        usual = folder if words.get("quick") == "true" else str(ROOT / "working" / name)
        yield {"root": usual, **settings}


def as_words(settings: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]
