"""Checkpoints: plain types only, and the settings and files that made them."""

from pathlib import Path
from typing import Any

import torch

from competition import LABELS_CSV
from config import Config
from files import UserError, difference, fingerprint, write_then_rename


def training_facts(cfg: Config) -> dict[str, Any]:
    """What a trained fold depends on; stands in its checkpoints."""
    files = {"folds.csv": cfg.folds_csv, LABELS_CSV: Path(cfg.input) / LABELS_CSV}
    if cfg.weights not in ("none", "imagenet"):
        files["weights file"] = Path(cfg.weights)
    return cfg.of_stage("folds", "cache", "train") | {name: fingerprint(path) for name, path in files.items()}


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    with write_then_rename(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's plain types. Raises UserError if it is broken or was made from other facts."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run: python src/train.py fold={path.parent.name.removeprefix('fold')}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        made_from = content["made_from"]
    except Exception as error:  # a broken file fails in as many ways as there are bytes
        raise UserError(f"{path}: not a checkpoint ({type(error).__name__}); delete it and train again") from None
    changes = difference(made_from, facts)
    if changes:
        raise UserError(
            f"{path} was made with other settings or files ({changes}); say them again, or give this run another "
            f"name=, or delete {path.parent}"
        )
    assert isinstance(content, dict)
    return content
