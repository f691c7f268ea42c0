"""Quality of three recipes on the same folds, with the same epochs, over three seeds; networks from random weights.

    python bench/quality.py [quick=true] [epochs=10] [jobs=2]              on the synthetic competition, 64 px, 2 folds
    python bench/quality.py input=<Kaggle's files> [size=96] [n_folds=2]   on real ones
    python bench/quality.py recipes=default precision=float32              one recipe, in another precision

fastai: fastai's own learner with the post's network, loss, rates and freezing (its one cycle, its augmentations);
post: preset=fastai, the same in this project; default: this project's recipe. Out-of-fold scores of the last epoch,
mAP at its best threshold, plain view; for the default also with its test-time views. Seconds of one thread, for the
training of all folds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

RECIPES = ("fastai", "post", "default")
SCORES = ("mAP", "AUC", "IoU", "seconds")


def stage(name: str, *words: str) -> None:
    """Run a stage; its output is shown if it fails."""
    done = subprocess.run([sys.executable, str(ROOT / "src" / f"{name}.py"), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def world_words(root: str, seed: int, words: dict[str, str]) -> list[str]:
    """The settings that all recipes share."""
    own = {"root": root, "seed": str(seed), "size": "64", "n_folds": "2", "weights": "none", "demo_train": "300"}
    own |= {
        key: value for key, value in words.items() if key in ("size", "n_folds", "demo_train", "input", "precision")
    }
    return [f"{key}={value}" for key, value in own.items()]


def post_phases(epochs: int) -> str:
    """The post's 3 + 5 + 10 epochs, scaled."""
    first, second = max(1, round(epochs * 3 / 18)), max(1, round(epochs * 5 / 18))
    return (
        f"head:{first}:1e-3:one_cycle_legacy,last2:{second}:2e-6/2e-5/2e-4:one_cycle_legacy,"
        f"all:{epochs - first - second}:1e-6/1e-5/1e-4:one_cycle_legacy"
    )


def run_ours(recipe: str, world: list[str], epochs: int) -> dict[str, pd.DataFrame]:
    """Out-of-fold tables by title, from the engine and the stages after it."""
    from rsna.core.config import parse
    from rsna.models.registry import settings_of
    from rsna.training.fold import train_fold

    own = ["preset=fastai", f"phases={post_phases(epochs)}"] if recipe == "post" else [f"epochs={epochs}"]
    words = [*own, *world, f"name={recipe}", "checkpoint=last"]
    cfg = parse(words, settings_of)
    start = time.perf_counter()
    for fold in cfg.fold_list:
        train_fold(cfg, fold)
    seconds = time.perf_counter() - start
    for name in ("predict", "ensemble"):
        stage(name, *words)
    tables = {recipe: pd.read_csv(cfg.run_dir / "oof_no_tta.csv", dtype={"patientId": str})}
    if recipe == "default":
        tables["default, views"] = pd.read_csv(cfg.run_dir / "oof.csv", dtype={"patientId": str})
    return {title: table.assign(seconds=seconds) for title, table in tables.items()}


def run_fastai(world: list[str], epochs: int) -> dict[str, pd.DataFrame]:
    """The out-of-fold table of fastai's learner."""
    import fastai_peer
    import torch

    from rsna.core.config import parse
    from rsna.data.dataset import ImageDataset, load_fold
    from rsna.data.loader import make_loader
    from rsna.inference.predictor import predict_views, prediction_table
    from rsna.inference.tta import TtaTransform
    from rsna.models.registry import build_model, settings_of

    cfg = parse(["preset=fastai", f"phases={post_phases(epochs)}", *world], settings_of)
    augmentation = {"max_rotate": 30.0, "min_zoom": 1.0, "max_zoom": 1.0, "max_lighting": 0.1, "max_warp": 0.0}
    cpu, tables, seconds = torch.device("cpu"), [], 0.0
    for fold in cfg.fold_list:
        data = load_fold(cfg, fold)
        torch.manual_seed(cfg.seed * 1000 + fold)
        model = build_model(cfg)
        batches = fastai_peer.make_dataloaders(data.train, data.valid, cfg.batch_size, augmentation)
        learner = fastai_peer.make_learner(batches, model, wd=0.0)
        start = time.perf_counter()
        with learner.no_bar(), learner.no_logging():
            for phase, group in zip(cfg.phase_list, (2, 1, 0), strict=True):
                learner.freeze_to(group)
                learner.fit_one_cycle(phase.epochs, list(phase.lrs) if len(phase.lrs) > 1 else phase.lrs[0])
        seconds += time.perf_counter() - start
        loader = make_loader(ImageDataset(data.valid), 16, 0, cpu)
        ((boxes, scores, _),) = predict_views(model, loader, [TtaTransform()], cpu, torch.float32)
        tables.append(prediction_table(data.valid, boxes, scores, cfg.size))
    return {"fastai": pd.concat(tables).assign(seconds=seconds)}


