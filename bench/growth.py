"""Seconds and peak memory of every command that handles tables or lists files, as the images grow to a million.

    python bench/growth.py [quick=true] [sizes=26684,267000,1000000] [folder=/tmp] [commands=evaluate,report]

Made-up tables and predictions; DICOMs and PNGs of 512 px that are a few files under many names (hard links); people
with one image or many, 2.3 in the mean as in the challenge; for nine training images one test image more. Each
command is the real one, in a process of its own. `cache_images` runs three times: on a cache that was copied here (it
reads all files), on a complete one, and after a kill shortly before the end. The exponent of growth is that between
the two largest sizes, of processor seconds (on a busy machine others are no measure) beyond those of the command's
imports: 1 is linear.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.core.config import WORKSPACE, Config
from rsna.core.sources import INDEX_CSV, see
from rsna.core.tables import write_table
from rsna.data import competition
from rsna.data.cache import INDEX_COLUMNS, JOURNAL_CSV, SPLITS, cache_image, read_known
from rsna.data.competition import BOX_COLUMNS, CLASSES, HEADER_COLUMNS, LABEL_COLUMNS, TRAIN_IMAGES

FOLDS, SIZE, VIEWS = 5, 512, ("plain", "hflip")
LINKS = 20_000  # names of one file; ext4 allows 65,000
LEFT_TO_DO = 20  # images that the killed cache_images had not reached
HISTORY = ("epoch", "phase", "lr", "train_loss", "valid_loss", "accuracy", "L1", "L1_post", "AUC", "IoU", "mAP")


TABLES = ("ensemble", "evaluate", "make_submission", "report")  # the commands that follow each other


class Cost(NamedTuple):
    seconds: float
    busy: float  # processor seconds of the command and its pool
    megabytes: float  # highest memory of one process


def run(name: str, *words: str) -> Cost:
    """Run a command; of its pool's processes the largest counts."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, str(WORKSPACE / "src" / f"{name}.py"), *words]
        child = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            sys.exit(said.read().decode(errors="replace"))
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def aside(work: Callable[..., None], *words: Any) -> None:
    """Call a function in a process of its own: what this one takes would count as memory of the commands."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(work, *words).result()


def make_ids(rng: np.random.Generator, n: int) -> list[str]:
    """Names as long as the challenge's."""
    return [f"{number:08x}-0000-4000-8000-{k:012x}" for k, number in enumerate(rng.integers(0, 2**32, n))]


