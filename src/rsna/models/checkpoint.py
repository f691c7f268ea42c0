"""Checkpoints: plain types only, and the settings and files that made them."""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from rsna.core.config import (
    AugmentSettings,
    CacheSettings,
    ComputeSettings,
    Config,
    FoldSettings,
    ModelSettings,
    SeedSettings,
    TrainSettings,
    command,
)
from rsna.core.errors import UserError
from rsna.core.files import content_hash, write_then_rename
from rsna.core.stamps import difference
from rsna.data.cache import read_index
from rsna.data.competition import LABELS_CSV
from rsna.data.letterbox import GEOMETRY_COLUMNS


def network_facts(cfg: Config) -> dict[str, Any]:
    """What must agree between a trained network and whoever uses it: not where its encoder started, nor the precision.

    Raises UserError if there are no folds.
    """
    if not cfg.folds_csv.is_file():
        raise UserError(f"{cfg.folds_csv}: no such file; run: {command(cfg, 'make_folds')}")
    settings = cfg.only(
        FoldSettings, SeedSettings, CacheSettings, ModelSettings, ComputeSettings, TrainSettings, AugmentSettings
    )
    del settings["weights"], settings["precision"]
    return settings | {"folds.csv": content_hash(cfg.folds_csv)}


def training_facts(cfg: Config) -> dict[str, Any]:
    """All that a trained fold depends on; stands in its checkpoints."""
    index = read_index(cfg.cache_dir, cfg.size)
    images = index.loc[index["split"] == "train", ["patientId", "status", *GEOMETRY_COLUMNS, "source_hash"]]
    start = cfg.weights if cfg.weights in ("none", "imagenet") else f"file {content_hash(Path(cfg.weights))}"
    return network_facts(cfg) | {
        "weights": start,
        "precision": cfg.precision,
        LABELS_CSV: content_hash(Path(cfg.input) / LABELS_CSV),
        "cached images": hashlib.sha256(images.to_csv(index=False).encode()).hexdigest()[:16],
    }


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


def load_checkpoint(path: Path, facts: dict[str, Any], fold: int) -> dict[str, Any]:
    """Read a checkpoint's plain types. Raises UserError if it is broken, of another fold, or disagrees with a fact.

    A network that scores images it was trained on would look far better than it is.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; train this fold first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        # a checkpoint from before there was a choice of precision does not speak of it
        made_from = {"precision": "auto"} | content["made_from"] | {"fold": content["fold"]}
    except Exception as error:  # a broken file fails in as many ways as there are bytes
        raise UserError(f"{path}: not a checkpoint ({type(error).__name__}); delete it and train again") from None
    wanted = facts | {"fold": fold}
    changes = difference({key: made_from.get(key) for key in wanted}, wanted)
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
