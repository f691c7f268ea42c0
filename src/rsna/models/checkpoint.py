"""Checkpoints: plain types only, and the settings and files that made them."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from rsna.core.artifacts import current_manifest, differences
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import write_then_rename


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    # by way of memory: given a name torch writes that (temporary) name into the archive, and on a full disk its
    # writer fails in words of its own
    buffer = io.BytesIO()
    torch.save(rebuilt(content), buffer)
    with write_then_rename(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def rebuilt(content: Any) -> Any:
    """The same content in containers of its own, equal strings being one object.

    Pickle writes what it met before as a reference to that object. Of a run that was stopped and went on, one half
    comes from a file and shares no objects with the other: its checkpoints would have other bytes for the same content.
    """
    if isinstance(content, str):
        return sys.intern(content)
    if isinstance(content, dict):
        return {rebuilt(key): rebuilt(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)([rebuilt(value) for value in content])
    return content


def load_checkpoint(path: Path, cfg: Config, fold: int, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint's plain types. Raises UserError if it is broken, of another fold, or disagrees with a fact.

    A network that scores images it was trained on would look far better than it is.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; train this fold first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        manifest, found = content["manifest"], content["fold"]
    except Exception as error:  # a broken file fails in as many ways as there are bytes
        raise UserError(f"{path}: not a checkpoint ({type(error).__name__}); delete it and train again") from None
    changes = f"fold: {found} -> {fold}" if found != fold else ""
    changes = changes or differences(manifest, current_manifest(cfg, "train", fold), ignore)
    if changes:
        raise UserError(
            f"{path} was made with other settings or files ({changes}); say them again, or give this run another "
            f"name=, or delete {path.parent}"
        )
    assert isinstance(content, dict)
    return content


def save_config(cfg: Config, path: Path) -> None:
    with write_then_rename(path) as temporary:
        OmegaConf.save(OmegaConf.structured(cfg), temporary)
