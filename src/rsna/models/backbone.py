"""The encoder for single-channel images, and its initial weights."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rsna.core.errors import UserError

# mean and standard deviation of ImageNet's grey levels, which pretrained encoders expect; chest radiographs are similar
MEAN, STD = 0.449, 0.226


def normalise(images: Tensor) -> Tensor:
    """Grey levels (B, 1, S, S) uint8 -> float32 of the same shape, normalised for the encoder, on the same device."""
    return (images.float() / 255 - MEAN) / STD


def make_encoder(name: str, weights: str) -> nn.Module:
    """An encoder from segmentation-models-pytorch with one input channel.

    weights: `imagenet` (downloaded, or from the hub's local cache), `none` (random), or a file: a state dict from
    torchvision or of the encoder itself (.pth, .pt, .safetensors), or a checkpoint of this project. RGB weights are
    summed over their channels, which is the same as feeding the image to all three. Raises UserError if the encoder is
    unknown or the weights cannot be had; it never falls back to other weights.
    """
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=1, depth=5, weights=None)
    except KeyError:
        raise UserError(f"encoder={name}: segmentation-models-pytorch has no such encoder") from None
    if weights == "imagenet":
        return download_encoder(name)
    if weights != "none":
        load_weights(encoder, Path(weights))
    return encoder


def download_encoder(name: str) -> nn.Module:
    """An encoder with ImageNet weights. Raises UserError if there are none, or if they cannot be downloaded."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no warning per retry: the error below is enough
    try:
        return smp.encoders.get_encoder(name, in_channels=1, depth=5, weights="imagenet")
    except KeyError:
        raise UserError(f"weights=imagenet: there are none for encoder={name}; set weights=none or a file") from None
    except Exception as error:  # the hub's client raises many types, its own and its HTTP library's
        source = smp.encoders.encoders[name]["pretrained_settings"]["imagenet"]["repo_id"]
        raise UserError(
            f"weights=imagenet could not be fetched ({first_line(error)}); elsewhere download model.safetensors of "
            f"{source} from the Hugging Face hub and set weights=<file>, or train from random weights with weights=none"
        ) from None


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Fill the encoder from a weights file. Raises UserError if the file is not for this encoder."""
    wanted, found = encoder.state_dict(), read_weights(path)
    state = {key: found[key] for key in wanted if key in found}
    for key, value in state.items():
        if value.ndim == 4 and value.shape[1] == 3 and wanted[key].shape[1] == 1:
            state[key] = value.sum(dim=1, keepdim=True)
    wrong = [key for key, value in state.items() if value.shape != wanted[key].shape]
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    if names := (missing + wrong)[:3]:
        raise UserError(f"weights={path}: not weights of this encoder; missing or of another shape: {names}")
    nn.Module.load_state_dict(encoder, state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file: name, without the prefix `encoder.`, -> tensor. Raises UserError if it cannot be read.

    No code in the file is executed.
    """
    if not path.is_file():
        raise UserError(f"weights={path}: no such file; set another, or weights=none for random weights")
    try:
        tensors = path.suffix == ".safetensors"
        if zipfile.is_zipfile(path):  # torch writes uncompressed archives; a compressed one could fill the memory
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > 2 * path.stat().st_size:
                    raise ValueError("compressed")
        # weights_only: torch refuses a pickle that would run code
        content: Any = load_file(path) if tensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or malicious file can raise anything
        raise UserError(f"weights={path}: cannot be read as plain tensors ({first_line(error)})") from None
    content = content.get("model", content) if isinstance(content, dict) else {}
    return {str(key).removeprefix("encoder."): value for key, value in content.items() if isinstance(value, Tensor)}


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
