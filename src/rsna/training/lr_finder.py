"""The learning-rate range test (Smith 2017): the learning rate rises in each step until the loss diverges."""

import copy
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LambdaLR

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.phases import Phase
from rsna.data.dataset import load_fold
from rsna.data.loader import EpochBatches, make_loader
from rsna.models.checkpoint import load_checkpoint
from rsna.models.device import explain_failures, pick_device
from rsna.models.protocol import DetectionModel
from rsna.training.fold import make_train_set, start_model
from rsna.training.loop import start_phase, train_step
from rsna.training.optim import train_mode

LOWEST, HIGHEST = 1e-7, 1.0  # the head's learning rate; the other groups keep their ratio to it
STEPS = 100
SETTLE = 20  # batches before the test, for a loss that measures the weights of its parts
WINDOW = 15  # steps in about one decade of the learning rate
DIVERGED = 4.0  # the test ends once the smoothed loss exceeds its minimum by this factor
SMOOTH = 0.9  # decay per step of the loss's exponential moving average
# settings that may differ from those that the tested checkpoint was trained with
FREE_TO_DIFFER = ("phases", "epochs", "lr", "encoder_lr", "weight_decay", "grad_clip", "batch_size", "precision")


def find_lr(cfg: Config, fold: int) -> pd.DataFrame:
    """Run the range test for each phase, each on a copy of the network, and print the learning rates to try.

    Returns the columns lr (the head's), loss, smoothed, phase, part. The network is the fold's last.pt if its training
    has not finished, else the initial network. No weights on disk are changed.
    """
    with explain_failures(cfg):
        data = load_fold(cfg, fold)
        model = start_model(cfg, fold, data)
        load_saved_weights(cfg, fold, model)
        train = make_train_set(cfg, fold, data.train)
        # STEPS epochs are enough for STEPS batches, as each epoch has at least one
        loader = make_loader(train, EpochBatches(train, cfg.batch_size, range(STEPS)), 0, pick_device(cfg.device))
        tables = []
        for number, phase in enumerate(cfg.phase_list, 1):
            table = range_test(cfg, copy.deepcopy(model), loader, phase)
            peak = f"{suggested_lr(table):.0e}"
            advice = f"a peak of {peak} in phases=" if cfg.phases else f"lr={peak} (now lr={cfg.lr:g})"
            print(
                f"phase {number}, {phase}: the loss falls most steeply at {steepest_lr(table):.1e} and diverges above "
                f"{highest_lr(table):.1e}; try at most {advice}"
            )
            tables.append(table.assign(phase=number, part=phase.part))
        return pd.concat(tables)


def load_saved_weights(cfg: Config, fold: int, model: DetectionModel) -> None:
    """Load the fold's last.pt into the model if its training has not finished, and print where the test starts.

    Raises UserError if last.pt was trained with other settings than these, except for FREE_TO_DIFFER.
    """
    path = cfg.fold_dir(fold) / "last.pt"
    saved = load_checkpoint(path, cfg, fold, ignore=FREE_TO_DIFFER) if path.is_file() else None
    if saved and saved["epoch"] < cfg.total_epochs:
        model.load_state_dict(saved["model"])
        print(f"fold {fold}: from {path}, after epoch {saved['epoch']}")
    else:
        finished = "training has finished, so the test starts " if saved else ""
        print(f"fold {fold}: {finished}from the initial weights")


def range_test(cfg: Config, model: DetectionModel, loader: Any, phase: Phase) -> pd.DataFrame:
    """One row per step: lr (the head's, rising), loss, smoothed. Raises UserError if the loss diverges at once."""
    run = start_phase(cfg, model, len(loader.dataset), phase)
    head = run.optimizer.param_groups[-1]["lr"]
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = group["lr"] / head * LOWEST
    run.schedule = LambdaLR(run.optimizer, lambda step: (HIGHEST / LOWEST) ** (step / (STEPS - 1)))
    train_mode(model, phase.first_stage, run.freeze_bn)
    if model.measures_loss_weights:  # the test needs a loss that does not change
        with torch.no_grad():
            for batch in islice(loader, SETTLE):
                run.forward(batch)
        model.hold_loss_weights()
    rows: list[dict[str, float]] = []
    average = 0.0
    for step, batch in enumerate(islice(loader, STEPS), 1):
        lr = run.optimizer.param_groups[-1]["lr"]
        loss = float(train_step(run, batch, cfg.grad_clip)["loss"])
        if not np.isfinite(loss):
            break
        average = SMOOTH * average + (1 - SMOOTH) * loss
        rows.append({"lr": lr, "loss": loss, "smoothed": average / (1 - SMOOTH**step)})
        if rows[-1]["smoothed"] > DIVERGED * min(row["smoothed"] for row in rows):
            break
    if len(rows) < STEPS // 10 + 2:
        raise UserError(f"phase {phase}: the loss diverges from the start; look at the images and settings")
    return pd.DataFrame(rows)


def steepest_lr(table: pd.DataFrame) -> float:
    """The learning rate at which the smoothed loss falls most steeply over log(lr), up to its minimum."""
    # without the first tenth of the steps, where the moving average covers only a few batches
    lrs, smoothed = (table[column].to_numpy()[STEPS // 10 :] for column in ("lr", "smoothed"))
    slope = np.convolve(np.gradient(smoothed, np.log(lrs)), np.ones(WINDOW) / WINDOW, mode="same")
    return float(lrs[int(slope[: int(smoothed.argmin()) + 1].argmin())])


def highest_lr(table: pd.DataFrame) -> float:
    """The highest learning rate whose smoothed loss is at most 1.1 times the minimum: above it the loss diverges."""
    later = table.iloc[STEPS // 10 :]
    return float(later.loc[later["smoothed"] <= 1.1 * later["smoothed"].min(), "lr"].max())


def suggested_lr(table: pd.DataFrame) -> float:
    return highest_lr(table) / 3