def run_one(recipe: str, world: list[str], epochs: int) -> None:
    """One recipe on one seed; prints its scores as JSON."""
    from rsna.core.config import parse
    from rsna.data.competition import LABELS_CSV, read_labels, truth_boxes
    from rsna.evaluation import scores as scoring
    from rsna.evaluation.threshold import best_score

    tables = run_fastai(world, epochs) if recipe == "fastai" else run_ours(recipe, world, epochs)
    truth = truth_boxes(read_labels(Path(parse(world).input) / LABELS_CSV))
    for title, table in tables.items():
        scores = {
            "mAP": best_score(table, truth),
            "AUC": scoring.opacity_auc(table, truth),
            "IoU": scoring.iou_on_positives(table, truth),
            "seconds": float(table["seconds"].iloc[0]),
        }
        print(json.dumps({"recipe": title} | scores))


def prepare(folder: str, seed: int, words: dict[str, str]) -> list[str]:
    """Make one seed's competition (unless it is given), folds and cache."""
    world = world_words(f"{folder}/{seed}", seed, words)
    for name in ("make_folds", "cache_images") if "input" in words else ("make_demo", "make_folds", "cache_images"):
        stage(name, *world)
    return world


def measure(folder: str, words: dict[str, str], seeds: range, epochs: int) -> pd.DataFrame:
    """A row per recipe and seed; `jobs` of them at a time, one thread each."""
    worlds = [prepare(folder, seed, words) for seed in seeds]
    # fastai imports slowly and shows bars; one thread each, so that seconds compare
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

    def run(job: tuple[str, list[str]]) -> list[dict[str, Any]]:
        command = [sys.executable, __file__, f"one={job[0]}", f"epochs={epochs}", *job[1]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"recipe"')]
        if done.returncode or not rows:
            raise RuntimeError(done.stdout + done.stderr)
        for row in rows:
            print("  ".join(f"{key} {value if key == 'recipe' else f'{value:.4f}'}" for key, value in row.items()))
        return rows

    with ThreadPoolExecutor(int(words.get("jobs", 2))) as pool:
        recipes = words.get("recipes", ",".join(RECIPES)).split(",")
        jobs = [(recipe, world) for recipe in recipes for world in worlds]
        return pd.DataFrame([row for rows in pool.map(run, jobs) for row in rows])


def main(words: dict[str, str]) -> None:
    if "one" in words:
        world = [f"{key}={value}" for key, value in words.items() if key not in ("one", "epochs")]
        run_one(words["one"], world, int(words["epochs"]))
        return
    quick = words.get("quick") == "true"
    epochs = int(words.get("epochs", 3 if quick else 10))
    words = {"demo_train": "40"} | words if quick else words
    with tempfile.TemporaryDirectory() as folder:
        table = measure(folder, words, range(1, 2 if quick else 4), epochs)
    by_recipe = table.groupby("recipe", sort=False)[list(SCORES)]
    mean, spread = by_recipe.mean(), by_recipe.std().fillna(0.0)
    print(f"\n{epochs} epochs, {table.groupby('recipe').size().max()} seeds, mean ± standard deviation")
    for recipe in mean.index:
        print(
            f"{recipe:16}" + "  ".join(f"{s} {mean.loc[recipe, s]:.4f} ± {spread.loc[recipe, s]:.4f}" for s in SCORES)
        )
    for peer in ("fastai", "post") if "recipes" not in words else ():
        for score in ("mAP", "AUC", "IoU"):
            # a peer that finds nothing scores 0: then the ratio says nothing but that
            ratio = mean.loc["default", score] / mean.loc[peer, score] if mean.loc[peer, score] else np.inf
            print(f"ratio {score}_of_default_to_{peer} {ratio:.2f}")
        print(f"ratio seconds_of_{peer}_to_default {mean.loc[peer, 'seconds'] / mean.loc['default', 'seconds']:.2f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
