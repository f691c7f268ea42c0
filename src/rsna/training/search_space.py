"""space= of tune: which settings vary and how, and the settings of a trial."""

import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from operator import methodcaller
from typing import Any

from rsna.core.command_line import command, parse
from rsna.core.config import AugmentSettings, Config, FusionSettings, PredictSettings, TrainSettings, TuneSettings
from rsna.core.errors import UserError
from rsna.models.registry import settings_of

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
TUNABLE = (TrainSettings, AugmentSettings, PredictSettings, FusionSettings)
Suggest = Callable[[Any], Any]  # an optuna.Trial -> the value of a setting


def parse_space(cfg: Config) -> dict[str, Suggest]:
    """`lr=1e-4..3e-3:log epochs=4..8 tta=plain|plain,hflip` -> how a trial gets each. Raises UserError."""
    if cfg.members or cfg.runs:
        raise UserError(f"{cfg.name}: fuses other runs; tune each of them by its own, such as model=detector")
    types: dict[str, Any] = {f.name: f.type for kind in (*TUNABLE, settings_of(cfg.model)) for f in fields(kind)}
    space: dict[str, Suggest] = {}
    for word in shlex.split(cfg.space):
        key, _, text = word.partition("=")
        found, choices = RANGE.fullmatch(text), text.split("|")
        if key not in types:
            known = f"not a setting of training or prediction with model={cfg.model}"
            raise UserError(f"space: {word}: {known}; help all lists them")
        if found and types[key] in (int, float) and float(found[1]) < float(found[2]):
            low, high = (types[key](float(number)) for number in found.group(1, 2))
            suggest = "suggest_int" if types[key] is int else "suggest_float"
            space[key] = methodcaller(suggest, key, low, high, log=bool(found[3]))
            choices = [str(low), str(high)]
        elif len(choices) > 1:
            space[key] = methodcaller("suggest_categorical", key, choices)
        else:
            raise UserError(f"space: {word}: must be {key}=low..high, {key}=low..high:log or {key}=a|b|c")
        for value in choices:
            trial_config(cfg, "trial", {key: value})  # which refuses what is out of range
    if not space:
        raise UserError('space=: must not be empty, such as space="lr=1e-4..3e-3:log encoder_lr=.1..1"')
    return space


def trial_config(cfg: Config, name: str, values: dict[str, Any], **more: str) -> Config:
    """The settings of the search with those of a trial."""
    changes = {"name": name, "working": str(cfg.run_dir / "trials"), **more, **values}
    return parse(words_of(cfg, **{key: str(value) for key, value in changes.items()}), settings_of)


def words_of(cfg: Config, **changes: str) -> list[str]:
    """The words of a command with these settings, but for those of the search."""
    usual = TuneSettings()
    return shlex.split(command(replace(cfg, space=usual.space, trials=usual.trials), "train", **changes))[2:]
