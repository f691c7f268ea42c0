"""One epoch of training and validation, and the state that they change, which last.pt saves."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.phases import Phase
from rsna.data.boxes import Floats
from rsna.data.dataset import FoldData
from rsna.data.loader import to_device
from rsna.evaluation.scores import accuracy, best_score, corner_errors, iou_on_positives, opacity_auc
from rsna.inference.predictor import prediction_table, to_numpy
from rsna.models.device import mixed_precision, pick_precision
from rsna.models.protocol import DetectionModel, Outputs
from rsna.training.optim import freeze, make_optimizer, make_schedule, train_mode

Losses = dict[str, float]  # the mean `loss`, and the means of its parts by name
STATEFUL = ("model", "optimizer", "schedule", "scaler")  # the parts of a Training that have a state_dict


@dataclass
class Training:
    """Everything that a training step changes, saved in last.pt, and what it needs."""

    model: DetectionModel
    optimizer: Optimizer
    schedule: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype  # of the forward pass: float32, or bfloat16 or float16 for mixed precision
    phase: Phase
    freeze_bn: bool
    history: list[dict[str, Any]]

    def state(self) -> dict[str, Any]:
        states = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return {"dtype": str(self.dtype).removeprefix("torch."), **states, "history": self.history}

    def load(self, state: dict[str, Any]) -> None:
        for name in STATEFUL:
            if state[name]:  # the scaler's state is empty unless the dtype is float16
                getattr(self, name).load_state_dict(state[name])
        self.history = state["history"]

    def forward(self, batch: dict[str, Any]) -> tuple[Outputs, dict[str, Tensor]]:
        """The model's outputs for a batch, which may be on any device, and the loss and its parts."""
        targets = to_device(batch, self.device)
        with mixed_precision(self.device, self.dtype):
            outputs = self.model(targets["image"])
        return outputs, self.model.loss(outputs, targets)


def start_phase(
    cfg: Config, model: DetectionModel, n_images: int, phase: Phase, history: list[dict[str, Any]] | None = None
) -> Training:
    """Freeze the parts that the phase does not train, and create its optimiser, schedule and gradient scaler."""
    device = next(model.parameters()).device
    freeze(model, phase)
    pretrained = cfg.weights != "none"
    optimizer = make_optimizer(model, phase.lrs, cfg.encoder_lr if pretrained else 1.0, cfg.weight_decay)
    steps = n_images // min(cfg.batch_size, n_images) * phase.epochs
    schedule = make_schedule(optimizer, phase.schedule, steps, phase.epochs)
    dtype = pick_precision(cfg.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    freeze_bn = pretrained and cfg.freeze_bn
    return Training(model, optimizer, schedule, scaler, device, dtype, phase, freeze_bn, history or [])


def train_epoch(
    run: Training, batches: Iterable[dict[str, Any]], ids: Sequence[str], title: str, grad_clip: float
) -> tuple[float, Losses]:
    """Train on all batches; returns the head's highest learning rate, and the mean of the loss and of each part.

    ids: patientIds, indexed by the `row` of a batch. Raises UserError if a loss is not finite.
    """
    train_mode(run.model, run.phase.first_stage, run.freeze_bn)
    steps: list[tuple[Tensor, dict[str, Tensor]]] = []  # for each batch its rows and its losses
    lrs: list[float] = []
    for batch in batches:
        lrs.append(run.optimizer.param_groups[-1]["lr"])
        steps.append((batch["row"], train_step(run, batch, grad_clip)))
        # check one step late, because reading the current loss would stall the GPU
        check_finite(steps[:-1], ids, title)
    check_finite(steps, ids, title)
    names = steps[0][1]
    return max(lrs), {name: float(torch.stack([losses[name] for _, losses in steps]).mean()) for name in names}


def check_finite(steps: list[tuple[Tensor, dict[str, Tensor]]], ids: Sequence[str], title: str) -> None:
    """Raise UserError, naming the images of the batch, if the loss of the last of these steps is not finite."""
    if steps and not torch.isfinite(steps[-1][1]["loss"]):
        names = [ids[row] for row in steps[-1][0].tolist()]
        raise UserError(
            f"{title}, batch {len(steps)}: the loss or its gradient is not finite; images {', '.join(names)}. "
            "Finished epochs are kept. The same command would meet this batch again: lower the learning rates, or "
            "look at these images, and give the run another name="
        )


def train_step(run: Training, batch: dict[str, Any], grad_clip: float) -> dict[str, Tensor]:
    """One step of the optimiser and the schedule; returns the loss and its parts, detached, without a GPU sync.

    The loss is NaN if the gradient is not finite, except in float16, where the scaler skips such steps.
    """
    _, losses = run.forward(batch)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(losses["loss"]).backward()
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), grad_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    losses = {name: value.detach() for name, value in losses.items()}
    return losses if run.scaler.is_enabled() else losses | {"loss": losses["loss"] + 0 * norm}


@torch.inference_mode()
def validate(run: Training, loader: DataLoader[Any], data: FoldData, size: int) -> tuple[Losses, dict[str, float]]:
    """The mean loss and its parts on the validation images, and their scores; size: side of the input, pixels."""
    run.model.eval()
    sums: Losses = {}
    found: list[tuple[Floats, ...]] = []
    for batch in loader:
        outputs, losses = run.forward(batch)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch["row"])
        found.append(tuple(map(to_numpy, run.model.decode(outputs))))
    means = {name: total / len(data.valid.ids) for name, total in sums.items()}
    boxes, scores, probabilities = map(np.concatenate, zip(*found, strict=True))
    if not boxes.shape[1]:
        return means, classification_scores(data, probabilities[:, -1])
    return means, validation_scores(data, boxes, scores, size)


def classification_scores(data: FoldData, p_opacity: Floats) -> dict[str, float]:
    """The scores of a model without boxes, from the probabilities of opacity (N,); with mAP 0 the loss ranks epochs."""
    table = pd.DataFrame({"patientId": data.valid.ids, "confidence": p_opacity})
    missing = dict.fromkeys(("L1", "L1_post", "IoU"), np.nan)
    return {"accuracy": accuracy(table, data.truth), "AUC": opacity_auc(table, data.truth), **missing, "mAP": 0.0}


def validation_scores(data: FoldData, boxes_xyxy: Floats, scores: Floats, size: int) -> dict[str, float]:
    """Accuracy, corner errors L1 and L1_post, opacity AUC, IoU on positives, and mAP at the best threshold.

    boxes_xyxy: (N, n, 4) in [0, 1] of the model's input, for the N validation images; scores: (N, n).
    """
    table = prediction_table(data.valid, boxes_xyxy, scores, size)
    most_confident = boxes_xyxy[np.arange(len(boxes_xyxy)), scores.argmax(axis=1)]
    largest_true = np.array([boxes[0] if len(boxes) else [np.nan] * 4 for boxes in data.valid.boxes_xyxy])
    return {
        "accuracy": accuracy(table, data.truth),
        **corner_errors(most_confident, largest_true / size),
        "AUC": opacity_auc(table, data.truth),
        "IoU": iou_on_positives(table, data.truth),
        "mAP": best_score(table, data.truth),
    }
