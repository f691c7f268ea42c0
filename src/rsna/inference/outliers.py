"""Detect images unlike the training images, by the Mahalanobis distance of their embeddings.

The embedding is the mean of each feature map of the encoder, at all levels, as in Lee et al. 2018 (arXiv:1807.03888).
The covariance is estimated as in Ledoit and Wolf (2004), which also works with fewer images than features.
"""

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from rsna.core.artifacts import current_manifest, is_current, record, withdraw
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.files import write_then_rename
from rsna.core.locks import file_lock
from rsna.data.boxes import Floats
from rsna.data.cache import read_index
from rsna.data.competition import read_folds
from rsna.data.dataset import ImageDataset, make_samples
from rsna.data.loader import make_loader
from rsna.inference.predictor import load_model, to_numpy
from rsna.models.backbone import normalise
from rsna.models.device import explain_failures, pick_device

Reference = dict[str, Floats]  # the result of fit
FALSE_ALARMS = 0.01  # fraction of images like the training images that may be flagged
MOST_IMAGES = 4000  # at most this many training and held-out images are read; more would change little


@torch.inference_mode()
def embed(cfg: Config, dataset: ImageDataset) -> Floats:
    """Embeddings (n, d) of images, from the network of the run's first fold."""
    device = pick_device(cfg.device)
    encoder = load_model(cfg, cfg.fold_list[0]).encoder.to(device).eval()
    with explain_failures(cfg):
        batches = (batch["image"].to(device) for batch in make_loader(dataset, 2 * cfg.batch_size, 0, device))
        levels = ([level.mean((2, 3)) for level in encoder(normalise(images))[1:]] for images in batches)
        return np.concatenate([to_numpy(torch.cat(means, dim=1)) for means in levels])


def fit(train: Floats, held_out: Floats) -> Reference:
    """From embeddings (n, d): mean (d,), whitening (d, d), threshold, false_alarms, held_out (number of images).

    The threshold is the k-th smallest distance of m held-out images: a fraction false_alarms = 1 - k / (m + 1) of
    further images like them is expected to exceed it.
    """
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    covariance = LedoitWolf(assume_centered=True).fit((train - mean) / scale)
    found = {"mean": mean, "whitening": np.linalg.cholesky(covariance.precision_) / scale[:, None]}
    far = np.sort(distances(found, held_out))
    k = min(len(far), int(np.ceil((1 - FALSE_ALARMS) * (len(far) + 1))))
    numbers = {"threshold": far[k - 1], "false_alarms": 1 - k / (len(far) + 1), "held_out": len(far)}
    return found | {name: np.asarray(value, dtype=float) for name, value in numbers.items()}


def distances(reference: Reference, embeddings: Floats) -> Floats:
    """Mahalanobis distances (n,) of embeddings (n, d)."""
    return np.asarray(np.linalg.norm((embeddings - reference["mean"]) @ reference["whitening"], axis=1))


def load_reference(cfg: Config) -> Reference:
    """Read outliers.npz, after making it from the cached images of the first fused run unless it is current."""
    path, first = cfg.run_dir / "outliers.npz", cfg.fused_runs[0]
    if not is_current(cfg, "infer"):  # asked first: a finished run may be read-only, and then has no lock
        with file_lock(cfg.run_dir, wait=True):
            made = current_manifest(cfg, "infer")
            reference = fit(*(embed(first, images) for images in both_sides(first)))
            withdraw(cfg, "infer")
            with write_then_rename(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **reference)  # type: ignore[arg-type]
            record(cfg, "infer", made=made)
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def both_sides(cfg: Config) -> list[ImageDataset]:
    """The training and the held-out images of the first fold, shuffled. Raises UserError if they are not cached."""
    folds, index = read_folds(cfg.folds_csv, command(cfg, "make_folds")), read_index(cfg.cache_dir, cfg.size, "train")
    index = index[index["status"] == "ok"]
    folds = folds[folds["patientId"].isin(index["patientId"])].sample(frac=1, random_state=cfg.seed)
    held_out = folds["fold"] == cfg.fold_list[0]
    sides = [folds.loc[side, "patientId"].iloc[:MOST_IMAGES].reset_index(drop=True) for side in (~held_out, held_out)]
    return [ImageDataset(make_samples(ids, index, cfg.cache_dir / "train")) for ids in sides]
