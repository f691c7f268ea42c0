"""Training one fold: depends on the config and files alone, and goes on from the last finished epoch."""

import ctypes
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from rsna.core.artifacts import current_manifest, record
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.executor import count_workers
from rsna.core.phases import Phase, phase_at
from rsna.core.tables import read_table, write_table
from rsna.data.augment import Augmentation
from rsna.data.boxes import xyxy_to_cxcywh
from rsna.data.dataset import (
    EpochBatches,
    FoldData,
    ImageDataset,
    ImageMemory,
    Samples,
    load_fold,
    make_loader,
    memory_for,
    to_device,
)
from rsna.evaluation.scores import accuracy, corner_errors, iou_on_positives, opacity_auc
from rsna.evaluation.threshold import best_score
from rsna.inference.predictor import prediction_table, to_numpy
from rsna.models.checkpoint import load_checkpoint, save_checkpoint, save_config
from rsna.models.device import device_name, explain_failures, mixed_precision, pick_device, pick_precision
from rsna.models.registry import build_model
from rsna.training.optim import check_stages, freeze, make_optimizer, make_schedule, train_mode


@dataclass
class Training:
    """Everything that a step changes; what `last.pt` holds."""

    model: Any  # see model.build_model
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: torch.dtype
    phase: Phase
    history: list[dict[str, Any]]

    @property
    def computed_in(self) -> str:
        return str(self.precision).removeprefix("torch.")

    def state(self) -> dict[str, Any]:
        return {
            "computed_in": self.computed_in,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty in any other precision than float16; then it begins anew
            self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]


def train_fold(cfg: Config, fold: int) -> None:
    """Train one fold into working/<name>/fold<k>/. Same config and files, same result, alone or among others."""
    with explain_failures(cfg):
        train_or_go_on(cfg, fold)


def train_or_go_on(cfg: Config, fold: int) -> None:
    """Train what the fold's last.pt leaves to do."""
    folder = cfg.fold_dir(fold)
    if not cfg.folds_csv.is_file():
        raise UserError(f"{cfg.folds_csv}: no such file; run: {command(cfg, 'make_folds')}")
    facts = current_manifest(cfg, "train", fold)
    saved = load_checkpoint(folder / "last.pt", cfg, fold) if (folder / "last.pt").is_file() else None
    if saved and len(saved["history"]) == cfg.total_epochs and (folder / "best.pt").is_file():
        write_table(pd.DataFrame(saved["history"]), folder / "history.csv")
        record(cfg, "train", fold, facts)
        print(f"fold {fold}: complete, {cfg.total_epochs} epochs -> {folder / 'best.pt'}")
        return
    data = load_fold(cfg, fold)
    torch.manual_seed(cfg.seed * 1000 + fold)
    device = pick_device(cfg.device)
    if device.type == "cpu":
        keep_freed_memory()
    model = start_model(cfg, data, device)
    done = len(saved["history"]) if saved and (folder / "best.pt").is_file() else 0
    if saved and not done:
        print(f"fold {fold}: begins anew, since {folder / 'best.pt'} is gone and with it the best epoch so far")
    run = start_phase(cfg, model, len(data.train.ids), phase_at(cfg.phase_list, max(done - 1, 0))[0])
    if saved and done:
        run.load(saved)
        before = saved.get("computed_in", "float32")
        print(f"fold {fold}: goes on after epoch {done} of {cfg.total_epochs}, so far in {before}")
    print(f"fold {fold}: on {device_name(device)} in {run.computed_in}")
    save_config(cfg, folder / "config.yaml")
    run_epochs(cfg, fold, run, data, facts)


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, where it is glibc's; for training on the CPU.

    By default it returns large blocks to the kernel, and each step gets them anew, zeroed page by page: a tenth to a
    fifth of a step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def run_epochs(cfg: Config, fold: int, run: Training, data: FoldData, facts: dict[str, Any]) -> None:
    """Train, validate, save; epoch by epoch, phase by phase."""
    folder = cfg.fold_dir(fold)
    epochs = range(len(run.history), cfg.total_epochs)
    train_loader, valid_loader = make_loaders(cfg, fold, data, run.device, epochs)
    steps = len(train_loader) // max(1, len(epochs))
    stream = iter(train_loader)
    for epoch in epochs:
        phase, within = phase_at(cfg.phase_list, epoch)
        if within == 0 and epoch > 0:
            run = start_phase(cfg, run.model, len(data.train.ids), phase, run.history)
        started = time.perf_counter()
        # dropout draws from the global generator: seeded here, a resumed run draws what a straight one does
        torch.manual_seed((cfg.seed * 1000 + fold) * 1000 + epoch + 1)
        title = f"fold {fold} epoch {epoch + 1}/{cfg.total_epochs}"
        scores: dict[str, Any] = {"epoch": epoch + 1, "phase": phase.part}
        batches = tqdm(islice(stream, steps), desc=title, total=steps, unit="batch", leave=False)
        scores |= train_epoch(run, batches, data.train.ids, title, cfg.grad_clip)
        scores |= validate(run, valid_loader, data, cfg.size)
        if not np.isfinite(scores["valid_loss"]):
            raise UserError(
                f"{title}: the loss on the validation images is not finite. Finished epochs are kept. The same "
                "command would come here again: lower the rates, and give the run another name="
            )
        print(f"{title}: " + "  ".join(f"{key} {value:.4f}" for key, value in list(scores.items())[3:]), flush=True)
        run.history.append(scores)
        if rank(scores) == max(map(rank, run.history)):
            save_checkpoint(
                {"manifest": facts, "fold": fold, "epoch": epoch + 1, "model": run.model.state_dict()},
                folder / "best.pt",
            )
        save_checkpoint({"manifest": facts, "fold": fold, "epoch": epoch + 1, **run.state()}, folder / "last.pt")
        write_table(pd.DataFrame(run.history), folder / "history.csv")
        note_seconds(folder / "seconds.csv", epoch + 1, time.perf_counter() - started)
    record(cfg, "train", fold, facts)
    best = max(run.history, key=rank)
    print(f"fold {fold}: best mAP {best['mAP']:.4f} after epoch {best['epoch']:.0f} -> {folder / 'best.pt'}")


