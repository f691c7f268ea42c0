"""Quality of configurations on the same folds, with the same epochs, over several seeds.

    python bench/quality.py [quick=true]                                  on the synthetic competition, 64 px, 2 folds
    python bench/quality.py data=<Kaggle's files> size=128 n_folds=5 [encoder=...] [weights=<file>] [seeds=42,43,44]
    python bench/quality.py runs=single_box,post precision=float32        some runs only; other settings go to all

single_box, detector: these models; gated: the detector's boxes with the image probabilities of model=classifier, an
ensemble of two runs; fastai: fastai's own learner with the post's network, loss, rates, freezing and augmentations;
post: preset=fastai, the same in this project. Without runs= all of them but post, as far as they are there.

Two trainings of one thread each at a time (jobs=2), with the project's commands in the workspace root= (default:
working/quality). There it resumes: what is current is not trained again. mAP is cross-fitted; seconds are those of
training and validating all folds.
"""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
from comparison import (
    Result,
    as_words,
    command,
    make_workspace,
    people_of_folds,
    print_comparison,
    read_words,
    run_script,
    score_table,
    workspace,
)

from rsna.core.command_line import parse
from rsna.core.config import Config
from rsna.core.files import content_hash, read_json, write_json
from rsna.core.tables import write_table
from rsna.data.competition import read_predictions
from rsna.evaluation.runs import training_seconds
from rsna.models.registry import names, settings_of

DEFAULTS = {"size": "64", "n_folds": "2", "epochs": "10", "weights": "none", "seeds": "42,43,44"}
SEVERAL = {"max_boxes": "4", "missing_weight": "0"}  # fusion of a model with several boxes per image
MODELS = {
    "single_box": {"model": "single_box"},
    "detector": {"model": "detector", **SEVERAL},
    "classifier": {"model": "classifier"},
    "post": {"preset": "fastai"},
}
ENSEMBLES = {"gated": ("detector", "classifier")}
GATE = "0.5,0.1"  # of the challenge's second place: one that is chosen on these images would flatter
PEERS = ("fastai", "post")
AUGMENTATION = {"max_rotate": 30.0, "min_zoom": 1.0, "max_zoom": 1.0, "max_lighting": 0.1, "max_warp": 0.0}


def post_phases(epochs: int) -> str:
    """The post's 3 + 5 + 10 epochs, scaled."""
    first, second = max(1, round(epochs * 3 / 18)), max(1, round(epochs * 5 / 18))
    return (
        f"head:{first}:1e-3:one_cycle_legacy,last2:{second}:2e-6/2e-5/2e-4:one_cycle_legacy,"
        f"all:{max(1, epochs - first - second)}:1e-6/1e-5/1e-4:one_cycle_legacy"
    )


def own_words(run: str, seed: str, world: dict[str, str]) -> dict[str, str]:
    """The settings of a run of this seed."""
    words = {**MODELS.get(run, {}), **world, "seed": seed, "name": f"{run}-{seed}", "checkpoint": "last"}
    if run in ENSEMBLES:
        words = {**SEVERAL, "gate": GATE, **words, "runs": ",".join(f"{part}-{seed}" for part in ENSEMBLES[run])}
    if run in PEERS:
        words |= {"preset": "fastai", "phases": post_phases(int(words.pop("epochs")))}
    return words


def train_run(run: str, seed: str, world: dict[str, str]) -> None:
    """Train, predict and fuse with the commands, or fastai's learner in a process of its own."""
    words = as_words(own_words(run, seed, world))
    if run == "fastai":
        run_script(Path(__file__), "one=fastai", *words)
        return
    # the classifier has no boxes: it is fused with the detector only
    for name in ("train", "predict") if run == "classifier" else ("train", "predict", "ensemble"):
        command(name, *words)


def train_fastai(words: list[str]) -> None:
    """Write oof.csv and peer.json of fastai's learner, unless they are there from the same words and folds."""
    cfg = parse(words, settings_of)
    made = {"words": sorted(words), "folds": content_hash(cfg.folds_csv)}
    path = cfg.run_dir / "peer.json"
    if path.is_file() and read_json(path, "")["made"] == made:
        return
    parts = [fit_fastai(cfg, fold) for fold in cfg.fold_list]
    write_table(pd.concat([table for table, _ in parts]), cfg.run_dir / "oof.csv")
    write_json({"made": made, "seconds": sum(seconds for _, seconds in parts)}, path)


