"""Speed and memory of training against fastai's learner: same network, images, batches, augmentations and threads.

    python bench/train.py [quick=true] [threads=2]

Random weights and made-up pictures: what they show does not matter for speed. fastai's learner gets the network and
the loss of this project, so that what is compared is everything around them. Each side has a process of its own;
epochs alternate; ratios are medians.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import cv2
import numpy as np
import torch

from config import Config, parse
from dataset import FoldData, Samples, to_device
from engine import keep_freed_memory, make_loaders, start_model, start_phase, train_epoch, train_step
from images import write_png

BATCH = 8
CPU = torch.device("cpu")
AUGMENTATION = {"max_rotate": 7.0, "min_zoom": 0.9, "max_zoom": 1.1, "max_lighting": 0.15, "max_warp": 0.0}
WORDS = ["weights=none", f"batch_size={BATCH}", "shift=0", "device=cpu"]


def make_images(folder: Path, n: int, size: int) -> Samples:
    """Smooth random pictures as PNG, every third with a box."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{size}_{k}.png" for k in range(n)]
    for path in paths:
        write_png(cv2.resize(rng.integers(0, 255, (16, 16), dtype=np.uint8), (size, size)), path)
    corner = rng.uniform(0.1, 0.5, (n, 2)) * size
    boxes = np.concatenate([corner, corner + size / 4], axis=1)
    boxes[np.arange(n) % 3 > 0] = np.nan
    labels = np.where(np.isnan(boxes[:, 0]), np.arange(n) % 2, 2)
    return Samples([path.stem for path in paths], paths, boxes, labels, np.ones((n, 4)), np.full((n, 2), size))


class Ours:
    """Epochs of this project's engine, and steps on one batch that never changes."""

    def __init__(self, cfg: Config, data: FoldData) -> None:
        keep_freed_memory()
        model = start_model(cfg, data, CPU)
        self.run = start_phase(cfg, model, len(data.train.ids) * 1000, cfg.phase_list[0])
        self.dataset, self.loader, _ = make_loaders(cfg, 0, data, CPU)
        self.batch = to_device(next(iter(self.loader)), CPU)
        self.cfg = cfg

    def epoch(self) -> float:
        start = time.perf_counter()
        train_epoch(self.run, self.loader, "", self.cfg.clip)
        self.dataset.epoch += 1
        return time.perf_counter() - start

    def steps(self) -> float:
        """As many steps as an epoch has, without loader and augmentation."""
        start = time.perf_counter()
        for _ in range(len(self.loader)):
            train_step(self.run, self.batch, self.cfg.clip)
        return time.perf_counter() - start


class Theirs:
    """Epochs of fastai's learner with its Adam, gradients clipped as ours."""

    def __init__(self, cfg: Config, data: FoldData) -> None:
        import fastai_peer

        fastai = fastai_peer.fastai
        peer = fastai_peer.make_dataloaders(
            data.train, data.valid, BATCH, {**AUGMENTATION, "p_affine": 1.0, "p_lighting": 1.0, "pad_mode": "zeros"}
        )
        model = start_model(cfg, data, CPU).to(memory_format=torch.contiguous_format)
        clip = fastai.GradientClip(cfg.clip)
        self.learner = fastai_peer.make_learner(peer, model, lr=cfg.lr, wd=cfg.weight_decay, cbs=[clip])
        self.learner.create_opt()
        self.seconds = 0.0
        clock = fastai.Callback(before_train=self.start, after_train=self.stop)
        self.learner.add_cb(clock)

    def start(self, _: Any) -> None:
        self.seconds = -time.perf_counter()

    def stop(self, _: Any) -> None:
        self.seconds += time.perf_counter()

    def epoch(self) -> float:
        """Training only: the seconds between the learner's own events."""
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit(1)
        return self.seconds


def prepare(folder: Path, n: int, size: int) -> tuple[Config, FoldData]:
    samples = make_images(folder, n, size)
    few = Samples(*(getattr(samples, name)[:BATCH] for name in Samples.__dataclass_fields__))
    return parse([*WORDS, f"size={size}"]), FoldData(samples, few, None)  # type: ignore[arg-type]


def serve(side: str, folder: str, n: int, size: int, threads: int, pipe: Any) -> None:
    """A process of one side: answers `epoch` and `steps` with seconds, `memory` with its highest memory in MB."""
    torch.set_num_threads(threads)
    cfg, data = prepare(Path(folder), n, size)
    runner: Any = Ours(cfg, data) if side == "ours" else Theirs(cfg, data)
    while (question := pipe.recv()) != "end":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send(peak if question == "memory" else getattr(runner, question)())


def compare(folder: str, n: int, size: int, rounds: int, threads: int) -> None:
    """Both sides in processes of their own, one working at a time."""
    context, pipes, processes = get_context("spawn"), {}, []
    for side in ("ours", "fastai"):
        pipes[side], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, folder, n, size, threads, other)))
        processes[-1].start()
    ask = partial(answer, pipes)
    for side in pipes:
        ask(side, "epoch")  # warms up, and fills our memory of decoded images
    times = []
    for number in range(rounds):
        times.append((ask("ours", "epoch"), ask("fastai", "epoch"), ask("ours", "steps")))
        a, b, c = (n / seconds for seconds in times[-1])
        print(f"{size} px, round {number + 1}: ours {a:.1f}, fastai {b:.1f}, our network alone {c:.1f} images/s")
    peaks = [ask(side, "memory") for side in pipes]
    for side, process in zip(pipes, processes, strict=True):
        pipes[side].send("end")
        process.join()
    print(f"{size} px, highest memory: ours {peaks[0]:.0f} MB, fastai {peaks[1]:.0f} MB")
    print(f"ratio images_per_second_to_fastai_{size}px {statistics.median(b / a for a, b, _ in times):.2f}")
    print(f"ratio share_of_the_networks_own_rate_{size}px {statistics.median(c / a for a, _, c in times):.3f}")
    print(f"ratio memory_of_fastai_to_ours_{size}px {peaks[1] / peaks[0]:.2f}")


def answer(pipes: dict[str, Any], side: str, question: str) -> float:
    pipes[side].send(question)
    return float(pipes[side].recv())


def main(words: dict[str, str]) -> None:
    threads = int(words.get("threads", torch.get_num_threads()))
    quick = words.get("quick") == "true"
    sizes = {128: 2 * BATCH} if quick else {128: 8 * BATCH, 256: 3 * BATCH}
    print(f"ResNet34, batches of {BATCH}, {threads} threads, CPU")
    with tempfile.TemporaryDirectory() as folder:
        for size, n in sizes.items():
            compare(folder, n, size, 3 if quick else 7, threads)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