def note_seconds(path: Path, epoch: int, seconds: float) -> None:
    """Add what an epoch took; not in history.csv, which is the same to the byte for the same seed."""
    noted = read_table(path, ["epoch", "seconds"]) if path.is_file() and epoch > 1 else pd.DataFrame()
    earlier = noted[noted["epoch"] < epoch] if len(noted) else noted
    row = pd.DataFrame({"epoch": [epoch], "seconds": [round(seconds, 3)]})
    write_table(pd.concat([earlier, row]), path)


def rank(scores: dict[str, Any]) -> tuple[float, float]:
    """What `best` means: the highest validation mAP; of equals (0 in the first epochs) the lowest loss."""
    return scores["mAP"], -scores["valid_loss"]


def train_epoch(
    run: Training, batches: Iterable[dict[str, Any]], ids: Sequence[str], title: str, clip: float
) -> dict[str, float]:
    """A step for each batch; returns the head's highest rate and the mean loss.

    Raises UserError if the loss is not finite; ids: the patientId of each `row`.
    """
    train_mode(run.model, run.phase.first_stage)
    losses: list[Tensor] = []
    rates: list[float] = []
    rows: list[Tensor] = []
    for batch in batches:
        rates.append(run.optimizer.param_groups[-1]["lr"])
        losses.append(train_step(run, to_device(batch, run.device), clip))
        rows.append(batch["row"])
        # a step late: to ask for this step's loss now would leave a GPU without work until the next is told
        check_finite(losses[:-1], rows[:-1], ids, title)
    check_finite(losses, rows, ids, title)
    return {"lr": max(rates), "train_loss": float(torch.stack(losses).mean())}


def check_finite(losses: list[Tensor], rows: list[Tensor], ids: Sequence[str], title: str) -> None:
    """Raise UserError, with the batch's images, if the last of these losses, as of train_step, is not finite."""
    if losses and not torch.isfinite(losses[-1]):
        names = [ids[row] for row in rows[-1].tolist()]
        raise UserError(
            f"{title}, batch {len(losses)}: the loss or its gradient is not finite; images {', '.join(names)}. "
            "Finished epochs are kept. The same command would meet this batch again: lower the rates, or look at "
            "these images, and give the run another name="
        )