def make_boxes(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """n boxes in either lung, original pixels."""
    x = rng.choice([170, 600], n) + rng.normal(0, 30, n)
    boxes = [x, 300 + rng.normal(0, 60, n), rng.uniform(150, 280, n), rng.uniform(150, 400, n)]
    return pd.DataFrame(np.round(np.stack(boxes, axis=1), 2), columns=BOX_COLUMNS)


def make_tables(folder: Path, ids: list[str], test: list[str], rng: np.random.Generator) -> None:
    """The competition's tables: 22 % positives, 1.6 boxes each."""
    n, folder = len(ids), folder / "input"
    n_boxes = np.where(rng.random(n) < 0.225, rng.choice([1, 2, 3], n, p=[0.5, 0.4, 0.1]), 0)
    rows = np.repeat(np.arange(n), np.maximum(n_boxes, 1))
    names, positive = pd.Series(ids, dtype=object).iloc[rows].array, n_boxes[rows] > 0
    labels = make_boxes(rng, len(rows)).where(pd.Series(positive), np.nan)
    labels = labels.assign(patientId=names, Target=positive.astype(int))[LABEL_COLUMNS]
    kinds = np.where(n_boxes > 0, CLASSES[2], np.where(rng.random(n) < 0.43, CLASSES[0], CLASSES[1]))
    weight = rng.lognormal(0, 1.3, n).cumsum()
    people = np.searchsorted(weight, rng.uniform(0, weight[-1], n))
    print(f"{n} images of {len(np.unique(people))} people, at most {np.bincount(people).max()} of one", flush=True)
    view, sex = rng.choice(["AP", "PA"], n), rng.choice(["F", "M"], n)
    headers = pd.DataFrame([ids, rng.integers(1, 95, n).astype(str), sex, view], HEADER_COLUMNS).T
    write_table(labels, folder / competition.LABELS_CSV)
    write_table(pd.DataFrame({"patientId": names, "class": kinds[rows]}), folder / competition.CLASSES_CSV)
    write_table(headers, folder / competition.HEADERS_CSV)
    write_table(pd.DataFrame({"patientId": test, "PredictionString": ""}), folder / competition.SAMPLE_CSV)
    found = [
        {"subset_img_id": name, "img_id": f"{person:08d}_000.png"} for name, person in zip(ids, people, strict=True)
    ]
    (folder / competition.MAPPING_JSON).write_text(json.dumps(found))


def make_competition(root: Path, cfg: Config, n: int) -> None:
    rng = np.random.default_rng(0)
    ids, test = make_ids(rng, n), make_ids(rng, n // 9)
    make_tables(root, ids, test, rng)
    make_images(root, cfg, {"train": ids, "test": test})


def make_images(root: Path, cfg: Config, images: dict[str, list[str]]) -> None:
    """DICOMs, PNGs and an index as cache_images leaves them, a few originals under many names."""
    few = max(10, math.ceil(len(images["train"]) / LINKS))
    run("make_demo", f"root={root / 'demo'}", f"demo_train={few}", "demo_test=2")
    originals = sorted((root / "demo/input" / TRAIN_IMAGES).glob("*.dcm"))
    (cfg.cache_dir / "train").mkdir(parents=True)
    rows = [cache_image(path, cfg.cache_dir, SIZE) for path in originals]
    own = [f"{path.stem}.png" for path in originals]
    pngs = [(cfg.cache_dir / "train" / name).rename(root / "demo" / name) for name in own]
    tables = []
    for source, split in SPLITS.items():
        folders = root / "input" / source, cfg.cache_dir / split
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(images[split]):
            os.link(originals[k % few], folders[0] / f"{name}.dcm")
            os.link(pngs[k % few], folders[1] / f"{name}.png")
        table = pd.DataFrame(rows).iloc[np.arange(len(images[split])) % few]
        tables.append(table.assign(patientId=images[split], split=split).sort_values("patientId"))
    write_table(pd.concat(tables)[INDEX_COLUMNS], cfg.cache_dir / INDEX_CSV)


def interrupt(cfg: Config) -> None:
    """The cache as it was when cache_images was killed: a journal, no index, and the last images not made."""
    rows = read_known(cfg.cache_dir)
    for name in rows["patientId"].iloc[-LEFT_TO_DO:]:
        (cfg.cache_dir / "test" / f"{name}.png").unlink()
    time.sleep(3)  # a PNG has its links counted: one that lost a name was changed in these seconds
    rows = rows.assign(seen=[see_pair(cfg, *key.split("/")) for key in rows.index])
    write_table(rows.iloc[:-LEFT_TO_DO], cfg.cache_dir / JOURNAL_CSV)
    (cfg.cache_dir / INDEX_CSV).unlink()


def see_pair(cfg: Config, split: str, name: str) -> str:
    folder = Path(cfg.input) / {split: folder for folder, split in SPLITS.items()}[split]
    return see(folder / f"{name}.dcm") + see(cfg.cache_dir / split / f"{name}.png")


def make_predictions(cfg: Config) -> None:
    """What train and predict leave of each fold: one to three boxes per image and view, and class probabilities."""
    folds, test = competition.read_folds(cfg.folds_csv, ""), competition.read_sample(Path(cfg.input))
    rng = np.random.default_rng(1)
    for fold in cfg.fold_list:
        valid = folds[folds["fold"] == fold]
        for part, ids, positive in (("valid", valid["patientId"].array, valid["target"] > 0), ("test", test, False)):
            name, views = cfg.fold_dir(fold) / part, []
            rows = np.repeat(np.arange(len(ids)), rng.integers(1, 4, len(ids)))
            odds = rng.normal(0, 1.5, len(rows)) + 2.0 * np.broadcast_to(positive, len(ids))[rows] - 1
            boxes = make_boxes(rng, len(rows)).assign(patientId=np.asarray(ids, dtype=object)[rows])
            for view in VIEWS:
                noise = rng.normal(0, 0.2, len(rows))
                shifted = boxes.assign(x=boxes["x"] + 20 * noise, confidence=1 / (1 + np.exp(-odds - noise)), view=view)
                views.append(shifted[["patientId", "view", "confidence", *BOX_COLUMNS]])
            p = rng.dirichlet([1, 1, 1], len(ids))
            probabilities = pd.DataFrame(p, columns=["p_normal", "p_not_normal", "p_opacity"])
            probabilities.insert(0, "patientId", ids)
            write_table(pd.concat(views), Path(f"{name}.csv"))
            write_table(pd.concat([probabilities.assign(view=view) for view in VIEWS]), Path(f"{name}_images.csv"))
        history = [[k, "all", 1e-3, *[1 / k] * (len(HISTORY) - 3)] for k in range(1, cfg.epochs + 1)]
        write_table(pd.DataFrame(history, columns=HISTORY), cfg.fold_dir(fold) / "history.csv")
        (cfg.fold_dir(fold) / "best.pt").write_bytes(b"0")
        for name in ("train", "predict"):
            record(cfg, name, fold)


def measure(root: Path, n: int, commands: set[str]) -> dict[str, Cost]:
    """The cost of each of these commands on n training images; what they need of the others runs too."""
    words = [f"root={root}", f"size={SIZE}", f"n_folds={FOLDS}", "weights=none", "max_boxes=4"]
    cfg, costs = parse(words), dict[str, Cost]()

    def cost(name: str, state: str = "") -> None:
        costs[name + state] = run(name, *words)
        seconds, busy, megabytes = costs[name + state]
        print(f"{n} images: {name + state} {seconds:.1f} s, of processors {busy:.1f} s, {megabytes:.0f} MB", flush=True)

    aside(make_competition, root, cfg, n)
    cost("make_folds")
    cost("cache_images", ":copied")
    if "cache_images" in commands:
        time.sleep(3)
        cost("cache_images", ":complete")
        aside(interrupt, cfg)
        cost("cache_images", ":resumed")
    aside(make_predictions, cfg)
    for name in TABLES if commands & {*TABLES} else ():
        cost(name)
    return costs


def main(words: dict[str, str]) -> None:
    usual = "300,1500" if words.get("quick") == "true" else "26684,267000,1000000"
    sizes, costs = [int(size) for size in words.get("sizes", usual).split(",")], []
    commands = set(words.get("commands", ",".join(["cache_images", *TABLES])).split(","))
    for n in sizes:
        with tempfile.TemporaryDirectory(dir=words.get("folder")) as folder:
            costs.append(measure(Path(folder), n, commands))
    for name, (seconds, _, megabytes) in costs[-1].items():
        print(f"ratio megabytes_of_{name}_at_{sizes[-1]} {megabytes:.0f}")
        print(f"ratio seconds_of_{name}_at_{sizes[-1]} {seconds:.1f}")
        if len(sizes) > 1:
            start_up = run(name.split(":")[0], "help").busy
            few, many = (max(cost[name].busy - start_up, 0.01) for cost in costs[-2:])
            exponent = max(math.log(many / few) / math.log(sizes[-1] / sizes[-2]), 0.01)
            print(f"ratio exponent_of_{name} {exponent:.2f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
