"""Speed and memory of each model, and the hours that preset=best takes for the whole challenge.

    python bench/models.py [quick=true] [device=auto] [size=512] [batch_size=32] [images=2048]
                           [encoders=resnet34,timm-tf_efficientnet_lite0] [models=detector,single_box,classifier]

Random weights and made-up images: what they show does not matter for speed. Training: an epoch with loader and
augmentation, after one that warms up; the peer is the network's own rate, the same step on one batch that stays on the
device. Prediction: two views. Memory is that of the GPU, or of this process on a CPU. The projection is for 26,684
images, five folds, 12 epochs and 3,000 test images, without starting up and scoring.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from images import make_images
from our_training import Ours, highest_memory

from rsna.core.command_line import parse
from rsna.core.config import Config
from rsna.core.presets import PRESETS
from rsna.core.validation import parse_weights
from rsna.data.dataset import FoldData, ImageDataset, Samples
from rsna.inference.predictor import run_model
from rsna.inference.tta import parse_transforms
from rsna.models.device import pick_device
from rsna.models.registry import settings_of

N_IMAGES, N_TEST, N_FOLDS = 26_684, 3_000, 5
DEFAULTS = {"size": "512", "batch_size": "32", "images": "2048", "device": "auto", "weights": "none"}
QUICK = {"size": "64", "batch_size": "8", "images": "64", "encoders": "resnet34"}
ENCODERS = "resnet34,timm-tf_efficientnet_lite0"


def measure(cfg: Config, samples: Samples) -> dict[str, float]:
    """Images per second of training, of the network alone and of predicting two views; memory in MB."""
    few = Samples(*(getattr(samples, name)[: cfg.batch_size] for name in Samples.__dataclass_fields__))
    device = pick_device(cfg.device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ours = Ours(cfg, FoldData(samples, few, None))  # type: ignore[arg-type]
    ours.train()
    trained = ours.n_steps * cfg.batch_size
    rates = {"train": trained / ours.epoch(), "network": trained / max(ours.steps(), 1e-9)}
    memory = highest_memory(device)
    model, views = ours.run.model, parse_transforms("plain,hflip", "1.0")
    run_model(cfg, model, ImageDataset(few), views, "")
    start = time.perf_counter()
    run_model(cfg, model, ImageDataset(samples), views, "")
    return {**rates, "predict": len(samples.ids) / (time.perf_counter() - start), "memory": memory}


def challenge_hours(cfg: Config, rates: dict[str, float]) -> float:
    """Hours of training and predicting all folds of one model on the whole challenge."""
    valid = N_IMAGES / N_FOLDS
    epochs = cfg.total_epochs * ((N_IMAGES - valid) / rates["train"] + valid / (2 * rates["predict"]))
    return N_FOLDS * (epochs + (valid + N_TEST) / rates["predict"]) / 3600


def main(words: dict[str, str]) -> None:
    words = DEFAULTS | (QUICK if words.pop("quick", "") == "true" else {}) | words
    n, encoders = int(words.pop("images")), words.pop("encoders", ENCODERS).split(",")
    models = words.pop("models", ",".join(parse_weights(PRESETS["best"]["members"]))).split(",")
    base = parse([f"{key}={value}" for key, value in words.items()])
    device = pick_device(base.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}, {base.size} px, batches of {base.batch_size}, images per second")
    with tempfile.TemporaryDirectory() as folder:
        samples = make_images(Path(folder), n, base.size)
        for encoder in encoders:
            hours = 0.0
            for model in models:
                cfg = parse(
                    [*(f"{k}={v}" for k, v in words.items()), f"encoder={encoder}", f"model={model}"], settings_of
                )
                cfg = replace(cfg, device=str(device))
                rates = measure(cfg, samples)
                hours += challenge_hours(cfg, rates)
                shown = "  ".join(f"{what} {rate:.0f}" for what, rate in rates.items())
                print(f"{encoder} {model}: {shown} MB; whole challenge {challenge_hours(cfg, rates):.2f} h", flush=True)
                print(f"ratio share_of_the_networks_own_rate_{encoder}_{model} {rates['train'] / rates['network']:.3f}")
            print(f"{encoder}: {', '.join(models)} together, projected for the whole challenge: {hours:.1f} h")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
