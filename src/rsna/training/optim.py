"""Optimiser and schedule: which weights are trained, parameter groups, and learning rates over the steps."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, lr_scheduler

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.phases import STAGES, Phase
from rsna.models.backbone import normalise
from rsna.models.protocol import DetectionModel
from rsna.models.registry import build_model


def stage_of(name: str) -> int:
    """The stage of a parameter or layer, from its name: `encoder.layer3.0.conv1` -> 3; the stem is 0, the head 5."""
    match = re.match(r"encoder\.(?:layer(\d)(?:\.|$))?", name)
    return int(match[1] or 0) if match else STAGES + 1


def freeze(model: DetectionModel, phase: Phase) -> None:
    """Freeze all weights that the phase does not train. Raises UserError if the phase needs stages that are missing."""
    known = {name for name, _ in model.encoder.named_children()} >= {f"layer{k}" for k in range(1, STAGES + 1)}
    if not known and (phase.part.startswith("last") or len(phase.lrs) > 2):
        raise UserError(
            f"phases: '{phase}': this encoder has no stages layer1 to layer{STAGES}; "
            "head and all, with one or two learning rates, work with every encoder"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage_of(name) >= phase.first_stage)


def train_mode(model: nn.Module, first_stage: int, freeze_bn: bool = False) -> None:
    """Set training mode, except for frozen stages, which keep their batch-norm statistics like their weights.

    freeze_bn: all batch-norm layers of the encoder keep their statistics; their scales and shifts are still trained.
    """
    model.train()
    for name, module in model.named_modules():
        stage = stage_of(name)
        if stage < first_stage or (freeze_bn and stage <= STAGES and isinstance(module, nn.BatchNorm2d)):
            module.training = False


def make_optimizer(model: nn.Module, lrs: Sequence[float], encoder_lr: float, weight_decay: float) -> AdamW:
    """AdamW for the weights that are trained, in groups by learning rate, with and without weight decay.

    lrs, encoder_lr: see lrs_by_stage. Biases and the scales of normalisation layers are not decayed: shrinking them
    would only work against the layer. With weight_decay=0 AdamW is Adam.
    """
    by_stage = lrs_by_stage(lrs, encoder_lr)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((by_stage[stage_of(name)], decay), []).append(parameter)
    # fused: one pass over the weights instead of ten; on the CPU that saves a sixth of a training step's time
    return AdamW([{"params": group, "lr": lr, "weight_decay": wd} for (lr, wd), group in groups.items()], fused=True)


def lrs_by_stage(lrs: Sequence[float], encoder_lr: float) -> list[float]:
    """Learning rates of the stem, the stages 1 to 4 and the head, from one rate for each part of the network.

    `1e-5, 1e-4, 1e-3` -> 1e-5 up to stage 2, 1e-4 for stages 3 and 4, 1e-3 for the head. If there is only one rate, it
    is the head's, and the encoder's is encoder_lr times that.
    """
    if len(lrs) == 1:
        return [lrs[0] * encoder_lr] * (STAGES + 1) + [lrs[0]]
    parts = np.array_split(np.arange(STAGES + 1), len(lrs) - 1)
    return [lr for lr, part in zip(lrs[:-1], parts, strict=True) for _ in part] + [lrs[-1]]


def make_schedule(optimizer: AdamW, schedule: str, steps: int, epochs: int) -> lr_scheduler.LRScheduler:
    """The learning rates over the steps of a phase; the peak of each group is its lr.

    onecycle: up over a quarter of the steps, then down to about 0, and the momentum the other way round (Smith 2018);
    cosine: down from the peak to 0; sgdr: the same with restarts after 1, 2, 4, ... epochs (Loshchilov and Hutter
    2017); one_cycle_legacy: see that function; constant.
    """
    steps = max(steps, 2)
    if schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # PyTorch divides by the length of the rise, pct_start * steps - 1, which would be 0 for four steps
        return lr_scheduler.OneCycleLR(optimizer, peaks, steps, pct_start=0.25 if steps != 4 else 0.5)
    if schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if schedule == "sgdr":
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=max(steps // epochs, 1), T_mult=2)
    if schedule == "one_cycle_legacy":
        return lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle_legacy(step / steps))
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def one_cycle_legacy(progress: float) -> float:
    """The learning rate, as a fraction of its peak, at a fraction `progress` of the steps.

    It rises from 1/32, falls back to 1/32, and ends with a tail down to 1/3200. This is the one-cycle schedule of
    fast.ai 0.7 (use_clr_beta, 2018), which the post used.
    """
    peak_ratio, tail = 32, 0.05  # peak / start; the fraction of the steps in the tail
    half = (1 - tail) / 2
    if progress > 2 * half:
        return (1 - 0.99 * (progress - 2 * half) / tail) / peak_ratio
    rise = 1 - abs(progress - half) / half
    return (1 + rise * (peak_ratio - 1)) / peak_ratio


def describe_model(cfg: Config, summary: Callable[..., Any]) -> str:
    """Text: every layer, the shapes of the encoder's last feature maps, and the phases.

    summary: torchinfo.summary. Raises UserError as build_model and freeze do.
    """
    model = build_model(cfg, weights="none").eval()
    freeze(model, cfg.phase_list[0])
    columns = ["input_size", "output_size", "num_params", "trainable"]
    image = torch.zeros(2, 1, cfg.size, cfg.size, dtype=torch.uint8)
    layers = summary(model, input_data=[image], col_names=columns, depth=6, verbose=0)
    with torch.inference_mode():
        features = model.encoder(normalise(image))
    shapes = ", ".join(" x ".join(map(str, level.shape[1:])) for level in features[-3:])
    maps = f"the encoder's last maps (channels x rows x columns): {shapes}"
    flattened = f"the last one flattened: {features[-1][0].numel():,} numbers"
    phases = [f"phase {k}: {describe_phase(cfg, model, phase)}" for k, phase in enumerate(cfg.phase_list, 1)]
    return "\n".join([str(layers), maps, flattened, *phases])


def describe_phase(cfg: Config, model: DetectionModel, phase: Phase) -> str:
    freeze(model, phase)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lrs = lrs_by_stage(phase.lrs, 1.0 if cfg.weights == "none" else cfg.encoder_lr)[phase.first_stage :]
    return (
        f"{phase.part}, {phase.epochs} epochs, {phase.schedule}, {trained:,} of {total:,} parameters train, "
        f"peak learning rates from input to head {', '.join(f'{lr:g}' for lr in dict.fromkeys(lrs))}"
    )
