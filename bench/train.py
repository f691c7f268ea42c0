"""Speed and memory of training against fastai's learner: same network, images, batches, augmentations and threads.

    python bench/train.py [quick=true] [threads=2]
    python bench/train.py device=cuda [batches=32,128] [images=4096] [compile=true]

Random weights and made-up images: what they show does not matter for speed. fastai's learner gets the network and
the loss of this project, so that what is compared is everything around them. Each side has a process of its own;
epochs alternate; ratios are medians. On a GPU both sides take bfloat16 and one loader process per core, at 512 px. On
a CPU fastai has float32 only (its mixed precision is for CUDA); where ours is bfloat16, float32 is measured as well.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from images import make_images
from our_training import Ours, highest_memory, wait_for

from rsna.core.command_line import parse
from rsna.core.config import Config
from rsna.data.dataset import FoldData, Samples
from rsna.execution.processes import count_workers
from rsna.models.device import pick_device, pick_precision
from rsna.training.fold import start_model

CPU_BATCH = 8
AUGMENTATION = {"max_rotate": 7.0, "min_zoom": 0.9, "max_zoom": 1.1, "max_lighting": 0.15, "max_warp": 0.0}
WORDS = ["weights=none", "translate=0"]


class Theirs:
    """Epochs of fastai's learner with its Adam, gradients clipped as ours."""

    def __init__(self, cfg: Config, data: FoldData) -> None:
        import fastai_peer

        fastai = fastai_peer.fastai
        augmentation = {**AUGMENTATION, "p_affine": 1.0, "p_lighting": 1.0, "pad_mode": "zeros"}
        self.device = pick_device(cfg.device)
        workers = count_workers(cfg.workers) if self.device.type != "cpu" else 0
        peer = fastai_peer.make_dataloaders(data.train, data.valid, cfg.batch_size, augmentation, self.device, workers)
        model = start_model(cfg, 0, data).to(memory_format=torch.contiguous_format)
        clip = fastai.GradientClip(cfg.grad_clip)
        self.learner = fastai_peer.make_learner(peer, model, lr=cfg.lr, wd=cfg.weight_decay, cbs=[clip])
        if self.device.type == "cuda":
            self.learner.to_bf16()
        self.learner.create_opt()
        self.seconds = 0.0
        clock = fastai.Callback(before_train=self.start, after_train=self.stop)
        self.learner.add_cb(clock)

    def start(self, _: Any) -> None:
        self.seconds = -time.perf_counter()

    def stop(self, _: Any) -> None:
        wait_for(self.device)
        self.seconds += time.perf_counter()

    def epoch(self) -> float:
        """Training only: the seconds between the learner's own events."""
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit(1)
        return self.seconds


def serve(side: str, samples: Samples, cfg: Config, threads: int, pipe: Any) -> None:
    """A process of one side: answers `epoch` and `steps` with seconds, `memory` with its highest memory in MB."""
    torch.set_num_threads(threads)
    set_start_method("fork", force=True)  # of fastai's loader processes; a spawned process would spawn, too
    few = Samples(*(getattr(samples, name)[: cfg.batch_size] for name in Samples.__dataclass_fields__))
    data = FoldData(samples, few, None)  # type: ignore[arg-type]
    runner: Any = Theirs(cfg, data) if side == "fastai" else Ours(cfg, data)
    while (question := pipe.recv()) != "end":
        pipe.send(highest_memory(runner.device) if question == "memory" else getattr(runner, question)())


def compare(folder: str, n: int, cfg: Config, rounds: int, threads: int) -> None:
    """Both sides in processes of their own, one working at a time."""
    title, key = f"{cfg.size} px, batches of {cfg.batch_size}", f"{cfg.size}px_batch{cfg.batch_size}"
    context, pipes, processes = get_context("spawn"), {}, []
    samples = make_images(Path(folder), n, cfg.size)
    for side, own in sides(cfg).items():
        pipes[side], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, samples, own, threads, other)))
        processes[-1].start()
    ask = partial(answer, pipes)
    for side in pipes:
        ask(side, "epoch")  # warms up, and fills our memory of decoded images
    times = []
    for number in range(rounds):
        times.append({side: ask(side, "epoch") for side in pipes} | {"our network alone": ask("ours", "steps")})
        rates = ", ".join(f"{side} {n / seconds:.1f}" for side, seconds in times[-1].items())
        print(f"{title}, round {number + 1}: {rates} images/s")
    peaks = {side: ask(side, "memory") for side in pipes}
    for side, process in zip(pipes, processes, strict=True):
        pipes[side].send("end")
        process.join()
    print(f"{title}, highest memory: " + ", ".join(f"{side} {peak:.0f} MB" for side, peak in peaks.items()))
    for side in [side for side in pipes if side != "fastai"]:
        faster = statistics.median(seconds["fastai"] / seconds[side] for seconds in times)
        print(f"ratio images_per_second_to_fastai_{key}{side.removeprefix('ours').replace(' ', '_')} {faster:.2f}")
    share = statistics.median(seconds["our network alone"] / seconds["ours"] for seconds in times)
    print(f"ratio share_of_the_networks_own_rate_{key} {share:.3f}")
    print(f"ratio memory_of_fastai_to_ours_{key} {peaks['fastai'] / peaks['ours']:.2f}")


def sides(cfg: Config) -> dict[str, Config]:
    """What is compared: ours, on a CPU in float32 as well if that is not what it takes by itself, and fastai."""
    device = pick_device(cfg.device)
    differs = device.type == "cpu" and pick_precision(cfg.precision, device) != torch.float32
    own = {"ours in float32": replace(cfg, precision="float32")} if differs else {}
    return {"ours": cfg, **own, "fastai": cfg}


def answer(pipes: dict[str, Any], side: str, question: str) -> float:
    pipes[side].send(question)
    return float(pipes[side].recv())


def main(words: dict[str, str]) -> None:
    threads = int(words.get("threads", torch.get_num_threads()))
    quick, device = words.get("quick") == "true", words.get("device", "cpu")
    if device == "cpu":
        plan = [(128, CPU_BATCH, 2)] if quick else [(128, CPU_BATCH, 8), (256, CPU_BATCH, 3)]
    else:
        batches = [int(batch) for batch in words.get("batches", "32,128").split(",")]
        plan = [(512, batch, int(words.get("images", 512 if quick else 4096)) // batch) for batch in batches]
    print(f"ResNet34, {threads} threads, {device if device == 'cpu' else torch.cuda.get_device_name(device)}")
    own = [f"{key}={words[key]}" for key in ("device", "compile", "workers") if key in words]
    with tempfile.TemporaryDirectory() as folder:
        for size, batch, steps in plan:
            cfg = parse([*WORDS, "device=cpu", *own, f"size={size}", f"batch_size={batch}"])
            compare(folder, steps * batch, cfg, 3 if quick or device != "cpu" else 7, threads)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
