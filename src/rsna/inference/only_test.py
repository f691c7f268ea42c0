"""predict only_test=true: new tables of the test images beside validation tables that stay as they are."""

from typing import Any

from rsna.core.artifacts import current_manifest, differences, files_of, hash_of, manifest_path, read_manifest
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.files import ABSENT
from rsna.core.stages import SAMPLE, TEST_IMAGES


def manifest_after(cfg: Config, fold: int) -> dict[str, Any]:
    """What the manifest will say. With only_test=true it vouches for the validation tables too, which stay.

    So they must be vouched for now, with the same settings and checkpoint: raises UserError if they are not. Where
    the training images are not at hand, as in Kaggle's inference kernel, their earlier hash is kept.
    """
    made = current_manifest(cfg, "predict", fold)
    if not cfg.only_test:
        return made
    path = manifest_path(cfg, "predict", fold)
    rebuild = f"run once without it: {command(cfg, 'predict', fold=str(fold), only_test='false')}"
    if not path.is_file():
        raise UserError(f"only_test=true: {path}: no such file to vouch for the validation tables; {rebuild}")
    found = read_manifest(path)
    changes = differences(found, made, ignore=files_of((SAMPLE, TEST_IMAGES), cfg, fold))
    if changes:
        raise UserError(f"only_test=true: {path}: the validation tables are of other settings ({changes}); {rebuild}")
    outputs = [f"fold{fold}/{name}.csv" for name in ("valid", "valid_images")]
    for key in outputs:
        if found["outputs"].get(key) != hash_of(cfg.run_dir / key):
            raise UserError(f"only_test=true: {cfg.run_dir / key}: missing, or not as predict wrote it; {rebuild}")
    inputs = {key: found["inputs"].get(key, now) if now == ABSENT else now for key, now in made["inputs"].items()}
    return made | {"inputs": inputs}
