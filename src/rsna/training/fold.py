"""Training one fold: the result depends only on config and files; training resumes after the last finished epoch."""

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from rsna.core.artifacts import current_manifest, is_current, record, require_upstream, withdraw
from rsna.core.config import AugmentSettings, Config
from rsna.core.errors import UserError
from rsna.core.files import write_text
from rsna.core.locks import file_lock
from rsna.core.phases import phase_at
from rsna.core.stages import names_file
from rsna.core.tables import write_table
from rsna.data.augment import Augmentation
from rsna.data.boxes import xyxy_to_cxcywh
from rsna.data.dataset import FoldData, ImageDataset, Reader, Samples, load_fold
from rsna.data.loader import EpochBatches, make_loader, memory_for
from rsna.execution.processes import count_workers
from rsna.models.checkpoint import people_of_checkpoint
from rsna.models.device import explain_failures, pick_device
from rsna.models.protocol import DetectionModel
from rsna.models.registry import build_model
from rsna.training.loop import Training, start_phase, train_epoch, validate
from rsna.training.resume import load_saved, note_seconds, rank, resume, save_epoch
from rsna.training.tracker import track

History = list[dict[str, Any]]  # one row per epoch
OnEpoch = Callable[[History], None]


def train_fold(cfg: Config, fold: int, on_epoch: OnEpoch | None = None) -> None:
    """Train one fold into working/<name>/fold<k>/, unless it is current. Raises UserError.

    The same config and files give the same result, whether the fold is trained alone or with others. on_epoch: called
    with the history after each saved epoch; an exception from it stops the training.
    """
    with file_lock(cfg.fold_dir(fold), wait=cfg.engine == "ray"), explain_failures(cfg):
        if is_current(cfg, "train", fold):
            print(f"fold {fold}: current, {cfg.total_epochs} epochs -> {cfg.fold_dir(fold) / 'best.pt'}")
            return
        require_upstream(cfg, "train", fold)
        manifest = current_manifest(cfg, "train", fold)
        train_remaining_epochs(cfg, fold, manifest, on_epoch)
        record(cfg, "train", fold, made=manifest)


def train_remaining_epochs(cfg: Config, fold: int, manifest: dict[str, Any], on_epoch: OnEpoch | None) -> None:
    """Train the epochs that the fold's last.pt lacks."""
    folder, saved = cfg.fold_dir(fold), load_saved(cfg, fold)
    done = len(saved["history"]) if saved else 0
    if saved and done == cfg.total_epochs:
        write_table(pd.DataFrame(saved["history"]), folder / "history.csv")
        print(f"fold {fold}: complete, {cfg.total_epochs} epochs -> {folder / 'best.pt'}")
        return
    data = load_fold(cfg, fold)
    phase, _ = phase_at(cfg.phase_list, max(done - 1, 0))
    run = start_phase(cfg, start_model(cfg, fold, data), len(data.train.ids), phase)
    people = seen_people(cfg, data)  # after start_model, which checks the weights file
    if saved:
        resume(cfg, fold, run, saved)
        print(f"fold {fold}: resumes after epoch {done} of {cfg.total_epochs}, so far in {saved['dtype']}")
    if run.device.type == "cpu":
        keep_freed_memory()
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type.upper()
    print(f"fold {fold}: on {device} in {str(run.dtype).removeprefix('torch.')}")
    withdraw(cfg, "train", fold)
    # JSON values are valid YAML, and can hold paths with bytes that are not UTF-8
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in asdict(cfg).items())
    write_text(text, folder / "config.yaml")
    about = {"manifest": manifest, "fold": fold, "people": people}
    with track(cfg, fold, resumed=bool(saved)) as tracker:
        for history in run_epochs(cfg, fold, run, data, about):
            tracker.log(history)
            if on_epoch:
                on_epoch(history)
        tracker.show(run, data)


def seen_people(cfg: Config, data: FoldData) -> list[str]:
    """The sorted people whose images the fold's network, or the checkpoint that it starts from, was trained on.

    Raises UserError if that checkpoint was trained on people in this fold's validation images.
    """
    seen = people_of_checkpoint(Path(cfg.weights)) if names_file(cfg, "weights") else set()
    if shared := seen & set(data.valid_people):
        people = (
            f"{len(shared)} people of this fold's {len(data.valid_people)} validation people, such as {min(shared)!r}"
        )
        remedy = "on the same folds take the checkpoint of this fold, else remove their images from one of the two sets"
        raise UserError(f"weights={cfg.weights} was trained on {people}: the scores would be too high; {remedy}")
    return sorted(seen | set(data.train_people))


