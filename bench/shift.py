"""What an operating point chosen for the test images is worth on a test set unlike the training set, by training.

    python bench/shift.py [quick=true] [seeds=5] [at_once=1] [key=value ...]     OMP_NUM_THREADS=1 on a shared machine

For each seed a synthetic competition (make_demo shift=true: the last fifth of the training images and the test set
have 36 % positives and boxes of .78 times the side) and one training; then evaluate and make_submission for each rule,
without another prediction. at_once seeds run side by side. Scores are of the submissions, on the withheld test
labels; a difference is paired by image, with the 95 % interval over the images of all seeds. Other words are settings
of the sequence (epochs=, size=, demo_train=).
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.data.competition import read_labels, truth_boxes
from rsna.data.submission_format import parse_submission
from rsna.evaluation.bootstrap import paired_interval
from rsna.evaluation.metric import image_scores

SRC = Path(__file__).resolve().parent.parent / "src"
SEQUENCE = ("make_demo", "make_folds", "cache_images", "train", "predict", "ensemble")
RULES = {
    "all": ["calibrate=all", "prior=none"],
    "all_prior": ["calibrate=all", "prior=auto"],
    "test_like_unscaled": ["calibrate=test_like", "prior=auto", "box_scale=1.0"],
    "test_like": ["calibrate=test_like", "prior=auto"],
}
QUICK = {
    "demo_train": "40",
    "demo_test": "20",
    "epochs": "1",
    "seeds": "1",
    "jobs": "1",
    "device": "cpu",
    "workers": "0",
}


def run(name: str, words: list[str]) -> str:
    """Run a command; returns what it printed. Its output is shown if it fails."""
    command = [sys.executable, str(SRC / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stdout}{done.stderr}")
    return done.stdout


def score_seed(seed: int, settings: dict[str, str]) -> dict[str, pd.Series]:
    """Rule -> score of each test image that counts, by seed and patientId."""
    with tempfile.TemporaryDirectory() as root:
        words = ["preset=demo", f"root={root}", "shift=true", f"seed={seed}"]
        words += [f"{key}={value}" for key, value in settings.items()]
        for name in SEQUENCE:
            run(name, words)
        truth, scores = truth_boxes(read_labels(Path(root) / "test_labels.csv")), {}
        for rule, own in RULES.items():
            run("evaluate", [*words, *own])
            line = run("make_submission", [*words, *own]).splitlines()[0]
            kept = parse_submission(Path(root) / "submissions" / "demo.csv").dropna(subset=["confidence"])
            scores[rule] = image_scores(truth, kept).mean(axis=1).add_prefix(f"{seed} ")
            print(f"seed {seed}, {rule}: mAP {scores[rule].mean():.4f}; {line}", flush=True)
        return scores


def main(words: dict[str, str]) -> None:
    words = {**(QUICK if words.pop("quick", "") == "true" else {}), **words}
    seeds = range(1, 1 + int(words.pop("seeds", 5)))
    with ThreadPoolExecutor(int(words.pop("at_once", 1))) as pool:
        by_seed = list(pool.map(lambda seed: score_seed(seed, words), seeds))
    scores = {rule: pd.concat([found[rule] for found in by_seed]) for rule in RULES}
    ids = pd.Index(sorted(set().union(*(table.index for table in scores.values()))))
    people = pd.Series(ids, index=ids)
    for rule, table in scores.items():
        means = pd.Series([found[rule].mean() for found in by_seed])
        print(
            f"{rule:18} mAP {means.mean():.4f} ± {means.std() if len(means) > 1 else 0:.4f} over {len(means)} seed(s)"
        )
        if rule != "all":
            difference, low, high = paired_interval(table, scores["all"], people, 1000, 1)
            print(f"{'':18} minus all: {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    base = scores["all"].mean()
    for rule, table in scores.items():
        print(f"ratio score_of_{rule}_to_all {table.mean() / base if base else float('nan'):.3f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
