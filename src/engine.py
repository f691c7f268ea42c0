"""Training one fold: depends on the config and files alone, and goes on from the last finished epoch."""

from dataclasses import dataclass
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

from augment import Augmentation
from boxes import xyxy_to_cxcywh
from checkpoint import load_checkpoint, save_checkpoint, save_config, training_facts
from competition import FOLD_COLUMNS, LABELS_CSV, read_labels, truth_boxes
from config import Config, command
from dataset import ImageDataset, Samples, class_index, make_loader, make_samples, to_device
from files import UserError, read_table, write_table
from images import read_index
from inference import mixed_precision, pick_device, precision, prediction_table, to_numpy
from model import SingleBoxModel, build_model
from parallel import count_workers
from recipe import make_optimizer, make_schedule
from scoring import best_score, iou_on_positives, opacity_auc


@dataclass
class FoldData:
    """The two sides of a fold and the truth boxes of its validation images (original pixels)."""

    train: Samples
    valid: Samples
    truth: pd.DataFrame


@dataclass
class Training:
    """Everything that a step changes; what `last.pt` holds."""

    model: SingleBoxModel
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    history: list[dict[str, float]]

    def state(self) -> dict[str, Any]:
        return {
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
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]


def train_fold(cfg: Config, fold: int) -> None:
    """Train one fold into working/<name>/fold<k>/. Same config and files, same result, alone or among others."""
    folder = cfg.fold_dir(fold)
    facts = training_facts(cfg)
    saved = load_checkpoint(folder / "last.pt", facts) if (folder / "last.pt").is_file() else None
    if saved and len(saved["history"]) == cfg.epochs and (folder / "best.pt").is_file():
        write_table(pd.DataFrame(saved["history"]), folder / "history.csv")
        print(f"fold {fold}: complete, {cfg.epochs} epochs -> {folder / 'best.pt'}")
        return
    data = load_fold(cfg, fold)
    torch.manual_seed(cfg.seed * 1000 + fold)
    run = start(cfg, data, pick_device(cfg.device))
    if saved and (folder / "best.pt").is_file():
        run.load(saved)
        print(f"fold {fold}: goes on after epoch {len(run.history)} of {cfg.epochs}")
    save_config(cfg, folder / "config.yaml")
    run_epochs(cfg, fold, run, data, facts)


def run_epochs(cfg: Config, fold: int, run: Training, data: FoldData, facts: dict[str, Any]) -> None:
    """Train, validate, save; epoch by epoch, up to cfg.epochs."""
    folder = cfg.fold_dir(fold)
    train = ImageDataset(data.train, augmentation_of(cfg), seed=(cfg.seed, fold))
    workers = count_workers(cfg.workers) if run.device.type != "cpu" else 0
    train_loader = make_loader(train, cfg.batch_size, workers, run.device)
    valid_loader = make_loader(ImageDataset(data.valid), 2 * cfg.batch_size, workers, run.device)
    for epoch in range(len(run.history), cfg.epochs):
        train.epoch = epoch
        # dropout draws from the global generator: seeded here, a resumed run draws what a straight one does
        torch.manual_seed((cfg.seed * 1000 + fold) * 1000 + epoch + 1)
        title = f"fold {fold} epoch {epoch + 1}/{cfg.epochs}"
        loss = train_epoch(run, train_loader, title)
        scores = {"epoch": epoch + 1, "train_loss": loss, **validate(run, valid_loader, data, cfg.size)}
        print(f"{title}: " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items() if key != "epoch"))
        run.history.append(scores)
        if rank(scores) == max(map(rank, run.history)):
            save_checkpoint(
                {"made_from": facts, "fold": fold, "epoch": epoch + 1, "model": run.model.state_dict()},
                folder / "best.pt",
            )
        save_checkpoint({"made_from": facts, "fold": fold, "epoch": epoch + 1, **run.state()}, folder / "last.pt")
        write_table(pd.DataFrame(run.history), folder / "history.csv")
    best = max(run.history, key=rank)
    print(f"fold {fold}: best mAP {best['mAP']:.4f} after epoch {best['epoch']:.0f} -> {folder / 'best.pt'}")


def rank(scores: dict[str, float]) -> tuple[float, float]:
    """What `best` means: the highest validation mAP; of equals (0 in the first epochs) the lowest loss."""
    return scores["mAP"], -scores["valid_loss"]


