"""Provenance: what each command makes, from which settings and files, and whether that is still current.

The table of commands is in core/stages.py. Next to its outputs, a command writes a manifest, a JSON file with its
settings and the content hashes of its inputs and outputs. Paths and file times do not matter: a workspace that was
moved, copied or unzipped is still current, and so are files that another machine made from the same inputs.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from rsna.core.command_line import command
from rsna.core.config import FILE_OR_WORD, Config, FusionSettings
from rsna.core.errors import UserError
from rsna.core.files import ABSENT, read_json, write_json
from rsna.core.sources import changed_source, hash_of
from rsna.core.stages import STAGES, TEST_IMAGES, TRAIN_IMAGES, files_of, fill, names_file
from rsna.core.validation import check, parse_weights

Manifest = dict[str, Any]
# allowed (type in a manifest, type of the setting) if they differ; box_scale was a number in earlier versions
NUMBERS = ((int, float), (float, str))


def manifest_path(cfg: Config, name: str, fold: int | None = None) -> Path:
    return Path(fill(STAGES[name].manifest, cfg, fold))


def current_manifest(cfg: Config, name: str, fold: int | None = None) -> Manifest:
    """The manifest that the command would write now, without outputs: command, version, settings, hashes of inputs."""
    stage = STAGES[name]
    settings = cfg.only(*stage.settings)
    for key in FILE_OR_WORD.keys() & settings:
        if names_file(cfg, key):
            settings[key] = "a file"  # the hash of its content is among the inputs
    if FusionSettings in stage.settings:
        settings["fold_list"] = cfg.fold_list
    inputs = hash_inputs(cfg, name, fold)
    content = {"command": name, "version": stage.version, "settings": settings, "inputs": inputs}
    return json.loads(json.dumps(content))  # with the types that it has when read from the file


def hash_inputs(cfg: Config, name: str, fold: int | None = None) -> dict[str, str]:
    """Name of each input -> content hash. Raises UserError if a DICOM has changed since it was cached."""
    cached = [template for template in (TRAIN_IMAGES, TEST_IMAGES) if template in STAGES[name].inputs]
    for split in (template.partition("#")[2] for template in cached):
        if changed := changed_source(cfg.cache_dir, Path(cfg.input) / f"stage_2_{split}_images", split):
            raise UserError(
                f"{changed}: not the file that was cached; restore it, or run: {command(cfg, 'cache_images')}"
            )
    return {key: hash_of(path) for key, path in files_of(STAGES[name].inputs, cfg, fold).items()}


def is_current(cfg: Config, name: str, fold: int | None = None) -> bool:
    """Whether all outputs exist, unchanged, and were made from these settings and inputs, which are current too."""
    path = manifest_path(cfg, name, fold)
    if not path.is_file():
        return False
    found = read_manifest(path, command(cfg, name))
    outputs = files_of(STAGES[name].outputs, cfg, fold)
    complete = all(found["outputs"].get(key) == hash_of(output) for key, output in outputs.items())
    if not complete or differences(found, current_manifest(cfg, name, fold)):
        return False
    try:
        require_upstream(with_settings(cfg, found), name, fold)
    except UserError:
        return False
    return True


def withdraw(cfg: Config, name: str, fold: int | None = None) -> None:
    """Remove the manifest before outputs are replaced, so that nothing looks current if the command is then killed."""
    manifest_path(cfg, name, fold).unlink(missing_ok=True)


def record(cfg: Config, name: str, fold: int | None = None, made: Manifest | None = None, **results: Any) -> None:
    """Write the manifest of a finished command, whose outputs are in place.

    made: current_manifest as of the start, in case inputs have changed since; results: further entries.
    """
    paths = files_of(STAGES[name].outputs, cfg, fold)
    outputs = {key: hash_of(path) for key, path in paths.items() if path.is_file()}
    content = {**(made or current_manifest(cfg, name, fold)), "outputs": outputs, **results}
    write_json(content, manifest_path(cfg, name, fold))


def require(
    cfg: Config, name: str, fold: int | None = None, settings: bool = False, ignore: Iterable[str] = ()
) -> Manifest:
    """The manifest of a command whose outputs are about to be read, after checking it and everything upstream.

    Raises UserError, with the command to run, if the command has not finished, or an output or input was changed since
    (a file that is gone is not compared). settings: also compare the settings with cfg, except for those in `ignore`;
    otherwise the settings are taken from the manifest.
    """
    path, only = manifest_path(cfg, name, fold), {} if fold is None else {"fold": str(fold)}
    rebuild, remedy = command(cfg, name, **only), fill(STAGES[name].remedy, cfg, fold)
    if not path.is_file():
        raise UserError(f"{path}: no such file, so {name} has not finished; run: {rebuild}")
    found = read_manifest(path, rebuild)
    if settings and (changes := differences(found, current_manifest(cfg, name, fold), ignore)):
        raise UserError(f"{path}: {name} ran with other settings or files ({changes}); {remedy}{rebuild}")
    made_with = with_settings(cfg, found)
    require_upstream(made_with, name, fold)
    check_files(found, made_with, name, fold, remedy + command(made_with, name, **only))
    return found


def require_upstream(cfg: Config, name: str, fold: int | None = None) -> None:
    """As require, for the commands whose outputs a command reads; an error names the first one that must be rerun."""
    runs = cfg.fused_runs if name == "ensemble" else [cfg]
    for upstream in STAGES[name].after:
        folds: Sequence[int | None] = [None]
        if "{fold}" in STAGES[upstream].manifest:
            folds = cfg.fold_list if fold is None else [fold]
        for run, k in product(runs, folds):
            # without a manifest the folds are the user's own
            if upstream != "make_folds" or manifest_path(run, upstream).is_file():
                require(run, upstream, k)


def check_files(found: Manifest, cfg: Config, name: str, fold: int | None, remedy: str) -> None:
    """Raise UserError if an output or an input was changed since; a file that is gone is not compared."""
    outputs = files_of(STAGES[name].outputs, cfg, fold)
    for key, path in outputs.items():
        if path.is_file() and found["outputs"].get(key) != hash_of(path):
            raise UserError(f"{path}: not as {name} wrote it; {remedy}")
    for key, now in hash_inputs(cfg, name, fold).items():
        before = found["inputs"].get(key)
        if before != now and now != ABSENT:
            output = next(iter(outputs.values()))
            raise UserError(f"{output}: made from another {key} ({before} -> {now}); {remedy}")


def with_settings(cfg: Config, manifest: Manifest) -> Config:
    """The config with the settings of a manifest, so that files are found where that command wrote them."""
    settings = dict(manifest["settings"])
    folds = settings.pop("fold_list", None)
    settings = {key: value for key, value in settings.items() if key not in FILE_OR_WORD or value != "a file"}
    known = {f.name for f in fields(Config)}
    changes = {key: value for key, value in settings.items() if key in known}
    if "model" in settings:
        changes["model_settings"] = {key: value for key, value in settings.items() if key not in known}
    if folds:
        changes |= {"fold": ",".join(map(str, folds)), "n_folds": max(cfg.n_folds, *(k + 1 for k in folds))}
    made = replace(cfg, **changes)
    if made.members != cfg.members or not cfg.member_configs:
        # the settings of the members are in their own manifests
        members = [made.of_run(f"{made.name}_{member}") for member in parse_weights(made.members)]
        made = replace(made, member_configs=members)
    return made


def differences(found: Manifest, wanted: Manifest, ignore: Iterable[str] = ()) -> str:
    """The differences between two manifests, as `size: 512 -> 256; folds/folds.csv: 1a2b -> 3c4d`; empty if none.

    Version, settings and inputs are compared, except for those in `ignore`, and for inputs that are absent now.
    """
    inputs = {key: value for key, value in wanted["inputs"].items() if value != ABSENT}
    new = {"version": wanted["version"], **wanted["settings"], **inputs}
    old = {"version": found.get("version"), **found["settings"], **{key: found["inputs"].get(key) for key in inputs}}
    keys = [key for key in dict.fromkeys((*new, *old)) if key not in ignore and old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)


def read_manifest(path: Path, rebuild: str = "") -> Manifest:
    """Read a manifest. Raises UserError, with the command to run, if it is broken or its settings are invalid."""
    found = read_json(path, rebuild, {"settings": dict, "inputs": dict, "outputs": dict})
    settings, defaults = found["settings"], vars(Config())
    pairs = {key: (type(value), type(defaults.get(key))) for key, value in settings.items() if key in defaults}
    wrong = [key for key, (kind, wanted) in pairs.items() if kind != wanted and (kind, wanted) not in NUMBERS]
    folds = settings.get("fold_list", [])
    if wrong or not (isinstance(folds, list) and all(type(fold) is int for fold in folds)):
        raise UserError(f"{path}: '{(wrong or ['fold_list'])[0]}' is not valid; delete it and run: {rebuild}")
    comparable = {key: settings[key] for key, (kind, wanted) in pairs.items() if kind == wanted}
    try:
        check(vars(replace(Config(), **comparable)))
    except UserError as error:
        raise UserError(f"{path}: {error}; delete it and run: {rebuild}") from None
    return found
