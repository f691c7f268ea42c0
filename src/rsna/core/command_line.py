"""`key=value` words into a checked Config, a Config back into the command to type, and what `help` prints."""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsna.core.config import FILE_OR_WORD, GROUPS, NAMES, WORKSPACE, Config, InferSettings
from rsna.core.errors import UserError
from rsna.core.presets import PRESETS, preset_words
from rsna.core.validation import check, parse_weights

PATHS = ("root", "input", "folds", "working", "submissions", "predictions", "labels", "test_labels", "output", "wheels")
# fmt: off
# names that settings had in earlier versions
RENAMED = {
    "head": "model", "classes": "num_classes", "clip": "grad_clip",
    "zoom": "scale", "light": "brightness_contrast",
    "fusion_iou": "wbf_iou", "elsewhere": "missing_weight",
}
# fmt: on
OF_INFER = {f.name for f in fields(InferSettings)}  # which mean nothing to other commands
SettingsOf = Callable[[str], type]  # the name of a model -> the dataclass of its settings


def parse(words: list[str], settings_of: SettingsOf | None = None) -> Config:
    """Turn `key=value` words into a checked Config.

    settings_of: registry.settings_of, asked about words that are no setting of Config: the model's own. Without it
    there are none. Raises UserError that says what to type instead.
    """
    given = dict(split_word(word) for word in words)
    preset = preset_words(given.get("preset", ""))
    if {**preset, **given}.get("phases") and (unused := {"epochs", "lr"} & set(given)):
        raise UserError(f"{min(unused)}= has no effect here: phases= sets epochs and rates; change or omit phases=")
    given |= {key: absolute(given[key]) for key in PATHS if given.get(key)}
    for key, choices in FILE_OR_WORD.items():
        if given.get(key, choices[0]) not in choices:
            given[key] = absolute(given[key])
            if not Path(given[key]).is_file():
                usual = " or ".join(f"{key}={word}" for word in choices)
                raise UserError(f"{key}={given[key]}: no such file; or use {usual}")
    words_of = {**usual_words(preset, given.get("engine")), **given}
    config = fill(Config, {key: value for key, value in words_of.items() if key in NAMES})
    if others := {key: value for key, value in words_of.items() if key not in NAMES}:
        own = parse_model_settings(config.model, others, settings_of, preset)
        config = replace(config, model_settings=own)
    check(vars(config))
    return replace(config, member_configs=parse_members(config, given, settings_of))


def parse_members(cfg: Config, given: dict[str, str], settings_of: SettingsOf | None) -> list[Config]:
    """The Config of each member: its preset and the given words, but with a name of its own."""
    members = list(parse_weights(cfg.members))
    for word in ({"runs", "model"} & given.keys()) if members else ():
        raise UserError(f"{word}={given[word]}: has no meaning with members={cfg.members}; set members= or {word}=")
    if any("members" in preset_words(member) for member in members):
        raise UserError(f"members={cfg.members}: must be presets of single runs")
    presets = [preset for preset in cfg.preset.split(",") if preset and "members" not in preset_words(preset)]
    found = []
    for member in members:
        own = {"preset": ",".join([*presets, member]), "name": f"{cfg.name}_{member}", "members": ""}
        found.append(parse([f"{key}={value}" for key, value in (given | own).items()], settings_of))
    return found


def usual_words(preset: dict[str, str], engine: str | None) -> dict[str, str]:
    """A preset's words, and those that follow from the engine: a cluster takes as many folds as it has room for."""
    return {"jobs": "-1", **preset} if engine == "ray" else preset


def absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())  # that of pathlib fails for a ~user who does not exist