def train_epoch(run: Training, loader: DataLoader[Any], title: str) -> float:
    """One pass over the training images; returns the mean loss. Raises UserError if the loss is not finite."""
    run.model.train()
    losses: list[Tensor] = []
    progress = tqdm(loader, desc=title, unit="batch", leave=False)
    for step, batch in enumerate(progress):
        targets = to_device(batch, run.device)
        with mixed_precision(run.device):
            outputs = run.model(targets["image"])
        loss = run.model.loss(outputs, targets)
        if not torch.isfinite(loss):
            names = [loader.dataset.samples.ids[row] for row in batch["row"][:4].tolist()]  # type: ignore[attr-defined]
            raise UserError(f"{title}, batch {step}: the loss is not finite (images {names} ...); try a lower lr")
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), 5.0)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def validate(run: Training, loader: DataLoader[Any], data: FoldData, size: int) -> dict[str, float]:
    """valid_loss, opacity AUC, IoU with the largest box on positives, mAP at its best threshold; plain view."""
    run.model.eval()
    losses, boxes, confidences = [], [], []
    for batch in loader:
        targets = to_device(batch, run.device)
        with mixed_precision(run.device):
            outputs = run.model(targets["image"])
        losses.append(float(run.model.loss(outputs, targets)) * len(batch["row"]))
        box, confidence = run.model.decode(outputs)
        boxes.append(to_numpy(box))
        confidences.append(to_numpy(confidence))
    table = prediction_table(data.valid, np.concatenate(boxes), np.concatenate(confidences), size)
    return {
        "valid_loss": sum(losses) / len(data.valid.ids),
        "AUC": opacity_auc(table, data.truth),
        "IoU": iou_on_positives(table, data.truth),
        "mAP": best_score(table, data.truth),
    }


def load_fold(cfg: Config, fold: int) -> FoldData:
    """The samples of a fold, from folds.csv, the labels and the cache; images that were refused are left out."""
    folds = read_table(cfg.folds_csv, FOLD_COLUMNS, maker=command(cfg, "make_folds"))
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    index = read_index(cfg.cache_dir)
    usable = index[(index["split"] == "train") & (index["status"] == "ok")]
    refused = set(index.loc[(index["split"] == "train") & (index["status"] != "ok"), "patientId"])
    folds = folds[~folds["patientId"].isin(refused)]
    parts = []
    for side in (folds["fold"] != fold, folds["fold"] == fold):
        images = folds[side].reset_index(drop=True)
        if images.empty:
            raise UserError(f"{cfg.folds_csv}: fold {fold} leaves nothing to train or to validate on")
        labels = class_index(images, cfg.classes)
        parts.append(make_samples(images["patientId"], usable, cfg.cache_dir / "train", truth, labels))
    train, valid = parts
    print(f"fold {fold}: trains on {len(train.ids)} images, validates on {len(valid.ids)}, {len(refused)} refused")
    return FoldData(train, valid, truth[truth["patientId"].isin(valid.ids)])


def start(cfg: Config, data: FoldData, device: torch.device) -> Training:
    """A model that answers with the training set's mean box size and class rates, and its optimiser."""
    model = build_model(cfg)
    boxes = xyxy_to_cxcywh(data.train.boxes_xyxy[~np.isnan(data.train.boxes_xyxy[:, 0])]) / cfg.size
    if not len(boxes):
        raise UserError(f"{cfg.folds_csv}: no positive image to train on")
    rates = np.bincount(data.train.labels, minlength=cfg.classes) / len(data.train.labels)
    model.start_at(torch.from_numpy(boxes[:, 2:].mean(axis=0)).float(), torch.from_numpy(rates).float())
    model.to(device).to(memory_format=torch.channels_last)
    share = 1.0 if cfg.weights == "none" else cfg.encoder_lr
    optimizer = make_optimizer(model, cfg.lr, share, cfg.weight_decay)
    steps = len(data.train.ids) // min(cfg.batch_size, len(data.train.ids)) * cfg.epochs
    scaler = torch.amp.GradScaler(device.type, enabled=precision(device) == torch.float16)
    return Training(model, optimizer, make_schedule(optimizer, steps), scaler, device, [])


def augmentation_of(cfg: Config) -> Augmentation:
    return Augmentation(cfg.flip, cfg.rotate, cfg.shift, cfg.zoom, cfg.light)
