"""How the weights move: which of them train, parameter groups, and the learning rate's course."""

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

PEAK_RATIO = 32  # of the triangle: its peak is this many times its start (fast.ai's use_clr, 2018)
TAIL = 0.05  # share of the triangle's steps at its end, which go down to a hundredth of the start


def stage_of(name: str) -> int:
    """Stage of an encoder's weight or layer by its name in the ResNet family: `layer3.0.conv1` -> 3; the stem is 0."""
    match = re.match(r"layer(\d)(\.|$)", name)
    return int(match[1]) if match else 0


def check_stages(encoder: nn.Module, phase: Phase) -> None:
    """Raise UserError if the phase speaks of stages that the encoder does not have by name."""
    known = {stage_of(name) for name, _ in encoder.named_children()} >= set(range(1, STAGES + 1))
    if not known and (phase.part.startswith("last") or len(phase.rates) > 2):
        raise UserError(
            f"phases: '{phase}': this encoder has no stages layer1 to layer{STAGES}; "
            "head and all, with one or two rates, work with every encoder"
        )


def freeze(model: nn.Module, first_stage: int) -> None:
    """Let the head and the encoder's stages from first_stage on train, and nothing before."""
    for name, parameter in model.named_parameters():
        inside = name.startswith("encoder.")
        parameter.requires_grad_(not inside or stage_of(name.removeprefix("encoder.")) >= first_stage)


def train_mode(model: nn.Module, first_stage: int) -> None:
    """Training mode; frozen stages keep their statistics, as their weights are kept."""
    model.train()
    for name, module in model.get_submodule("encoder").named_modules():
        if name and stage_of(name) < first_stage:
            module.training = False


def make_optimizer(model: nn.Module, rates: Sequence[float], encoder_share: float, weight_decay: float) -> AdamW:
    """AdamW over the weights that train, in groups by rate, each with and without decay.

    rates: from the encoder's input to the head; a single one is the head's, and the encoder gets encoder_share of it.
    Biases and the scales of normalisation layers are not decayed: shrinking them only works against the layer.
    Without decay AdamW is Adam.
    """
    by_stage = rates_by_stage(rates, encoder_share)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stage = stage_of(name.removeprefix("encoder.")) if name.startswith("encoder.") else STAGES + 1
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((by_stage[stage], decay), []).append(parameter)
    # fused: one pass over the weights instead of ten, a sixth of a training step's time on the CPU
    return AdamW([{"params": held, "lr": lr, "weight_decay": wd} for (lr, wd), held in groups.items()], fused=True)


def rates_by_stage(rates: Sequence[float], encoder_share: float) -> list[float]:
    """Rates of the stem, the stages and the head: `1e-5, 1e-4, 1e-3` -> 1e-5 up to stage 2, 1e-4 from 3, head 1e-3."""
    if len(rates) == 1:
        return [rates[0] * encoder_share] * (STAGES + 1) + [rates[0]]
    runs = np.array_split(np.arange(STAGES + 1), len(rates) - 1)
    return [rate for rate, run in zip(rates[:-1], runs, strict=True) for _ in run] + [rates[-1]]


def make_schedule(optimizer: AdamW, schedule: str, steps: int, epochs: int) -> LRScheduler:
    """The course of the rates over the steps of a phase; each group's own rate is its peak.

    onecycle: up over a quarter of the steps, then down to nothing, the momentum the other way round (Smith 2018);
    cosine: down from the peak; sgdr: restarts after 1, 2, 4, ... epochs (Loshchilov and Hutter 2017); one_cycle_legacy:
    see one_cycle_legacy; constant.
    """
    steps = max(steps, 2)
    if schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # PyTorch divides by the length of the climb, a step less than this share: of four steps nothing would be left
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, pct_start=0.25 if steps != 4 else 0.5)
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if schedule == "sgdr":
        return CosineAnnealingWarmRestarts(optimizer, T_0=max(steps // epochs, 1), T_mult=2)
    if schedule == "one_cycle_legacy":
        return LambdaLR(optimizer, lambda step: one_cycle_legacy(step / steps))
    return ConstantLR(optimizer, factor=1.0)


def one_cycle_legacy(progress: float) -> float:
    """Share of the peak rate at a share of the steps: up from 1/32, down to it, and a tail to a hundredth of that.

    The one cycle of fast.ai 0.7 (use_clr_beta), with which the post trained.
    """
    half = (1 - TAIL) / 2
    if progress > 2 * half:
        return (1 - 0.99 * (progress - 2 * half) / TAIL) / PEAK_RATIO
    climb = 1 - abs(progress - half) / half
    return (1 + climb * (PEAK_RATIO - 1)) / PEAK_RATIO
