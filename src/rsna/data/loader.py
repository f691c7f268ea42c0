"""Batches for training and prediction: images kept in memory, the order of each epoch, padding, data loaders."""

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

from rsna.data.dataset import FoldData, ImageDataset, Reader
from rsna.data.letterbox import read_png


class ImageMemory:
    """Cached images in memory shared by processes; each is decoded once, by the process that needs it first."""

    def __init__(self, paths: Sequence[Path], size: int, hashes: Sequence[str] = ()) -> None:
        self.paths, self.hashes = paths, hashes
        # anonymous memory is shared by forked processes without /dev/shm's limit, and takes no space until written
        self.images = np.frombuffer(mmap.mmap(-1, len(paths) * size * size), np.uint8).reshape(-1, size, size)
        self.decoded = np.frombuffer(mmap.mmap(-1, len(paths)), np.uint8)

    def read(self, k: int) -> NDArray[np.uint8]:
        """Image k, (S, S) uint8. Raises UserError as letterbox.read_png does."""
        if not self.decoded[k]:
            self.images[k] = read_png(self.paths[k], self.images.shape[1], *self.hashes[k : k + 1])
            # if two processes decode the same image, they write the same bytes, and set the flag afterwards
            self.decoded[k] = 1
        return self.images[k]


def memory_for(data: FoldData, size: int, fraction: float) -> list[Reader | None]:
    """ImageMemory.read for the training and for the validation images; None for both if they would not fit.

    Together they may take at most `fraction` of the machine's memory. Always None except on Linux, as the processes
    have to be forked.
    """
    parts = (data.train, data.valid)
    if sys.platform != "linux" or sum(len(part.ids) for part in parts) * size * size > fraction * machine_memory():
        return [None, None]
    return [ImageMemory(part.paths, size, part.hashes).read for part in parts]


def machine_memory() -> int:
    """The memory that this process may use, in bytes: the machine's, or less in a container with a limit."""
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    stated = [path.read_text().strip() for path in limits if path.is_file()]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in stated if limit.isdigit())])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, image index) for all epochs; the order in an epoch depends only on the seed and the epoch.

    There is one stream for all epochs, so that the loader processes begin the next epoch during validation. Restarting
    them would keep a GPU waiting, up to a fifth of the time. An incomplete last batch is dropped, since batch norm
    cannot work with a single image.
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
    """A loader of these batches; or, given a batch size, of all images once, in order, without augmentation."""
    if workers:
        # in this process too: OpenCV's threads do not survive a fork, and with a process per core they are not needed
        one_thread()
    order = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    return DataLoader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=one_thread,
        # starting a process per core takes a second or two, which every validation would otherwise repeat
        persistent_workers=workers > 0,
        # forked processes share ImageMemory; newer versions of Python do not fork by default
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Samples -> a batch: image (B, 1, S, S), boxes (B, N >= 1, 4), mask (B, N) bool, label (B,), row (B,).

    Padding and boxes outside the image are zeros in boxes and False in mask.
    """
    # the extra (1, 4) makes room for at least one box per image
    boxes = pad_sequence([*(sample["boxes"] for sample in samples), torch.zeros(1, 4)], batch_first=True)[:-1]
    mask = (boxes[..., 2:] > 0).all(dim=-1)
    rest = default_collate([{key: sample[key] for key in sample if key != "boxes"} for sample in samples])
    return {**rest, "boxes": boxes * mask[..., None], "mask": mask}


def one_thread(_: int = 0) -> None:
    cv2.setNumThreads(1)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
