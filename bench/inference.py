"""Speed of prediction with ONNX Runtime and torch.compile against plain PyTorch, and whether the boxes are the same.

    python bench/inference.py [quick=true] [device=cpu] [size=512] [batch_size=8] [images=64] [rounds=3]
                              [models=single_box,detector] [encoder=resnet34] [threads=2]

One view of made-up images, random weights with the batch statistics of these images; the network alone, from grey
levels to outputs, since decoding and fusing are the same for all. Rounds alternate; ratios are medians of images per
second to PyTorch's as predict runs it (precision=auto). Needs onnx, onnxscript and onnxruntime (requirements-
bench.txt) for ONNX; torch.compile needs a C++ compiler. ONNX runs in float32, and its boxes are compared at
the ten most confident locations of each image, in pixels of the input.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import torch
from our_training import wait_for
from torch import Tensor, nn

from rsna.core.command_line import parse
from rsna.models.device import mixed_precision, pick_device, pick_precision
from rsna.models.registry import build_model, settings_of

DEFAULTS = {"size": "512", "batch_size": "8", "device": "cpu", "encoder": "resnet34", "weights": "none"}
NAMES = ("logits", "objectness", "boxes")
Run = Callable[[Tensor], list[np.ndarray]]


class Named(nn.Module):
    """The model with its outputs as a tuple, in the order of NAMES, for ONNX."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        return tuple(outputs[name].float() for name in NAMES)


def torch_run(model: nn.Module, device: torch.device, precision: torch.dtype) -> Run:
    @torch.inference_mode()
    def run(images: Tensor) -> list[np.ndarray]:
        with mixed_precision(device, precision):
            found = model(images.to(device))
        return [values.cpu().numpy() for values in found]

    return run


def onnx_run(model: nn.Module, images: Tensor, device: torch.device, threads: int, folder: str) -> Run:
    """Export in float32 with a free number of images, and run where ONNX Runtime has a provider for the device."""
    import onnxruntime

    path = Path(folder) / "model.onnx"
    free = {"images": {0: torch.export.Dim("batch", min=1, max=1024)}}
    torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=free, output_names=list(NAMES), verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
    if not set(wanted) <= set(onnxruntime.get_available_providers()):
        raise RuntimeError(f"this ONNX Runtime has no {wanted[0]}")
    session = onnxruntime.InferenceSession(path, options, providers=wanted)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def backends(words: dict[str, str], images: Tensor, threads: int, folder: str) -> dict[str, Run]:
    """PyTorch as predict runs it, and the others as far as they can be had here."""
    cfg = parse([f"{key}={value}" for key, value in words.items()], settings_of)
    device = pick_device(cfg.device)
    torch.manual_seed(0)
    model = Named(build_model(cfg))
    with torch.no_grad():  # statistics of these images: without them numbers grow from layer to layer
        for _ in range(20):
            model(images)
    model.eval()
    precision = pick_precision(cfg.precision, device)
    found: dict[str, Run] = {}
    try:
        found["onnx"] = onnx_run(model, images, device, threads, folder)
    except Exception as error:  # a peer that is not installed or refuses the model is named, not an end
        print(f"onnx left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    model = model.to(device).to(memory_format=torch.channels_last)
    found = {"pytorch": torch_run(model, device, precision), **found}
    if precision != torch.float32:
        found["pytorch float32"] = torch_run(model, device, torch.float32)
    found["compiled"] = torch_run(torch.compile(model), device, precision)
    return found


def box_shift(ours: list[np.ndarray], theirs: list[np.ndarray], size: int) -> float:
    """Largest difference of a coordinate in pixels, at the ten most confident locations of each image."""
    rows = np.argsort(-ours[1], axis=1)[:, :10, None]
    first, second = (np.take_along_axis(found[2], rows, axis=1) for found in (ours, theirs))
    return float(np.abs(first - second).max() * size)


def seconds_of(run: Run, batches: list[Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    for batch in batches:
        run(batch)
    wait_for(device)
    return time.perf_counter() - start


def compare(words: dict[str, str], n: int, rounds: int, threads: int) -> None:
    size, batch_size, device = int(words["size"]), int(words["batch_size"]), pick_device(words["device"])
    coarse = torch.randint(0, 255, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)
    batches = list(images.split(batch_size))
    with tempfile.TemporaryDirectory() as folder:
        runs = backends(words, batches[0], threads, folder)
        outputs: dict[str, list[np.ndarray]] = {}
        for name in list(runs):
            try:
                outputs[name] = runs[name](batches[0])  # warms up
            except Exception as error:  # as above
                print(f"{name} left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                del runs[name]
        times = [{name: seconds_of(run, batches, device) for name, run in runs.items()} for _ in range(rounds)]
    reference = "pytorch float32" if "pytorch float32" in runs else "pytorch"
    for name in runs:
        rate = n / statistics.median(seconds[name] for seconds in times)
        print(f"{words['model']} {name}: {rate:.1f} images/s")
        if name == "onnx":
            shift = box_shift(outputs[reference], outputs[name], size)
            print(f"{words['model']} {name}: boxes within {shift:.3f} px of {reference}")
        faster = statistics.median(seconds["pytorch"] / seconds[name] for seconds in times)
        if name != "pytorch":
            print(f"ratio images_per_second_of_{name.replace(' ', '_')}_to_pytorch_{words['model']} {faster:.2f}")


def main(words: dict[str, str]) -> None:
    quick = words.pop("quick", "") == "true"
    words = DEFAULTS | ({"size": "128"} if quick else {}) | words
    n, rounds = int(words.pop("images", 16 if quick else 64)), int(words.pop("rounds", 2 if quick else 3))
    threads = int(words.pop("threads", torch.get_num_threads()))
    torch.set_num_threads(threads)
    models = words.pop("models", "single_box" if quick else "single_box,detector").split(",")
    for model in models:
        compare({**words, "model": model}, n, rounds, threads)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
