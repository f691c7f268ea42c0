"""Phases of training, given as text: what is trained, number of epochs, learning rates and schedule."""

import math
import re
from dataclasses import dataclass

from rsna.core.errors import UserError

SCHEDULES = ("onecycle", "cosine", "sgdr", "one_cycle_legacy", "constant")
STAGES = 4  # of a ResNet encoder; its stem counts as stage 0
# what a phase trains -> the first stage of it: 0 (the stem, so the whole encoder) to 5 (the head only)
PARTS = {"head": STAGES + 1, **{f"last{k}": STAGES + 1 - k for k in range(1, STAGES + 1)}, "all": 0}
HOW = "write part:epochs:lrs:schedule, such as head:3:1e-3:onecycle,last2:5:1e-5/1e-4/1e-3:cosine,all:10:1e-3:sgdr"


@dataclass(frozen=True)
class Phase:
    """One phase of training, with its own optimiser and schedule."""

    part: str  # what is trained: head; last1 to last4: the head and that many of the encoder's last stages; all
    epochs: int
    lrs: tuple[float, ...]  # peak learning rates from the encoder's input to the head, see make_optimizer
    schedule: str

    @property
    def first_stage(self) -> int:
        return PARTS[self.part]

    def __str__(self) -> str:
        return f"{self.part}:{self.epochs}:{'/'.join(f'{lr:g}' for lr in self.lrs)}:{self.schedule}"


def parse_phases(text: str) -> list[Phase]:
    """`head:3:1e-3:onecycle,all:10:1e-5/1e-4/1e-3:cosine` -> two phases. Raises UserError, with the right syntax."""
    return [parse_phase(word.strip()) for word in text.split(",")]


def parse_phase(word: str) -> Phase:
    fields = word.split(":")
    if len(fields) not in (3, 4):
        raise UserError(f"phases: '{word}' has {len(fields)} of 3 or 4 fields; {HOW}")
    part, epochs, lrs, schedule = (*fields, "onecycle")[:4]
    if part not in PARTS:
        raise UserError(f"phases: '{part}' is not head, last1 to last{STAGES}, or all; {HOW}")
    if not re.fullmatch(r"[1-9]\d{0,3}", epochs):
        raise UserError(f"phases: '{epochs}' epochs in '{word}': a whole number from 1; {HOW}")
    if schedule not in SCHEDULES:
        raise UserError(f"phases: unknown schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}")
    try:
        numbers = tuple(float(lr) for lr in lrs.split("/"))
    except ValueError:
        numbers = (math.nan,)
    if not all(0 < lr <= 10 for lr in numbers) or len(numbers) > STAGES + 2:
        raise UserError(f"phases: lrs '{lrs}' in '{word}': one to {STAGES + 2} numbers up to 10, joined by /; {HOW}")
    return Phase(part, int(epochs), numbers, schedule)


def phase_at(phases: list[Phase], epoch: int) -> tuple[Phase, int]:
    """The phase of an epoch (counted from 0 over all phases), and the epoch's number within that phase."""
    for phase in phases:
        if epoch < phase.epochs:
            return phase, epoch
        epoch -= phase.epochs
    raise ValueError("an epoch after the last phase")
