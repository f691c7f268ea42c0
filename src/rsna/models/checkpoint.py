"""Checkpoints: plain types only, with a manifest of the settings and files that they were trained with."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rsna.core.artifacts import current_manifest, differences
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import write_then_rename


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the same content always gives the same bytes."""
    # to memory first: given a path, torch stores its name in the archive, and raises its own errors on a full disk
    buffer = io.BytesIO()
    torch.save(rebuilt(content), buffer)
    with write_then_rename(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def rebuilt(content: Any) -> Any:
    """The same content in new containers; equal strings become the same object.

    Pickle stores an object that it has already written as a reference. After a run is resumed, the part read from
    last.pt shares no objects with the rest, so without this the same content would give other bytes.
    """
    if isinstance(content, str):
        return sys.intern(content)
    if isinstance(content, dict):
        return {rebuilt(key): rebuilt(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)([rebuilt(value) for value in content])
    return content


def load_checkpoint(path: Path, cfg: Config, fold: int, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint. Raises UserError if it is broken, or from another fold or from other files or settings.

    Settings and inputs in `ignore` are not compared. With other folds a network would be scored on its training images.
    """
    train = command(cfg, "train", fold=str(fold))
    if not path.is_file():
        raise UserError(f"{path}: no such file; run: {train}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        changes = differences(content["manifest"], current_manifest(cfg, "train", fold), ignore)
        if content["fold"] != fold:
            changes = f"fold: {content['fold']} -> {fold}"
    except Exception as error:  # a broken file can raise anything
        reason = f"not a checkpoint of this version ({type(error).__name__})"
        raise UserError(f"{path}: {reason}; delete it and run: {train}") from None
    if changes:
        remedy = f"set them back, or give this run another name=, or delete {path.parent}"
        raise UserError(f"{path} comes from other settings or files ({changes}); {remedy}")
    return content


def people_of_checkpoint(path: Path) -> set[str]:
    """The people on whose images a checkpoint of this project was trained; empty for any other weights.

    path: a file that backbone.read_weights can read.
    """
    if path.suffix == ".safetensors":
        return set()
    content = torch.load(path, map_location="cpu", weights_only=True)
    people = content.get("people") if isinstance(content, dict) else None
    return set(map(str, people)) if isinstance(people, list) else set()
