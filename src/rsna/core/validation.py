"""The allowed values of settings, checked before a command starts."""

import math
import re
from typing import Any

from rsna.core.errors import UserError
from rsna.core.phases import parse_phases

# fmt: off
# allowed ranges, both ends included
RANGES = {
    "seed": (0, 2**31 - 1), "size": (32, 4096), "n_folds": (2, 100), "workers": (-1, 1024), "jobs": (-1, 1024),
    "lr": (1e-8, 10.0), "encoder_lr": (1e-8, 1.0), "weight_decay": (0.0, 10.0), "grad_clip": (0.0, 1e6),
    "flip": (0.0, 1.0), "rotate": (0.0, 90.0), "translate": (0.0, 0.5), "scale": (0.0, 0.5),
    "brightness_contrast": (0.0, 0.9), "memory": (0.0, 1.0),
    "wbf_iou": (0.01, 0.99), "missing_weight": (0.0, 1.0), "gpus": (0.05, 1.0),
}
CHOICES = {
    "engine": ("local", "ray"), "num_classes": (2, 3), "precision": ("auto", "float32", "bfloat16"),
    "tracker": ("none", "tensorboard", "wandb", "mlflow"), "checkpoint": ("best", "last"),
    "overlays": ("boxes", "all", "none"), "format": ("table", "dicom-sr"),
}
# fmt: on
LOWEST = {"epochs": 1, "batch_size": 2, "max_boxes": 1, "demo_train": 10, "demo_test": 2, "bootstrap": 10, "trials": 1}
FOLDERS = ("root", "input", "folds", "working", "submissions")
NAME = re.compile(r"(?!png_\d+$)[A-Za-z0-9][A-Za-z0-9._-]{,199}")  # of a run, whose folder is next to the caches
DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")
ADDRESS = re.compile(r"auto|(ray://)?[\w.-]+:\d{1,5}")
GATE = re.compile(r"none|auto|(0?\.\d*[1-9]\d*|1(\.0*)?),(0?\.\d+|[01](\.0*)?)")
THRESHOLD = re.compile(r"auto|0?\.\d+|[01](\.0*)?")
TTA_VIEWS = ("plain", "hflip")


def parse_weights(text: str) -> dict[str, float]:
    """`a,b:0.25` -> {"a": 1.0, "b": 0.25}: runs or members, and their weights in box fusion. Raises UserError."""
    weights: dict[str, float] = {}
    for part in text.split(",") if text else []:
        name, colon, weight = part.partition(":")
        if not NAME.fullmatch(name) or name in weights or not in_range(weight if colon else "1", (), 0.001, 1000):
            how = "names of runs (members=: of presets), each once, a weight after a colon: a,b:0.25"
            raise UserError(f"'{text}': {how}")
        weights[name] = float(weight or 1)
    return weights


def parse_folds(text: str, n_folds: int) -> list[int]:
    """`3` -> [3], `0,2` -> [0, 2], `0..4` -> [0, 1, 2, 3, 4], `all` -> all folds. Raises UserError."""
    if text.strip() == "all":
        return list(range(n_folds))
    folds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f"fold={text}: write all, 3, 0,2 or 0..4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= n_folds:
            raise UserError(f"fold={text}: with n_folds={n_folds} the folds are 0..{n_folds - 1}")
        folds.update(range(first, last + 1))
    return sorted(folds)


def check(settings: dict[str, Any]) -> None:
    """Raise UserError if a setting has a value that is not allowed."""
    problems = {
        "name": (not NAME.fullmatch(settings["name"]), "letters, digits, . _ -, not png_<n>: it becomes a folder"),
        "size": (settings["size"] % 32, "must be a multiple of 32, the encoder's stride"),
        "jobs": (settings["jobs"] == 0, "at least 1, or -1 for one per GPU"),
        "device": (not DEVICE.fullmatch(settings["device"]), "auto, cpu, cuda, cuda:1 or mps"),
        "address": (not ADDRESS.fullmatch(settings["address"]), "auto, host:port, or ray://host:port"),
        "threshold": (not THRESHOLD.fullmatch(settings["threshold"]), "auto, or a number from 0 to 1"),
        "gate": (
            not GATE.fullmatch(settings["gate"]),
            "none, auto, or alpha,beta with alpha above 0 and both at most 1, such as 0.5,0.1",
        ),
        "box_scale": (not in_range(settings["box_scale"], ("auto",), 0.1, 2.0), "auto, or a number from 0.1 to 2"),
        "prior": (
            not in_range(settings["prior"], ("auto", "none"), 0.001, 0.999),
            "auto, none, or a number from 0.001 to 0.999",
        ),
        **{key: (not low <= settings[key] <= 10**6, f"must be from {low} to 1000000") for key, low in LOWEST.items()},
        **{key: (settings[key] not in allowed, " or ".join(map(str, allowed))) for key, allowed in CHOICES.items()},
        **{key: (not settings[key].strip(), "must not be empty") for key in FOLDERS},
    }
    for key, (low, high) in RANGES.items():
        if not low <= settings[key] <= high:
            raise UserError(f"{key}={settings[key]}: must be from {low:g} to {high:g}")
    for key, (wrong, rule) in problems.items():
        if wrong:
            raise UserError(f"{key}={settings[key]}: {rule}")
    if settings["phases"]:
        parse_phases(settings["phases"])
    check_views(settings["tta"], settings["tta_scales"])
    parse_folds(settings["fold"], settings["n_folds"])
    for key in ("runs", "members"):
        parse_weights(settings[key])


def in_range(text: str, others: tuple[str, ...], low: float, high: float) -> bool:
    """Whether `text` is one of the words in `others`, or a number from low to high."""
    return text in others or (re.fullmatch(r"\d*\.?\d+|\d+\.", text) is not None and low <= float(text) <= high)


def check_views(names: str, scales: str) -> None:
    """Raise UserError unless all views and scales are valid and include the plain view at scale 1."""
    if not set(names.split(",")) <= set(TTA_VIEWS) or "plain" not in names.split(","):
        raise UserError(f"tta={names}: views are {', '.join(TTA_VIEWS)}, and plain is always one of them")
    numbers = [float(scale) if re.fullmatch(r"\d+(\.\d+)?", scale) else math.nan for scale in scales.split(",")]
    if not all(0.5 <= number <= 2 for number in numbers) or 1.0 not in numbers:
        raise UserError(f"tta_scales={scales}: numbers from 0.5 to 2 separated by commas, 1.0 among them")
