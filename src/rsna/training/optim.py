"""Optimiser and schedule: which weights train, parameter groups, and the course of the learning rates."""

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
    """Stage of a network's weight or layer by its name: `encoder.layer3.0.conv1` -> 3; 0 in the stem, 5 in the head."""
    match = re.match(r"encoder\.(?:layer(\d)(?:\.|$))?", name)
    return int(match[1] or 0) if match else STAGES + 1


def freeze(model: DetectionModel, phase: Phase) -> None:
    """Freeze all but what the phase trains. Raises UserError if it names stages that the encoder does not have."""
    known = {name for name, _ in model.encoder.named_children()} >= {f"layer{k}" for k in range(1, STAGES + 1)}
    if not known and (phase.part.startswith("last") or len(phase.lrs) > 2):
        raise UserError(
            f"phases: '{phase}': this encoder has no stages layer1 to layer{STAGES}; "
            "head and all, with one or two learning rates, work with every encoder"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage_of(name) >= phase.first_stage)


def train_mode(model: nn.Module, first_stage: int, freeze_bn: bool = False) -> None:
    """Training mode; frozen stages keep their batch statistics, as they keep their weights.

    freeze_bn: so do all layers of batch normalisation in the encoder, whose scales and shifts still train.
    """
    model.train()
    for name, module in model.named_modules():
        stage = stage_of(name)
        if stage < first_stage or (freeze_bn and stage <= STAGES and isinstance(module, nn.BatchNorm2d)):
            module.training = False


def make_optimizer(model: nn.Module, lrs: Sequence[float], encoder_lr: float, weight_decay: float) -> AdamW:
    """AdamW over the weights that train, in groups by learning rate, each with and without decay.

    lrs, encoder_lr: see lrs_by_stage. Biases and the scales of normalisation layers are not decayed: shrinking them
    only works against the layer. Without decay AdamW is Adam.
    """
    by_stage = lrs_by_stage(lrs, encoder_lr)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((by_stage[stage_of(name)], decay), []).append(parameter)
    # fused: one pass over the weights instead of ten, a sixth of a training step's time on the CPU
    return AdamW([{"params": group, "lr": lr, "weight_decay": wd} for (lr, wd), group in groups.items()], fused=True)


def lrs_by_stage(lrs: Sequence[float], encoder_lr: float) -> list[float]:
    """Of the stem, the stages and the head: `1e-5, 1e-4, 1e-3` -> 1e-5 up to stage 2, 1e-4 from 3, head 1e-3.

    A single one is the head's, and the encoder gets the fraction encoder_lr of it.
    """
    if len(lrs) == 1:
        return [lrs[0] * encoder_lr] * (STAGES + 1) + [lrs[0]]
    parts = np.array_split(np.arange(STAGES + 1), len(lrs) - 1)
    return [lr for lr, part in zip(lrs[:-1], parts, strict=True) for _ in part] + [lrs[-1]]


def make_schedule(optimizer: AdamW, schedule: str, steps: int, epochs: int) -> lr_scheduler.LRScheduler:
    """The learning rates over the steps of a phase; each group's own lr is its peak.

    onecycle: up over a quarter of the steps, then down to nothing, the momentum the other way round (Smith 2018);
    cosine: down from the peak; sgdr: restarts after 1, 2, 4, ... epochs (Loshchilov and Hutter 2017);
    one_cycle_legacy: see there; constant.
    """
    steps = max(steps, 2)
    if schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # PyTorch divides by the length of the rise, one step less than this fraction: of four steps it would be zero
        return lr_scheduler.OneCycleLR(optimizer, peaks, steps, pct_start=0.25 if steps != 4 else 0.5)
    if schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if schedule == "sgdr":
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=max(steps // epochs, 1), T_mult=2)
    if schedule == "one_cycle_legacy":
        return lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle_legacy(step / steps))
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def one_cycle_legacy(progress: float) -> float:
    """Fraction of the peak at a fraction of the steps: up from 1/32, back down, and a tail to a hundredth of that.

    The one cycle of fast.ai 0.7 (use_clr_beta, 2018), with which the post trained.
    """
    peak_ratio, tail = 32, 0.05  # the peak over the start; fraction of the steps that the tail takes
    half = (1 - tail) / 2
    if progress > 2 * half:
        return (1 - 0.99 * (progress - 2 * half) / tail) / peak_ratio
    rise = 1 - abs(progress - half) / half
    return (1 + rise * (peak_ratio - 1)) / peak_ratio


def describe_model(cfg: Config, summary: Callable[..., Any]) -> str:
    """Every layer (summary: torchinfo's), what the head gets from the encoder, and the phases. Raises as freeze."""
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