def train_step(run: Training, targets: dict[str, Tensor], clip: float = 0.0) -> Tensor:
    """Forward, backward, a step of weights and rates; returns the loss, detached, without waiting for a GPU.

    It is NaN where the gradient is not finite, but for float16, whose scaler leaves out such steps.
    """
    with mixed_precision(run.device, run.precision):
        outputs = run.model(targets["image"])
    loss: Tensor = run.model.loss(outputs, targets)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    return loss.detach() if run.scaler.is_enabled() else loss.detach() + 0 * norm


@torch.inference_mode()
def validate(run: Training, loader: DataLoader[Any], data: FoldData, size: int) -> dict[str, float]:
    """Loss, accuracy, errors of the corners, opacity AUC, IoU on positives, mAP at its best threshold; plain view."""
    run.model.eval()
    losses, boxes, confidences = [], [], []
    for batch in loader:
        targets = to_device(batch, run.device)
        with mixed_precision(run.device, run.precision):
            outputs = run.model(targets["image"])
        losses.append(float(run.model.loss(outputs, targets)) * len(batch["row"]))
        box, confidence, _ = run.model.decode(outputs)
        boxes.append(to_numpy(box))
        confidences.append(to_numpy(confidence))
    table = prediction_table(data.valid, np.concatenate(boxes), np.concatenate(confidences), size)
    return {
        "valid_loss": sum(losses) / len(data.valid.ids),
        "accuracy": accuracy(table, data.truth),
        **corner_errors(np.concatenate(boxes)[:, 0], data.valid.boxes_xyxy / size),
        "AUC": opacity_auc(table, data.truth),
        "IoU": iou_on_positives(table, data.truth),
        "mAP": best_score(table, data.truth),
    }


def make_loaders(
    cfg: Config, fold: int, data: FoldData, device: torch.device, epochs: range
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """The loaders of the training images, augmented, for these epochs, and of the validation images."""
    train_memory, valid_memory = memory_for(data, cfg.size, cfg.memory / cfg.jobs)
    train = make_train_set(cfg, fold, data.train, train_memory)
    valid = ImageDataset(data.valid, memory=valid_memory)
    workers = count_workers(cfg.workers, cfg.jobs) if device.type != "cpu" else 0
    return (
        make_loader(train, EpochBatches(train, cfg.batch_size, epochs), workers, device),
        # nothing to augment there, and the others begin with the next epoch meanwhile
        make_loader(valid, 2 * cfg.batch_size, (workers + 1) // 2, device),
    )


def make_train_set(cfg: Config, fold: int, samples: Samples, memory: ImageMemory | None = None) -> ImageDataset:
    """The training images of a fold, augmented as the settings say."""
    augmentation = Augmentation(cfg.flip, cfg.rotate, cfg.translate, cfg.scale, cfg.brightness_contrast)
    return ImageDataset(samples, augmentation, (cfg.seed, fold), memory)


def start_model(cfg: Config, data: FoldData, device: torch.device) -> Any:
    """A network on the device; with start_at_mean it answers with the training set's mean box and class rates."""
    model = build_model(cfg)
    boxes = xyxy_to_cxcywh(data.train.boxes_xyxy[~np.isnan(data.train.boxes_xyxy[:, 0])]) / cfg.size
    if not len(boxes):
        raise UserError(f"{cfg.folds_csv}: no positive image to train on")
    rates = np.bincount(data.train.labels, minlength=cfg.num_classes) / len(data.train.labels)
    if cfg.prior_init:
        model.start_at(torch.from_numpy(boxes.mean(axis=0)).float(), torch.from_numpy(rates).float())
    model.to(device).to(memory_format=torch.channels_last)
    if cfg.compile:
        model.compile()
    return model


def start_phase(
    cfg: Config, model: Any, n_images: int, phase: Phase, history: list[dict[str, Any]] | None = None
) -> Training:
    """Freeze what the phase does not train, and begin with a new optimiser and schedule."""
    device = next(model.parameters()).device
    check_stages(model.encoder, phase)
    freeze(model, phase.first_stage)
    share = 1.0 if cfg.weights == "none" else cfg.encoder_lr
    optimizer = make_optimizer(model, phase.rates, share, cfg.weight_decay)
    steps = n_images // min(cfg.batch_size, n_images) * phase.epochs
    schedule = make_schedule(optimizer, phase.schedule, steps, phase.epochs)
    precision = pick_precision(cfg.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    return Training(model, optimizer, schedule, scaler, device, precision, phase, history or [])