def parse_model_settings(
    model: str, given: dict[str, str], settings_of: SettingsOf | None, preset: dict[str, str]
) -> dict[str, Any]:
    """The given settings of a model that differ from its defaults, or that the preset sets, converted to their types.

    Raises UserError for unknown ones.
    """
    kind = settings_of(model) if settings_of else None
    names = [f.name for f in fields(kind)] if kind else []
    for key, value in given.items():
        if key not in names:
            close = difflib.get_close_matches(key, [*names, *NAMES], n=1)
            name = RENAMED.get(key) or (close[0] if close else "")
            remedy = f"did you mean {name}?" if name else "'help all' lists the settings"
            raise UserError(f"{key}={value}: there is no setting '{key}'; {remedy}")
    assert kind is not None
    filled = fill(kind, given)
    for f in fields(kind):
        low, high = f.metadata["limits"] or (0, 0)
        if f.metadata["limits"] and not low <= getattr(filled, f.name) <= high:
            raise UserError(f"{f.name}={getattr(filled, f.name)}: must be from {low:g} to {high:g}")
    values = {f.name: (getattr(filled, f.name), f.default) for f in fields(kind)}
    return {name: value for name, (value, default) in values.items() if value != default or name in preset}


def fill(kind: type, given: dict[str, str]) -> Any:
    """A dataclass with these values, converted to the types of its fields. Raises UserError."""
    schema = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)
    for key, value in given.items():
        try:
            OmegaConf.update(schema, key, re.sub(r"(\\*)\$\{", r"\1\1\\${", value))  # ${x} is part of a name
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value}: {explain_value(kind, key, str(error))}") from None
    try:
        return OmegaConf.to_object(schema)
    except OmegaConfBaseException as error:
        raise UserError(f"settings: {str(error).splitlines()[0]}") from None


def explain_value(kind: type, key: str, reason: str) -> str:
    type_of = next(f.type for f in fields(kind) if f.name == key)
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return f"{key} is {names[type_of]}" if type_of in names else reason.splitlines()[0]


def split_word(word: str) -> tuple[str, str]:
    """`key=value` -> (key, value). Raises UserError for any other word."""
    key, equals, value = word.partition("=")
    if not equals or not key.isidentifier():
        raise UserError(f"'{word}': settings are written key=value; 'help' lists them")
    return key, value


def command(cfg: Config, name: str, /, **changes: str) -> str:
    """What to type to run a command with these very settings, but for `changes`."""
    words = {"preset": cfg.preset} if cfg.preset else {}
    if cfg.root not in (str(WORKSPACE), preset_words(cfg.preset).get("root")):
        words["root"] = cfg.root
    words |= changed_settings(cfg)
    # a word may repeat a default of this run, and differ from that of a member
    for member in cfg.member_configs:
        own = {"name", "preset", "fold", "members"}
        words |= {key: value for key, value in changed_settings(member).items() if key not in own}
    words |= changes
    if name != "infer":
        words = {key: value for key, value in words.items() if key not in OF_INFER}
    return shlex.join(["./run.sh", name, *(f"{key}={value}" for key, value in words.items())])


def changed_settings(cfg: Config) -> dict[str, Any]:
    """The settings that differ from the presets and the defaults."""
    preset = preset_words(cfg.preset)
    words = {**usual_words(preset, cfg.engine), "root": cfg.root}
    usual = fill(Config, {key: value for key, value in words.items() if key in NAMES})
    cfg = replace(cfg, **cfg.typed)
    differing = {key: getattr(cfg, key) for key in NAMES if getattr(cfg, key) != getattr(usual, key)}
    own = {key: value for key, value in cfg.model_settings.items() if str(value).lower() != preset.get(key)}
    return differing | own


def help_text(models: Mapping[str, type] | None = None) -> str:
    """The common settings; or, given the settings of each model by its name, all of them."""
    everything = models is not None
    lines = ["settings, written key=value" + ("" if everything else "; 'help all' lists every one") + ":"]
    for group in GROUPS:
        lines += [line_of(f) for f in fields(group) if everything or f.metadata["common"]]
    for name, group in (models or {}).items():
        lines += [f"of model={name}:", *(line_of(f) for f in fields(group))]
    for name, overrides in PRESETS.items() if everything else ():
        words = " ".join(f"{key}={value}" for key, value in overrides.items())
        lines.append(f"preset={name} is: {words}".replace(str(WORKSPACE), "<workspace>"))
    return "\n".join(lines)


def line_of(field: Field[Any]) -> str:
    """`  lr=0.001     peak learning rate ...`"""
    default = str(field.default).replace(str(WORKSPACE), "<workspace>") or "''"
    return f"  {field.name + '=' + default:<36} {field.metadata['meaning']}"
