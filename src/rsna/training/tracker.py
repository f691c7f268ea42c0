"""tracker=tensorboard|wandb|mlflow: send the history of a fold, and pictures of its predictions, to a tracking tool.

A tracker changes no result. If it fails, one line says so, and training continues.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from rsna.core.config import WORKSPACE, Config
from rsna.core.errors import UserError, optional
from rsna.core.files import bytes_hash
from rsna.data.dataset import FoldData, ImageDataset
from rsna.inference.predictor import to_numpy
from rsna.inference.tiles import BLUE, ORANGE, Picture, draw_tile, stack_rows
from rsna.training.loop import Training

REQUIREMENTS = "requirements-track.txt"
PROJECT = "rsna-pneumonia"
PER_ROW, BOXES = 4, 2  # of the sheet: images with an opacity and as many without; predicted boxes on each


@dataclass(frozen=True)
class Sink:
    """The functions that send one epoch to a tracking tool."""

    log: Callable[[dict[str, float], int], Any]
    show: Callable[[Picture, int], Any]  # (H, W, 3), red, green, blue
    close: Callable[[], Any]


def open_tensorboard(cfg: Config, fold: int, settings: dict[str, str], resumed: bool) -> Sink:
    """Event files in the fold's folder: tensorboard --logdir working/<name>."""
    optional("tensorboard", REQUIREMENTS)
    writer = optional("torch.utils.tensorboard", REQUIREMENTS).SummaryWriter(cfg.fold_dir(fold) / "tensorboard")
    writer.add_text("settings", "\n\n".join(f"{key}={value}" for key, value in settings.items()))

    def log(values: dict[str, float], epoch: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, epoch)

    return Sink(log, partial(writer.add_image, "validation", dataformats="HWC"), writer.close)


def open_wandb(cfg: Config, fold: int, settings: dict[str, str], resumed: bool) -> Sink:
    """A run of Weights & Biases; without a network by WANDB_MODE=offline, in the fold's folder."""
    wandb, folder = optional("wandb", REQUIREMENTS), cfg.fold_dir(fold)
    names = {"project": PROJECT, "group": cfg.name, "name": f"{cfg.name}-fold{fold}"}
    earlier = sorted(folder.glob("wandb/*run-*-*"), key=os.path.getmtime) if resumed else []
    own = earlier[-1].name.rpartition("-")[2] if earlier else uuid4().hex[:8]  # wandb ends its folders with the id
    run = wandb.init(**names, dir=str(folder), id=own, resume="allow", config=settings)

    def show(picture: Picture, epoch: int) -> None:
        run.log({"validation": wandb.Image(picture)}, step=epoch)

    return Sink(run.log, show, run.finish)


def open_mlflow(cfg: Config, fold: int, settings: dict[str, str], resumed: bool) -> Sink:
    """A run in MLFLOW_TRACKING_URI, by default the files in working/mlruns."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow advises against files, which need no server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # of 7: many minutes without the server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    files, name = (Path(cfg.working) / "mlruns").absolute().as_uri(), f"{cfg.name}-fold{fold}"
    client = optional("mlflow", REQUIREMENTS).MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", files))
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    folder = bytes_hash(os.fsencode(cfg.fold_dir(fold).absolute()))
    earlier = client.search_runs([experiment], f"tags.folder = '{folder}'", max_results=1) if resumed else []
    own = (earlier[0] if earlier else client.create_run(experiment, run_name=name)).info.run_id
    for key, value in {**settings, "folder": folder}.items():
        client.set_tag(own, key, value)  # a parameter could not change in a second training

    def log(values: dict[str, float], epoch: int) -> None:
        for key, value in values.items():
            client.log_metric(own, key, value, step=epoch)

    def show(picture: Picture, epoch: int) -> None:
        client.log_image(own, picture, f"validation-{epoch}.png")

    return Sink(log, show, partial(client.set_terminated, own))


SINKS: dict[str, Callable[..., Sink]] = {"tensorboard": open_tensorboard, "wandb": open_wandb, "mlflow": open_mlflow}


class Tracker:
    """A sink that may be missing, or fail."""

    def __init__(self, cfg: Config, fold: int, resumed: bool) -> None:
        self.kind = cfg.tracker
        self.sink: Sink | None = None
        if self.kind != "none":
            settings = {key: str(value) for key, value in asdict(cfg).items() if value != ""} | {"revision": revision()}
            self.sink = self.attempt(partial(SINKS[self.kind], cfg, fold, settings, resumed))

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The result of the action; None if it fails, which ends the tracking with one line. Raises UserError."""
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # services fail in many ways, and none is worth losing a night's training
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"tracker={self.kind}: {reason}; training continues without it", flush=True)
            self.sink = None

    def log(self, history: list[dict[str, Any]]) -> None:
        """Send the numbers of the last epoch."""
        if self.sink:
            row = {key: float(value) for key, value in history[-1].items() if key not in ("epoch", "phase")}
            values = {key: value for key, value in row.items() if np.isfinite(value)}
            self.attempt(partial(self.sink.log, values, history[-1]["epoch"]))

    def show(self, run: Training, data: FoldData) -> None:
        """Send a sheet of validation images with the predictions of the network in `run`."""
        if sink := self.sink:
            self.attempt(lambda: sink.show(draw_sheet(run, data)[..., ::-1].copy(), len(run.history)))


@contextmanager
def track(cfg: Config, fold: int, resumed: bool) -> Iterator[Tracker]:
    """A Tracker, closed at the end; resumed: it continues an earlier run. UserError if its package is missing."""
    tracker = Tracker(cfg, fold, resumed)
    try:
        yield tracker
    finally:
        if tracker.sink:
            tracker.attempt(tracker.sink.close)


def revision() -> str:
    """The commit of the code; empty outside a git checkout."""
    words = ["git", "-C", str(WORKSPACE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


@torch.inference_mode()
def draw_sheet(run: Training, data: FoldData) -> Picture:
    """Validation images, those with an opacity on top: true boxes in blue, the most confident predictions in orange."""
    run.model.eval()
    dataset = ImageDataset(data.valid)
    positive = np.array([len(boxes) > 0 for boxes in data.valid.boxes_xyxy])
    sheet: list[list[Picture]] = []
    for rows in (np.flatnonzero(positive)[:PER_ROW], np.flatnonzero(~positive)[:PER_ROW]):
        sheet.append([])
        for row in rows.tolist():
            image = dataset[0, row]["image"]
            boxes, scores, _ = map(to_numpy, run.model.decode(run.model(image[None].to(run.device))))
            best = np.argsort(-scores[0], kind="stable")[:BOXES]
            shown = [(data.valid.boxes_xyxy[row], BLUE), (boxes[0][best] * image.shape[-1], ORANGE)]
            caption = " ".join(f"{score:.2f}" for score in scores[0][best])
            sheet[-1].append(draw_tile(image[0].numpy(), shown, caption, data.valid.ids[row][:12]))
    return stack_rows([row for row in sheet if row])
