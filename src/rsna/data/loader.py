"""Batches for training and prediction: images kept in memory, the order of each epoch, padding and the loaders."""

import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler, default_collate

from rsna.data.cache import read_png
from rsna.data.dataset import FoldData, ImageDataset


class ImageMemory:
    """Cached images, each decoded once and then kept, by whichever process needs it first."""

    def __init__(self, paths: Sequence[Path], size: int, hashes: Sequence[str] = ()) -> None:
        self.paths, self.hashes = paths, hashes
        # anonymous memory: forked processes share it, without /dev/shm's limit; a page counts once it is written
        self.images = np.frombuffer(mmap.mmap(-1, len(paths) * size * size), np.uint8).reshape(-1, size, size)
        self.decoded = np.frombuffer(mmap.mmap(-1, len(paths)), np.uint8)

    def read(self, k: int) -> NDArray[np.uint8]:
        """Image k, (S, S) uint8. Raises UserError as cache.read_png does."""
        if not self.decoded[k]:
            self.images[k] = read_png(self.paths[k], self.images.shape[1], *self.hashes[k : k + 1])
            # two processes may both decode an image; they write the same bytes, and the mark comes last
            self.decoded[k] = 1
        return self.images[k]


def memory_for(data: FoldData, size: int, fraction: float) -> list[ImageMemory | None]:
    """Memory for training and validation images, if both take at most this fraction of it and fork can share it."""
    sides = (data.train, data.valid)
    if sys.platform != "linux" or sum(len(side.ids) for side in sides) * size * size > fraction * machine_memory():
        return [None, None]
    return [ImageMemory(side.paths, size, side.hashes) for side in sides]


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or fewer in a container with a limit."""
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    stated = [path.read_text().strip() for path in limits if path.is_file()]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in stated if limit.isdigit())])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, image), epoch after epoch; the order in each depends on the seed and the epoch alone.

    One stream over all epochs: loader processes begin the next one during validation; restarted, they would keep a GPU
    waiting, up to a fifth of the time. A last batch that is not full is dropped: one image has no batch statistics.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int, epochs: range) -> None:
        self.n_images, self.seed, self.epochs = len(dataset), dataset.seed, epochs
        self.batch_size = min(batch_size, self.n_images)
        self.steps = self.n_images // self.batch_size  # batches of one epoch

    def __len__(self) -> int:
        return self.steps * len(self.epochs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.n_images)
            for rows in order[: self.steps * self.batch_size].reshape(self.steps, -1).tolist():
                yield [(epoch, row) for row in rows]


def make_loader(dataset: ImageDataset, batches: int | EpochBatches, workers: int, device: torch.device) -> DataLoader:
    """Batches as EpochBatches says; or, given their size, all images once, in order and as they are."""
    if workers:
        # in this process too, from here on: OpenCV's threads do not survive a fork, and a process per core needs none
        one_thread()
    order = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    return DataLoader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=one_thread,
        # starting a process per core takes a second or two, which each validation would pay again
        persistent_workers=workers > 0,
        # forked processes share ImageMemory; newer versions of Python do not fork by default
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Samples -> a batch: image (B, 1, S, S), boxes (B, N >= 1, 4), mask (B, N) bool, label (B,), row (B,)."""
    # padding and boxes outside the image are zeros, and False in mask; there is room for one box at least
    boxes = pad_sequence([*(sample["boxes"] for sample in samples), torch.zeros(1, 4)], batch_first=True)[:-1]
    mask = (boxes[..., 2:] > 0).all(dim=-1)
    others = default_collate([{key: sample[key] for key in sample if key != "boxes"} for sample in samples])
    return {**others, "boxes": boxes * mask[..., None], "mask": mask}


def one_thread(_: int = 0) -> None:
    cv2.setNumThreads(1)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
