"""space= of tune: which settings vary and in which range, and the settings of a trial."""

import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from operator import methodcaller
from typing import Any

from rsna.core.command_line import command, parse
from rsna.core.config import AugmentSettings, Config, FusionSettings, PredictSettings, TrainSettings, TuneSettings
from rsna.core.errors import UserError
from rsna.models.registry import find, settings_of

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.(?!\.)({NUMBER})(:log)?", re.IGNORECASE)
TUNABLE = (TrainSettings, AugmentSettings, PredictSettings, FusionSettings)
Suggest = Callable[[Any], Any]  # an optuna.Trial -> the value of a setting


def parse_space(cfg: Config) -> dict[str, Suggest]:
    """`lr=1e-4..3e-3:log epochs=4..8 tta=plain|plain,hflip` -> how a trial gets each value. Raises UserError."""
    if cfg.members or cfg.runs:
        raise UserError(f"{cfg.name}: fuses other runs; tune each of them by itself, such as preset=detector")
    if not find(cfg.model)[0].predicts_boxes:
        raise UserError(f"model={cfg.model}: predicts no boxes, so it has no mAP to search for; tune another model")
    types: dict[str, Any] = {f.name: f.type for kind in (*TUNABLE, settings_of(cfg.model)) for f in fields(kind)}
    space: dict[str, Suggest] = {}
    for word in split_words(cfg.space):
        key, _, text = word.partition("=")
        found, choices = RANGE.fullmatch(text), text.split("|")
        if key not in types:
            known = f"not a setting of training, augmentation, prediction, fusion or model={cfg.model}"
            raise UserError(f"space: {word}: {known}; help all lists them")
        if key in space:
            raise UserError(f"space: {word}: {key} is there twice; remove one")
        if found and types[key] in (int, float):
            low, high = parse_range(word, types[key], found)
            suggest = "suggest_int" if types[key] is int else "suggest_float"
            space[key] = methodcaller(suggest, key, low, high, log=bool(found[3]))
            choices = [str(low), str(high)]
        elif len({*choices}) > 1:
            space[key] = methodcaller("suggest_categorical", key, choices)
        else:
            raise UserError(f"space: {word}: must be {key}=low..high, {key}=low..high:log or {key}=a|b|c")
        for value in choices:
            trial_config(cfg, "trial", {key: value})  # raises UserError for a value out of range
    if not space:
        raise UserError('space=: must not be empty, such as space="lr=1e-4..3e-3:log encoder_lr=.1..1"')
    return space


def split_words(space: str) -> list[str]:
    try:
        return shlex.split(space)
    except ValueError as error:
        raise UserError(f"space={space}: {error}; close or remove the quotation mark") from None


def parse_range(word: str, kind: type, found: re.Match[str]) -> tuple[Any, Any]:
    """The limits of `low..high`, as numbers of this type. Raises UserError."""
    low, high = (float(number) for number in found.group(1, 2))
    if low >= high:
        raise UserError(f"space: {word}: the first number must be below the second")
    if found[3] and low <= 0:
        raise UserError(f"space: {word}: a range with :log must start above 0")
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise UserError(f"space: {word}: takes whole numbers")
    return kind(low), kind(high)


def trial_config(cfg: Config, name: str, values: dict[str, Any], **more: str) -> Config:
    """The config of the search with the values of a trial."""
    changes = {"name": name, "working": str(cfg.run_dir / "trials"), **more, **values}
    return parse(words_of(cfg, **{key: str(value) for key, value in changes.items()}), settings_of)


def words_of(cfg: Config, **changes: str) -> list[str]:
    """The words of a command with these settings, without those of the search."""
    usual = TuneSettings()
    return shlex.split(command(replace(cfg, space=usual.space, trials=usual.trials), "train", **changes))[2:]
