"""Print every layer of the network with its shapes and parameters, and what each phase trains.

python src/show_model.py [preset=...] [head=...] [phases=...] [size=...]
"""

import torch

from rsna.startup import run
from rsna.core.config import Config
from rsna.models.backbone import normalise
from rsna.models.registry import build_model
from rsna.reporting.montage import optional
from rsna.training.optim import check_stages, freeze, rates_by_stage


def main(cfg: Config) -> None:
    model = build_model(cfg, weights="none").eval()
    freeze(model, cfg.phase_list[0].first_stage)
    columns = ["input_size", "output_size", "num_params", "trainable"]
    image = torch.zeros(2, 1, cfg.size, cfg.size, dtype=torch.uint8)
    print(optional("torchinfo").summary(model, input_data=[image], col_names=columns, depth=6, verbose=0))
    print_features(model, image)
    print_phases(cfg, model)


def print_features(model: torch.nn.Module, image: torch.Tensor) -> None:
    """What the head gets from the encoder."""
    with torch.inference_mode():
        features = model.get_submodule("encoder")(normalise(image))
    shapes = ", ".join(" x ".join(map(str, level.shape[1:])) for level in features[-3:])
    print(f"the encoder's last maps (channels x rows x columns): {shapes}")
    print(f"the last one flattened: {features[-1][0].numel():,} numbers")


def print_phases(cfg: Config, model: torch.nn.Module) -> None:
    """What trains in each phase, at which rates. Raises UserError for phases that the encoder cannot have."""
    total = sum(parameter.numel() for parameter in model.parameters())
    share = 1.0 if cfg.weights == "none" else cfg.encoder_lr
    for number, phase in enumerate(cfg.phase_list, 1):
        check_stages(model.get_submodule("encoder"), phase)
        freeze(model, phase.first_stage)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        rates = rates_by_stage(phase.rates, share)
        shown = ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates[phase.first_stage :]))
        print(
            f"phase {number}: {phase.part}, {phase.epochs} epochs, {phase.schedule}, "
            f"{trained:,} of {total:,} parameters train, peak rates from input to head {shown}"
        )


if __name__ == "__main__":
    run(main)
