"""Do the loader processes keep a GPU busy? A clock stands in for the GPU: each step takes batch / rate seconds.

    python bench/loader.py [quick=true] [size=512] [batch=64] [rate=400] [images=1024] [workers=-1]

So a machine's cores can be judged before a GPU is paid for: take as rate what the network alone reaches there
(bench/train.py device=cuda prints it). The limit is the clock's rate; the peer is a loader of the same images that
restarts at each epoch, as PyTorch's do by default (its processes stay alive). The images are decoded once before.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from images import make_images
from torch.utils.data import DataLoader, Sampler

from rsna.core.command_line import parse
from rsna.data.dataset import ImageDataset
from rsna.data.loader import EpochBatches, ImageMemory, collate, make_loader, one_thread
from rsna.execution.processes import count_workers
from rsna.training.fold import make_train_set

CPU = torch.device("cpu")


class Restarting(Sampler[list[tuple[int, int]]]):
    """The same batches, one epoch at each call of iter."""

    def __init__(self, dataset: ImageDataset, batch: int) -> None:
        self.dataset, self.batch, self.epoch = dataset, batch, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.epoch += 1
        return iter(EpochBatches(self.dataset, self.batch, range(self.epoch, self.epoch + 1)))


def seconds(batches: Iterable[dict[str, Any]], step: float) -> float:
    start = time.perf_counter()
    for _ in batches:
        time.sleep(step)
    return time.perf_counter() - start


def compare(dataset: ImageDataset, batch: int, rate: float, workers: int, rounds: int) -> None:
    """Epochs of the stream and of a loader that restarts, in turns."""
    ours = EpochBatches(dataset, batch, range(2 * rounds))
    stream, pace = iter(make_loader(dataset, ours, workers, CPU)), batch / rate
    restarting: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=Restarting(dataset, batch),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
        worker_init_fn=one_thread,
    )
    limit = ours.steps * batch / rate
    seconds(restarting, 0.0)
    shares = []
    for number in range(rounds):
        # an epoch that does not count: while the other side was timed, the processes worked ahead
        seconds(islice(stream, ours.steps), pace)
        shares.append((limit / seconds(islice(stream, ours.steps), pace), limit / seconds(restarting, pace)))
        print(
            f"round {number + 1}: share of {rate:g} images/s: ours {shares[-1][0]:.3f}, restarting {shares[-1][1]:.3f}"
        )
    print(f"ratio share_of_the_clocks_rate {statistics.median(own for own, _ in shares):.3f}")
    print(f"ratio to_a_loader_that_restarts {statistics.median(own / other for own, other in shares):.3f}")


def main(words: dict[str, str]) -> None:
    images, rounds = (256, 2) if words.get("quick") == "true" else (1024, 5)
    size, batch, n = (int(words.get(key, usual)) for key, usual in (("size", 512), ("batch", 64), ("images", images)))
    workers = count_workers(int(words.get("workers", -1)))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = make_images(Path(folder), n, size)
        memory = ImageMemory(samples.paths, size)
        for k in range(n):
            memory.read(k)
        dataset = make_train_set(parse([f"size={size}"]), 0, samples, memory.read)
        print(f"{n} images of {size} px in batches of {batch}, {workers} loader processes")
        compare(dataset, batch, float(words.get("rate", 400)), workers, rounds)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
