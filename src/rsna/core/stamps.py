"""Stamps: what a stage's outputs were made from, and that they are still the ones it wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json, write_json

Expected = dict[str, type | UnionType]
NUMBER = int | float
# what other stages take from these files, and of what type
SCORES_JSON: Expected = {
    "threshold": NUMBER,
    "images": int,
    "mAP": NUMBER,
    "interval": list,
    "per_fold": list,
    "oof": str,
}
SUBMISSION_JSON: Expected = {
    "images": int,
    "images_with_box": int,
    "threshold": NUMBER,
    "threshold_from": str,
    "made_from": dict,
}


def begin(stamp: Path) -> None:
    """Withdraw a stage's stamp before its outputs are replaced: killed in between, they are not taken for whole."""
    stamp.unlink(missing_ok=True)


def mark_complete(stamp: Path, facts: dict[str, Any], outputs: Sequence[Path] = (), **results: Any) -> None:
    """Write the stamp of a finished stage, with the fingerprints of its outputs, which are in place by now."""
    written = {path.name: content_hash(path) for path in outputs}
    write_json({"made_from": facts, "outputs": written, **results}, stamp)


def is_complete(stamp: Path, facts: dict[str, Any], outputs: Sequence[Path]) -> bool:
    """Whether `outputs` exist and `stamp` says that they were made from exactly these facts and not changed since."""
    if not stamp.is_file() or not all(path.is_file() for path in outputs):
        return False
    content = read_json(stamp)
    return content.get("made_from") == json.loads(json.dumps(facts)) and not changed_outputs(content, outputs)


def changed_outputs(content: dict[str, Any], outputs: Sequence[Path]) -> list[Path]:
    """Those of `outputs` that are not as the stamp's content says; none of a stamp that holds no fingerprints."""
    written = content.get("outputs") or {}
    return [path for path in outputs if written and written.get(path.name) != content_hash(path)]


def check_stamp(stamp: Path, facts: dict[str, Any], outputs: Sequence[Path], maker: str) -> dict[str, Any]:
    """What a finished stage was made from. Raises UserError if that differs from these facts, or an output was changed.

    maker: the command that makes them anew.
    """
    content = read_json(stamp, maker, {"made_from": dict})
    made_from: dict[str, Any] = content["made_from"]
    changes = difference({key: made_from.get(key) for key in facts}, json.loads(json.dumps(facts)))
    if changes:
        raise UserError(f"{stamp.parent}: {stamp.stem} worked from other settings or files ({changes}); run: {maker}")
    changed = changed_outputs(content, outputs)
    if changed:
        raise UserError(f"{changed[0]}: not as {stamp.stem} wrote it; run: {maker}")
    return made_from


def check_fused(run_dir: Path, folds_csv: Path, maker: str) -> None:
    """Raise UserError unless a run's fused tables are as `ensemble` wrote them, from the predictions of now.

    maker: the command that fuses them anew. They would be scored with the wrong folds otherwise, or be a mixture.
    """
    if not folds_csv.is_file():
        raise UserError(f"{folds_csv}: no such file; run make_folds again: the same seed gives the same folds")
    outputs = [run_dir / f"{name}.csv" for name in ("oof", "oof_plain", "test", "test_by_fold")]
    made_from = check_stamp(run_dir / "ensemble.json", {"folds.csv": content_hash(folds_csv)}, outputs, maker)
    for name, found in made_from.items():
        if "/" in name and content_hash(run_dir.parent / name) != found:
            raise UserError(f"{run_dir / 'oof.csv'} and test.csv are older than {name}; run: {maker}")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name what differs between two sets of facts, as `size: 512 -> 256; lr: 0.001 -> 0.01`; empty if nothing."""
    keys = [*new, *(key for key in old if key not in new)]
    changes = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    return "; ".join(changes)
