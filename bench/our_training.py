"""This project's training, for the benchmarks: epochs, and steps on one batch; importable once src/ is on the path."""

import resource
import time
from itertools import islice

import torch

from rsna.core.config import Config
from rsna.data.dataset import FoldData
from rsna.data.loader import make_loader, to_device
from rsna.models.device import pick_device
from rsna.training.fold import keep_freed_memory, make_loaders, start_model
from rsna.training.loop import start_phase, train_epoch, train_step


class Ours:
    """Epochs of this project's training, and steps on one batch that never changes."""

    def __init__(self, cfg: Config, data: FoldData) -> None:
        self.device = pick_device(cfg.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        model = start_model(cfg, 0, data)
        self.run = start_phase(cfg, model, len(data.train.ids) * 1000, cfg.phase_list[0])
        epochs = range(1000)
        loader, _ = make_loaders(cfg, 0, data, self.device, epochs)
        self.batches, self.n_steps, self.ids = iter(loader), len(loader) // len(epochs), data.train.ids
        self.batch = to_device(next(iter(make_loader(loader.dataset, cfg.batch_size, 0, self.device))), self.device)
        self.cfg = cfg

    def epoch(self) -> float:
        if self.cfg.workers and self.device.type != "cpu":
            # does not count: while the other side was timed, the loader processes worked ahead
            self.train()
        start = time.perf_counter()
        self.train()
        return time.perf_counter() - start

    def train(self) -> None:
        train_epoch(self.run, islice(self.batches, self.n_steps), self.ids, "", self.cfg.grad_clip)

    def steps(self) -> float:
        """As many steps as an epoch has, without loader and augmentation."""
        start = time.perf_counter()
        for _ in range(self.n_steps):
            train_step(self.run, self.batch, self.cfg.grad_clip)
        wait_for(self.device)
        return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """A GPU works on after it was told what to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def highest_memory(device: torch.device) -> float:
    """Highest memory of this process in MB: of the GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
