"""What a training starts with: the network, and the loaders of its images."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.executor import count_workers
from rsna.data.augment import Augmentation
from rsna.data.boxes import xyxy_to_cxcywh
from rsna.data.dataset import FoldData, ImageDataset, Samples
from rsna.data.loader import EpochBatches, ImageMemory, make_loader, memory_for
from rsna.models.protocol import DetectionModel
from rsna.models.registry import build_model


def start_model(cfg: Config, data: FoldData, device: torch.device) -> DetectionModel:
    """A network on the device; with prior_init its biases follow from the training set's boxes and classes."""
    model = build_model(cfg)
    if not any(map(len, data.train.boxes_xyxy)):
        raise UserError(f"{cfg.folds_csv}: no positive image to train on")
    if cfg.prior_init:
        class_rates = np.bincount(data.train.labels, minlength=cfg.num_classes) / len(data.train.labels)
        boxes_cxcywh = [xyxy_to_cxcywh(boxes) / cfg.size if len(boxes) else boxes for boxes in data.train.boxes_xyxy]
        model.init_priors(boxes_cxcywh, torch.from_numpy(class_rates).float())
    model.to(device).to(memory_format=torch.channels_last)
    if cfg.compile:
        model.compile()
    return model


def make_loaders(
    cfg: Config, fold: int, data: FoldData, device: torch.device, epochs: range
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """The loaders of the training images, augmented, for these epochs, and of the validation images."""
    train_memory, valid_memory = memory_for(data, cfg.size, cfg.memory / cfg.jobs)
    train = make_train_set(cfg, fold, data.train, train_memory)
    valid = ImageDataset(data.valid, read=valid_memory.read if valid_memory else None)
    workers = count_workers(cfg.workers, cfg.jobs) if device.type != "cpu" else 0
    return (
        make_loader(train, EpochBatches(train, cfg.batch_size, epochs), workers, device),
        # no augmentation there, and the other processes load the next epoch meanwhile
        make_loader(valid, 2 * cfg.batch_size, (workers + 1) // 2, device),
    )


def make_train_set(cfg: Config, fold: int, samples: Samples, memory: ImageMemory | None = None) -> ImageDataset:
    """The training images of a fold, augmented as the settings say."""
    augmentation = Augmentation(cfg.flip, cfg.rotate, cfg.translate, cfg.scale, cfg.brightness_contrast)
    return ImageDataset(samples, augmentation, (cfg.seed, fold), memory.read if memory else None)
