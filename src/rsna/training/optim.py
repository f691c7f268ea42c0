"""Optimiser and schedule: which weights train, parameter groups, and the course of the learning rates."""

import re
from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
)

from rsna.core.errors import UserError
from rsna.core.phases import STAGES, Phase

# of one_cycle_legacy, fast.ai's use_clr of 2018
PEAK_RATIO = 32  # its peak is this many times its start
TAIL = 0.05  # fraction of its steps at the end, which go down to a hundredth of the start


def encoder_stage(name: str) -> int:
    """Stage of an encoder's weight or layer by its name in the ResNet family: `layer3.0.conv1` -> 3; the stem is 0."""
    match = re.match(r"layer(\d)(\.|$)", name)
    return int(match[1]) if match else 0


def check_encoder_stages(encoder: nn.Module, phase: Phase) -> None:
    """Raise UserError if the phase names stages that the encoder does not have."""
    known = {encoder_stage(name) for name, _ in encoder.named_children()} >= set(range(1, STAGES + 1))
    if not known and (phase.part.startswith("last") or len(phase.lrs) > 2):
        raise UserError(
            f"phases: '{phase}': this encoder has no stages layer1 to layer{STAGES}; "
            "head and all, with one or two learning rates, work with every encoder"
        )


def freeze(model: nn.Module, first_stage: int) -> None:
    """Train the head and the encoder's stages from first_stage on; freeze the stages before."""
    for name, parameter in model.named_parameters():
        inside = name.startswith("encoder.")
        parameter.requires_grad_(not inside or encoder_stage(name.removeprefix("encoder.")) >= first_stage)


def train_mode(model: nn.Module, first_stage: int) -> None:
    """Training mode; frozen stages keep their batch statistics, as they keep their weights."""
    model.train()
    for name, module in model.get_submodule("encoder").named_modules():
        if name and encoder_stage(name) < first_stage:
            module.training = False


def make_optimizer(model: nn.Module, lrs: Sequence[float], encoder_lr: float, weight_decay: float) -> AdamW:
    """AdamW over the weights that train, in groups by learning rate, each with and without decay.

    lrs: peaks from the encoder's input to the head; a single one is the head's, and the encoder gets the fraction
    encoder_lr of it. Biases and the scales of normalisation layers are not decayed: shrinking them only works against
    the layer. Without decay AdamW is Adam.
    """
    by_stage = lrs_by_stage(lrs, encoder_lr)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stage = encoder_stage(name.removeprefix("encoder.")) if name.startswith("encoder.") else STAGES + 1
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((by_stage[stage], decay), []).append(parameter)
    # fused: one pass over the weights instead of ten, a sixth of a training step's time on the CPU
    return AdamW([{"params": group, "lr": lr, "weight_decay": wd} for (lr, wd), group in groups.items()], fused=True)


def lrs_by_stage(lrs: Sequence[float], encoder_lr: float) -> list[float]:
    """Of the stem, the stages and the head: `1e-5, 1e-4, 1e-3` -> 1e-5 up to stage 2, 1e-4 from 3, head 1e-3."""
    if len(lrs) == 1:
        return [lrs[0] * encoder_lr] * (STAGES + 1) + [lrs[0]]
    parts = np.array_split(np.arange(STAGES + 1), len(lrs) - 1)
    return [lr for lr, part in zip(lrs[:-1], parts, strict=True) for _ in part] + [lrs[-1]]


def make_schedule(optimizer: AdamW, schedule: str, steps: int, epochs: int) -> LRScheduler:
    """The learning rates over the steps of a phase; each group's own lr is its peak.

    onecycle: up over a quarter of the steps, then down to nothing, the momentum the other way round (Smith 2018);
    cosine: down from the peak; sgdr: restarts after 1, 2, 4, ... epochs (Loshchilov and Hutter 2017); one_cycle_legacy:
    see one_cycle_legacy; constant.
    """
    steps = max(steps, 2)
    if schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # PyTorch divides by the length of the rise, one step less than this fraction: of four steps it would be zero
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, pct_start=0.25 if steps != 4 else 0.5)
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if schedule == "sgdr":
        return CosineAnnealingWarmRestarts(optimizer, T_0=max(steps // epochs, 1), T_mult=2)
    if schedule == "one_cycle_legacy":
        return LambdaLR(optimizer, lambda step: one_cycle_legacy(step / steps))
    return ConstantLR(optimizer, factor=1.0)


def one_cycle_legacy(progress: float) -> float:
    """Fraction of the peak at a fraction of the steps: up from 1/32, back down, and a tail to a hundredth of that.

    The one cycle of fast.ai 0.7 (use_clr_beta), with which the post trained.
    """
    half = (1 - TAIL) / 2
    if progress > 2 * half:
        return (1 - 0.99 * (progress - 2 * half) / TAIL) / PEAK_RATIO
    rise = 1 - abs(progress - half) / half
    return (1 + rise * (PEAK_RATIO - 1)) / PEAK_RATIO
