"""The learning-rate range test (Smith 2017) of each phase: rates rise step by step until the loss runs away.

    python src/find_lr.py [fold=0] [phases=...]   -> working/<name>/find_lr.{csv,png}

Starts from the fold's last.pt where training stopped before its last epoch, else as training would. Changes no
weights on disk.
"""

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LambdaLR

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.phases import Phase
from rsna.core.tables import write_table
from rsna.data.dataset import EpochBatches, load_fold, make_loader, to_device
from rsna.models.checkpoint import load_checkpoint
from rsna.models.device import explain_failures, mixed_precision, pick_device
from rsna.models.fastai import FlatModel
from rsna.reporting.montage import new_figure, save_figure
from rsna.training.loop import Training, make_train_set, start_model, start_phase, train_step
from rsna.training.optim import train_mode

LOWEST, HIGHEST = 1e-7, 1.0  # of the head's rate; the other groups keep their share of it
STEPS = 100
SETTLE = 20  # batches before the test, for a loss that is measured first
WINDOW = 15  # steps: a decade of the rate
GIVE_UP = 4.0  # times the lowest smoothed loss
FREE_TO_DIFFER = ("phases", "epochs", "lr", "encoder_lr", "weight_decay", "grad_clip", "batch_size", "precision")
SMOOTH = 0.9  # what the running mean of the loss keeps per step


def main(cfg: Config) -> None:
    with explain_failures(cfg):
        test_phases(cfg, cfg.fold_list[0])


def test_phases(cfg: Config, fold: int) -> None:
    """The range test of each phase, with a copy of the network for each."""
    data = load_fold(cfg, fold)
    torch.manual_seed(cfg.seed * 1000 + fold)
    model = start_model(cfg, data, pick_device(cfg.device))
    take_saved(cfg, fold, model)
    train = make_train_set(cfg, fold, data.train)
    # a new epoch has at least one batch
    loader = make_loader(train, EpochBatches(train, cfg.batch_size, range(STEPS)), 0, pick_device(cfg.device))
    tables = []
    for number, phase in enumerate(cfg.phase_list, 1):
        table = range_test(cfg, copy.deepcopy(model), loader, phase)
        print(f"phase {number}, {phase}: {describe(table)}")
        tables.append(table.assign(phase=number, part=phase.part))
    write_results(cfg, pd.concat(tables))


def take_saved(cfg: Config, fold: int, model: torch.nn.Module) -> None:
    """Fill the model from the fold's last.pt, if there is one of these settings, and say where it starts."""
    path = cfg.fold_dir(fold) / "last.pt"
    if not path.is_file():
        print(f"fold {fold}: from the weights that training starts with")
        return
    saved = load_checkpoint(path, cfg, fold, FREE_TO_DIFFER)
    if saved["epoch"] >= cfg.total_epochs:
        print(f"fold {fold}: {path} has all its epochs behind it; from the weights that training starts with")
        return
    model.load_state_dict(saved["model"])
    print(f"fold {fold}: from {path}, after epoch {saved['epoch']}")


def range_test(cfg: Config, model: torch.nn.Module, loader: Any, phase: Phase) -> pd.DataFrame:
    """Train a copy of the model with rising rates; columns lr (the head's), loss, smoothed."""
    run = start_phase(cfg, model, len(loader.dataset), phase)
    head = run.optimizer.param_groups[-1]["lr"]
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = group["lr"] / head * LOWEST
    run.schedule = LambdaLR(run.optimizer, lambda step: (HIGHEST / LOWEST) ** (step / (STEPS - 1)))
    train_mode(model, phase.first_stage)
    settle_loss(run, islice(loader, SETTLE))
    rows: list[dict[str, float]] = []
    average = 0.0
    for step, batch in enumerate(islice(loader, STEPS), 1):
        rate = run.optimizer.param_groups[-1]["lr"]
        loss = float(train_step(run, to_device(batch, run.device), cfg.grad_clip))
        if not np.isfinite(loss):
            break
        average = SMOOTH * average + (1 - SMOOTH) * loss
        rows.append({"lr": rate, "loss": loss, "smoothed": average / (1 - SMOOTH**step)})
        if rows[-1]["smoothed"] > GIVE_UP * min(row["smoothed"] for row in rows):
            break
    if len(rows) < STEPS // 10 + 2:
        raise UserError(f"phase {phase}: the loss runs away from the start; look at the images and settings")
    return pd.DataFrame(rows)


@torch.no_grad()
def settle_loss(run: Training, batches: Iterable[Any]) -> None:
    """Let a network that measures the parts of its loss do so, and hold them: the test needs one and the same loss."""
    if isinstance(run.model, FlatModel):
        for batch in batches:
            targets = to_device(batch, run.device)
            with mixed_precision(run.device, run.precision):
                outputs = run.model(targets["image"])
            run.model.loss(outputs, targets)
        run.model.hold_scale()


def steepest(table: pd.DataFrame) -> float:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate, before its minimum.

    The first tenth is left out: there the running mean is of a few batches only. The slope is a mean over WINDOW
    steps, as single batches differ more than neighbouring rates.
    """
    rates, smoothed = (table[column].to_numpy()[STEPS // 10 :] for column in ("lr", "smoothed"))
    slope = np.convolve(np.gradient(smoothed, np.log(rates)), np.ones(WINDOW) / WINDOW, mode="same")
    return float(rates[int(slope[: int(smoothed.argmin()) + 1].argmin())])


def limit(table: pd.DataFrame) -> float:
    """The highest rate at which the smoothed loss is still within a tenth of its minimum: above, it runs away."""
    later = table.iloc[STEPS // 10 :]
    return float(later.loc[later["smoothed"] <= 1.1 * later["smoothed"].min(), "lr"].max())


def describe(table: pd.DataFrame) -> str:
    return (
        f"the loss falls most steeply at {steepest(table):.1e} and runs away above {limit(table):.1e}; "
        f"a peak rate of about {limit(table) / 3:.0e} is worth a try"
    )


def write_results(cfg: Config, table: pd.DataFrame) -> None:
    """find_lr.csv and find_lr.png."""
    write_table(table, cfg.run_dir / "find_lr.csv")
    figure, axes = new_figure(1, len(cfg.phase_list), "loss while the learning rate rises")
    for axis, (number, rows) in zip(axes, table.groupby("phase"), strict=True):
        axis.semilogx(rows["lr"], rows["loss"], color="0.8")
        axis.semilogx(rows["lr"], rows["smoothed"])
        axis.axvline(limit(rows) / 3, linestyle="--", color="0.4")
        axis.set(title=f"phase {number}: {rows['part'].iloc[0]}", xlabel="head's rate", ylabel="loss")
        # the first steps hardly learn: about their loss the curve begins, though single batches lie anywhere
        axis.set_ylim(0.9 * rows["smoothed"].min(), 1.3 * rows["loss"].iloc[: STEPS // 3].median())
    save_figure(figure, cfg.run_dir / "find_lr.png")
    print(f"range test -> {cfg.run_dir / 'find_lr.csv'} and {cfg.run_dir / 'find_lr.png'}")


if __name__ == "__main__":
    run(main)
