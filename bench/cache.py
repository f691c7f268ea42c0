"""Speed of the image cache against the loop that everyone writes, on the same files in the same run.

    python bench/cache.py [quick=true] [input=<Kaggle's folder layout>] [size=512]

The peer: pydicom's pixel_array, Pillow's resize, Pillow's PNG with default settings; once with the decoder that
pydicom picks by itself and once with its Pillow plugin. Both sides in one process with one thread. Then this
project's cache with two processes against one. Rounds alternate between all of them, so that what else the
machine does falls on each; the ratios are medians over the rounds, with the lowest and highest beside them.
Without input= it makes a demo data set for itself.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

# ruff: noqa: E402 (the imports below need this path)
SRC = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SRC))

import cv2
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import pixel_array

from rsna.core.command_line import parse
from rsna.core.config import Config
from rsna.data.cache import cache_image
from rsna.data.competition import list_sources
from rsna.execution.processes import map_files

Seconds = float
COMPETITION = 26_684 + 3_000


def main(cfg: Config, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = any(word.startswith("input=") for word in sys.argv)
        sources = list_sources(Path(cfg.input) if given else make_demo(Path(folder), quick))
        few = sources[:: max(1, len(sources) // 60)] if quick else sources
        rounds = [one_round(few, sources, Path(folder), cfg.size) for _ in range(3 if quick else 5)]
    print(f"{len(few)} files for the loops, {len(sources)} for two processes against one, to {cfg.size} px")
    for name in rounds[0]:
        times = [1000 * times[name] for times in rounds]
        spread = f"({min(times):.2f} to {max(times):.2f})"
        minutes = median(times) * COMPETITION / 60_000
        print(f"{name:<28} {median(times):6.2f} ms per image {spread}, {minutes:.1f} min for the competition")
    for what, slow, fast in [
        ("loop-with-default-plugin/ours", "loop, pydicom's own choice", "ours"),
        ("loop-with-pillow-plugin/ours", "loop, Pillow plugin", "ours"),
        ("one-process/two-processes", "ours, pool of 1", "ours, pool of 2"),
    ]:
        ratios = [times[slow] / times[fast] for times in rounds]
        print(f"{what}: {min(ratios):.2f} to {max(ratios):.2f} over {len(rounds)} rounds")
        print(f"ratio {what} {median(ratios):.2f}")


def make_demo(folder: Path, quick: bool) -> Path:
    """A synthetic competition in `folder`; returns its input folder."""
    counts = ["demo_train=50", "demo_test=14"] if quick else ["demo_train=200", "demo_test=50"]
    subprocess.run([sys.executable, str(SRC / "make_demo.py"), f"root={folder}", *counts], check=True)
    return folder / "input"


def one_round(few: list[Path], sources: list[Path], folder: Path, size: int) -> dict[str, Seconds]:
    """Seconds per image of each way."""
    for split in ("train", "test"):
        (folder / "cache" / split).mkdir(parents=True, exist_ok=True)
    ours = partial(cache_image, cache_dir=folder / "cache", size=size)
    return {
        "loop, pydicom's own choice": per_file(few, partial(loop_default, size=size, folder=folder)),
        "loop, Pillow plugin": per_file(few, partial(loop_pillow, size=size, folder=folder)),
        "ours": per_file(few, ours),
        "ours, pool of 1": per_pool(sources, ours, 1),
        "ours, pool of 2": per_pool(sources, ours, 2),
    }


def per_file(paths: list[Path], work: Callable[[Path], object]) -> Seconds:
    start = time.perf_counter()
    for path in paths:
        work(path)
    return (time.perf_counter() - start) / len(paths)


def per_pool(paths: list[Path], work: Callable[[Path], object], workers: int) -> Seconds:
    start = time.perf_counter()
    rows = list(map_files(work, paths, parse([f"workers={workers}"]), f"{workers} process(es)"))
    return (time.perf_counter() - start) / len(rows)


def loop_default(path: Path, size: int, folder: Path) -> None:
    Image.fromarray(dcmread(path).pixel_array).resize((size, size)).save(folder / f"{path.stem}.png")


def loop_pillow(path: Path, size: int, folder: Path) -> None:
    pixels = pixel_array(dcmread(path), decoding_plugin="pillow")
    Image.fromarray(pixels).resize((size, size)).save(folder / f"{path.stem}.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    words = [word for word in sys.argv[1:] if word != "quick=true"]
    main(parse(words), quick="quick=true" in sys.argv)
