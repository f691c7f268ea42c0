"""What a fold saves after each epoch, and how training resumes from it."""

from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import content_hash, fits
from rsna.core.tables import read_table, write_table
from rsna.models.checkpoint import load_checkpoint, save_checkpoint
from rsna.training.loop import Training

LAST_PT = {"best": str, "dtype": str, "history": [{"mAP": float, "valid_loss": float}]}  # besides the state dicts


def load_saved(cfg: Config, fold: int) -> dict[str, Any] | None:
    """The content of last.pt; None if there is none, or if its best.pt is missing or was changed.

    Raises UserError as load_checkpoint does, and if the content is incomplete.
    """
    last, best = (cfg.fold_dir(fold) / f"{name}.pt" for name in ("last", "best"))
    saved = load_checkpoint(last, cfg, fold) if last.is_file() else None
    if saved and not (fits(saved, LAST_PT) and 0 < len(saved["history"]) <= cfg.total_epochs):
        again = command(cfg, "train", fold=str(fold))
        raise UserError(f"{last}: incomplete, so training cannot resume from it; delete it and run: {again}")
    # before the last epoch best.pt may be newer than last.pt: if training was killed between writing the two, the
    # epoch is trained again
    changed = saved and len(saved["history"]) == cfg.total_epochs and saved["best"] != content_hash(best)
    if saved and (changed or not best.is_file()):
        print(f"fold {fold}: starts over, since {best} is missing or was changed, and with it the best epoch so far")
        return None
    return saved


def resume(cfg: Config, fold: int, run: Training, saved: dict[str, Any]) -> None:
    """Load the result of load_saved into `run`. Raises UserError if it does not fit."""
    try:
        run.load(saved)
    except Exception as error:  # a damaged checkpoint can raise anything
        reason = f"{cfg.fold_dir(fold) / 'last.pt'}: cannot be resumed from ({type(error).__name__})"
        raise UserError(f"{reason}; delete it and run: {command(cfg, 'train', fold=str(fold))}") from None


def save_epoch(folder: Path, run: Training, about: dict[str, Any]) -> None:
    """Write best.pt if the last epoch is the best so far, then last.pt and history.csv. about: further entries."""
    head = {**about, "epoch": len(run.history)}
    if rank(run.history[-1]) == max(map(rank, run.history)):
        save_checkpoint({**head, "model": run.model.state_dict()}, folder / "best.pt")
    save_checkpoint({**head, **run.state(), "best": content_hash(folder / "best.pt")}, folder / "last.pt")
    write_table(pd.DataFrame(run.history), folder / "history.csv")


def note_seconds(path: Path, epoch: int, seconds: float) -> None:
    """Append an epoch's duration to a table; history.csv does not have it, so that it is reproducible to the byte."""
    table = pd.DataFrame({"epoch": [epoch], "seconds": [round(seconds, 3)]})
    if path.is_file() and epoch > 1:
        noted = read_table(path, ["epoch", "seconds"])
        table = pd.concat([noted[noted["epoch"] < epoch], table])
    write_table(table, path)


def rank(scores: dict[str, Any]) -> tuple[float, float]:
    """The best epoch has the highest rank: the highest validation mAP; the lowest loss if tied, or without boxes."""
    return 0.0 if isnan(scores["mAP"]) else scores["mAP"], -scores["valid_loss"]
