"""The available models: `model=<name>` is the class that the file <name>.py in this folder registers."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsna.core.config import Config
from rsna.core.errors import UserError

if TYPE_CHECKING:
    from rsna.models.protocol import DetectionModel

NO_MODELS = {"registry", "protocol", "backbone", "pyramid", "checkpoint", "device"}  # other modules in this folder
REGISTERED: dict[str, tuple[Any, type]] = {}


def register(name: str, settings: type) -> Callable[[type], type]:
    """A decorator for the class of `model=<name>`; settings: a dataclass whose fields are `core.config.setting`."""

    def remember(model: type) -> type:
        REGISTERED[name] = (model, settings)
        return model

    return remember


def names() -> list[str]:
    """The sorted names of all models: the files in this folder, and what other modules registered."""
    files = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")}
    return sorted(files - NO_MODELS | set(REGISTERED))


def check_name(name: str) -> None:
    """Raise UserError if there is no such model."""
    if name not in names():
        raise UserError(f"model={name}: there is no such model; there are {', '.join(names())}")


def find(name: str) -> tuple[Any, type]:
    """The class of a model and the dataclass of its settings. Raises UserError for an unknown name."""
    check_name(name)
    if name not in REGISTERED:
        importlib.import_module(f"{__package__}.{name}")
    if name not in REGISTERED:
        raise UserError(f"{__package__}.{name} registers no model of this name")
    return REGISTERED[name]


def settings_of(name: str) -> type:
    """The dataclass of a model's own settings. Raises UserError for an unknown name."""
    return find(name)[1]


def build_model(cfg: Config, weights: str | None = None) -> "DetectionModel":
    """The network that the config asks for; `weights` overrides cfg.weights, the encoder's initial weights."""
    from rsna.models.backbone import make_encoder  # PyTorch takes seconds to import

    model, settings = find(cfg.model)
    encoder = make_encoder(cfg.encoder, weights or cfg.weights)
    return model(encoder, cfg.size, cfg.num_classes, settings(**cfg.model_settings))
