"""What a network consists of, and what each phase trains, as text."""

from collections.abc import Callable
from typing import Any

import torch

from rsna.core.config import Config
from rsna.models.backbone import normalise
from rsna.models.protocol import DetectionModel
from rsna.models.registry import build_model
from rsna.training.optim import check_encoder_stages, freeze, lrs_by_stage


def describe_model(cfg: Config, summary: Callable[..., Any]) -> str:
    """Every layer with its shapes and parameters, what the head gets from the encoder, and the phases.

    summary: torchinfo's. Raises UserError for phases that the encoder cannot have.
    """
    model = build_model(cfg, weights="none").eval()
    freeze(model, cfg.phase_list[0].first_stage)
    columns = ["input_size", "output_size", "num_params", "trainable"]
    image = torch.zeros(2, 1, cfg.size, cfg.size, dtype=torch.uint8)
    layers = summary(model, input_data=[image], col_names=columns, depth=6, verbose=0)
    return "\n".join([str(layers), *feature_lines(model, image), *phase_lines(cfg, model)])


def feature_lines(model: DetectionModel, image: torch.Tensor) -> list[str]:
    """What the head gets from the encoder."""
    with torch.inference_mode():
        features = model.encoder(normalise(image))
    shapes = ", ".join(" x ".join(map(str, level.shape[1:])) for level in features[-3:])
    return [
        f"the encoder's last maps (channels x rows x columns): {shapes}",
        f"the last one flattened: {features[-1][0].numel():,} numbers",
    ]


def phase_lines(cfg: Config, model: DetectionModel) -> list[str]:
    """What trains in each phase, at which learning rates."""
    lines = []
    total = sum(parameter.numel() for parameter in model.parameters())
    encoder_lr = 1.0 if cfg.weights == "none" else cfg.encoder_lr
    for number, phase in enumerate(cfg.phase_list, 1):
        check_encoder_stages(model.encoder, phase)
        freeze(model, phase.first_stage)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        lrs = lrs_by_stage(phase.lrs, encoder_lr)
        shown = ", ".join(f"{lr:g}" for lr in dict.fromkeys(lrs[phase.first_stage :]))
        lines.append(
            f"phase {number}: {phase.part}, {phase.epochs} epochs, {phase.schedule}, "
            f"{trained:,} of {total:,} parameters train, peak learning rates from input to head {shown}"
        )
    return lines