def fit_fastai(cfg: Config, fold: int) -> tuple[pd.DataFrame, float]:
    """Predictions of a fold's validation images by fastai's learner, plain view, and the seconds of its training."""
    import fastai_peer
    import torch

    from rsna.data.dataset import ImageDataset, load_fold
    from rsna.data.loader import make_loader
    from rsna.inference.predictor import predict_views, prediction_table
    from rsna.inference.tta import TtaTransform
    from rsna.models.registry import build_model

    data, cpu = load_fold(cfg, fold), torch.device("cpu")
    torch.manual_seed(cfg.seed * 1000 + fold)
    random.seed(cfg.seed * 1000 + fold)  # fastai shuffles with it
    model = build_model(cfg)
    batches = fastai_peer.make_dataloaders(data.train, data.valid, cfg.batch_size, AUGMENTATION)
    learner = fastai_peer.make_learner(batches, model, wd=0.0)
    start = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        for phase, group in zip(cfg.phase_list, (2, 1, 0), strict=True):
            learner.freeze_to(group)
            learner.fit_one_cycle(phase.epochs, list(phase.lrs) if len(phase.lrs) > 1 else phase.lrs[0])
    seconds = time.perf_counter() - start
    loader = make_loader(ImageDataset(data.valid), 16, 0, cpu)
    ((boxes, scores, _),) = predict_views(model, loader, [TtaTransform()], cpu, torch.float32)
    return prediction_table(data.valid, boxes, scores, cfg.size), seconds


def seconds_of(run: str, seed: str, cfg: Config) -> float:
    """Seconds of training; of an ensemble those of its runs together."""
    folders = [Path(cfg.working) / f"{part}-{seed}" for part in ENSEMBLES.get(run, (run,))]
    if run == "fastai":
        return float(read_json(folders[0] / "peer.json", "")["seconds"])
    return sum(map(training_seconds, folders))


def available(runs: str) -> list[str]:
    """The runs that are named; or the default ones whose models and packages are there."""
    if runs:
        return runs.split(",")
    wanted = ("single_box", "detector", "gated", "fastai")
    absent = {run for run in wanted if not set(ENSEMBLES.get(run, (run,))) <= {"fastai", *names()}}
    absent |= set() if find_spec("fastai") else {"fastai"}
    for run in sorted(absent):
        print(f"left out: {run}, whose model or package is not there")
    return [run for run in wanted if run not in absent]


def measure(words: dict[str, str], world: dict[str, str], runs: list[str]) -> list[Result]:
    """Train all runs of all seeds, the parts of ensembles first, and score them."""
    seeds, cfg = words["seeds"].split(","), parse(as_words(world))
    make_workspace([*as_words(world), f"seed={seeds[0]}"], "data" in words)
    parts = dict.fromkeys(part for run in runs for part in ENSEMBLES.get(run, (run,)))
    with ThreadPoolExecutor(int(words.get("jobs", 2))) as pool:
        list(pool.map(lambda job: train_run(*job, world), [(run, seed) for seed in seeds for run in parts]))
    results = []
    for run in runs:
        for seed in seeds:
            if run in ENSEMBLES:
                command("ensemble", *as_words(own_words(run, seed, world)))
            table = read_predictions(Path(cfg.working) / f"{run}-{seed}" / "oof.csv")
            results.append(score_table(run, table, cfg, seconds_of(run, seed, cfg)))
    return results


def main(words: dict[str, str], world: dict[str, str]) -> None:
    runs = available(words.get("runs", ""))
    results = measure(words, world, runs)
    own = [run for run in runs if run not in PEERS]
    pairs = [(run, own[0]) for run in own[1:]] + [(run, peer) for peer in PEERS if peer in runs for run in own]
    print_comparison(results, people_of_folds(parse(as_words(world))), pairs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one=fastai"]:
        train_fastai(sys.argv[2:])
    else:
        given = read_words(sys.argv[1:], DEFAULTS)
        with workspace(given, "quality") as shared:
            main(given, shared)