def start_model(cfg: Config, fold: int, data: FoldData) -> DetectionModel:
    """The fold's initial network, on the device; with prior_init its biases are set from the training set.

    Raises UserError if no training image is positive.
    """
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed * 1000 + fold)
    model = build_model(cfg)
    if not any(map(len, data.train.boxes_xyxy)):
        raise UserError(f"{cfg.folds_csv}: no positive image to train on")
    if cfg.prior_init:
        class_rates = np.bincount(data.train.labels, minlength=cfg.num_classes) / len(data.train.labels)
        boxes_cxcywh = [xyxy_to_cxcywh(boxes) / cfg.size for boxes in data.train.boxes_xyxy]
        model.init_priors(boxes_cxcywh, torch.from_numpy(class_rates).float())
    model.to(device).to(memory_format=torch.channels_last)
    if cfg.compile:
        model.compile()
    return model


def make_loaders(cfg: Config, fold: int, data: FoldData, device: torch.device, epochs: range) -> list[DataLoader[Any]]:
    """The loaders of the augmented training images, for these epochs, and of the validation images."""
    read_train, read_valid = memory_for(data, cfg.size, cfg.memory / cfg.jobs)
    train, valid = make_train_set(cfg, fold, data.train, read_train), ImageDataset(data.valid, read=read_valid)
    workers = count_workers(cfg.workers, cfg.jobs) if device.type != "cpu" else 0
    train_loader = make_loader(train, EpochBatches(train, cfg.batch_size, epochs), workers, device)
    # half as many: validation has no augmentation, and the training processes already load the next epoch
    return [train_loader, make_loader(valid, 2 * cfg.batch_size, (workers + 1) // 2, device)]


def make_train_set(cfg: Config, fold: int, samples: Samples, read: Reader | None = None) -> ImageDataset:
    """The training images of a fold with the augmentation of the config."""
    return ImageDataset(samples, Augmentation(**cfg.only(AugmentSettings)), (cfg.seed, fold), read)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: on the CPU, getting it zeroed from the kernel takes 10 to 20 % of a step's time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX, see malloc.h
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def run_epochs(cfg: Config, fold: int, run: Training, data: FoldData, about: dict[str, Any]) -> Iterator[History]:
    """Train, validate and save each remaining epoch, and yield the history after each.

    about: further entries of the checkpoints. Raises UserError if a loss is not finite.
    """
    epochs = range(len(run.history), cfg.total_epochs)
    train_loader, valid_loader = make_loaders(cfg, fold, data, run.device, epochs)
    steps, stream = len(train_loader) // len(epochs), iter(train_loader)
    for epoch in epochs:
        phase, within = phase_at(cfg.phase_list, epoch)
        if within == 0 and epoch > 0:
            run = start_phase(cfg, run.model, len(data.train.ids), phase, run.history)
        started = time.perf_counter()
        # dropout uses the global generator: seeded here, a resumed run draws the same numbers as an uninterrupted one
        torch.manual_seed((cfg.seed * 1000 + fold) * 1000 + epoch + 1)
        title = f"fold {fold} epoch {epoch + 1}/{cfg.total_epochs}"
        hidden = True if cfg.jobs > 1 else None  # several bars overwrite each other; None: hidden unless on a terminal
        batches = tqdm(islice(stream, steps), title, steps, leave=False, unit="batch", disable=hidden)
        lr, train_losses = train_epoch(run, batches, data.train.ids, title, cfg.grad_clip)
        valid_losses, scores = validate(run, valid_loader, data, cfg.size)
        losses = {"train_loss": train_losses["loss"], "valid_loss": valid_losses["loss"]}
        check_and_print(losses | scores, title)
        losses |= {f"train_{name}": value for name, value in train_losses.items()}
        losses |= {f"valid_{name}": value for name, value in valid_losses.items()}
        run.history.append({"epoch": epoch + 1, "phase": phase.part, "lr": lr, **losses, **scores})
        save_epoch(cfg.fold_dir(fold), run, about)
        note_seconds(cfg.fold_dir(fold) / "seconds.csv", epoch + 1, time.perf_counter() - started)
        yield run.history
    best, path = max(run.history, key=rank), cfg.fold_dir(fold) / "best.pt"
    score = f"mAP {best['mAP']:.4f}, loss {best['valid_loss']:.4f}".replace("mAP nan, ", "")
    print(f"fold {fold}: best epoch {best['epoch']} ({score}) -> {path}")


def check_and_print(scores: dict[str, float], title: str) -> None:
    """Print an epoch's losses and scores on one line. Raises UserError if the validation loss is not finite."""
    if not np.isfinite(scores["valid_loss"]):
        raise UserError(
            f"{title}: the loss on the validation images is not finite. Finished epochs are kept. The same command "
            "would come here again: lower the learning rates, and give the run another name="
        )
    print(f"{title}: {'  '.join(f'{k} {v:.4f}' for k, v in scores.items())}".replace(" nan", " -"), flush=True)
