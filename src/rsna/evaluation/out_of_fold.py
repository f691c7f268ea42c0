"""A run's out-of-fold predictions with their truth, and those of its images that the operating point is chosen on."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rsna.core.config import FILE_OR_WORD, Config, command
from rsna.core.errors import UserError
from rsna.data import competition
from rsna.data.competition import LABELS_CSV
from rsna.evaluation.metric import of_images
from rsna.evaluation.operating_point import Calibration
from rsna.evaluation.threshold import with_scaled_boxes

CHALLENGE_IMAGES = 26_684  # training images of the challenge
TEST_LIKE_IMAGES = 1_000  # the last of them are the first stage's test set, labelled as the final test set


@dataclass(frozen=True)
class OutOfFold:
    """What a run predicted for the images that its folds did not train on, and the truth."""

    predictions: pd.DataFrame  # oof.csv
    no_tta: pd.DataFrame  # oof_no_tta.csv
    folds: pd.DataFrame  # rows of folds.csv by patientId, of the predicted images
    truth: pd.DataFrame  # their true boxes
    all_truth: pd.DataFrame  # those of all training images
    labelled: list[str]  # all training images, in the order of the labels

    def calibration(self, ids: pd.Index | None = None) -> Calibration:
        """Of these images, or of all."""
        people = self.folds["group"] if ids is None else self.folds.loc[ids, "group"]
        return Calibration(of_images(self.predictions, people.index), of_images(self.truth, people.index), people)

    def scaled(self, factor: float) -> "OutOfFold":
        """The same with scaled boxes."""
        predictions, no_tta = (with_scaled_boxes(table, factor) for table in (self.predictions, self.no_tta))
        return replace(self, predictions=predictions, no_tta=no_tta)


def read_out_of_fold(cfg: Config) -> OutOfFold:
    """Raises UserError where a file is missing or broken, or no image has an opacity."""
    rebuild = command(cfg, "ensemble")
    paths = (cfg.run_dir / f"{name}.csv" for name in ("oof", "oof_no_tta"))
    predictions, no_tta = (competition.read_predictions(path, rebuild) for path in paths)
    folds = competition.read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")
    folds = folds.loc[predictions["patientId"].drop_duplicates()]
    labels = competition.read_labels(Path(cfg.input) / LABELS_CSV)
    all_truth = competition.truth_boxes(labels)
    truth = of_images(all_truth, folds.index)
    if truth.empty:
        raise UserError(f"{cfg.run_dir / 'oof.csv'}: nothing to score: no image has an opacity")
    return OutOfFold(predictions, no_tta, folds, truth, all_truth, labels["patientId"].drop_duplicates().tolist())


def calibration_images(found: OutOfFold, calibrate: str) -> tuple[Calibration, str]:
    """The images that calibrate= names, and that in words. Raises UserError where it names none that can be used."""
    if calibrate == "auto":
        calibrate = "test_like" if len(found.labelled) == CHALLENGE_IMAGES else "all"
    ids, words = found.folds.index, "all out-of-fold images"
    if calibrate == "test_like":
        last = min(TEST_LIKE_IMAGES, max(1, len(found.labelled) // 5))
        ids = ids[ids.isin(found.labelled[-last:])]
        words = f"the last {last} images of {LABELS_CSV}"
    elif calibrate not in FILE_OR_WORD["calibrate"]:
        ids, words = pd.Index(read_ids(Path(calibrate), found)), f"the images of {Path(calibrate).name}"
    images = found.calibration(ids)
    n_positives = images.truth["patientId"].nunique()
    if calibrate != "all" and not 0 < n_positives < len(ids):
        problem = f"{len(ids)} of {words} have out-of-fold predictions, {n_positives} of them an opacity"
        raise UserError(f"calibrate={calibrate}: {problem}; it takes images with and without; or use calibrate=all")
    return images, words


def read_ids(path: Path, found: OutOfFold) -> list[str]:
    """A file with one patientId per line. Raises UserError that names the line of one that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a text file with one patientId per line ({error})") from None
    rows = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    labelled, predicted, seen = set(found.labelled), set(found.folds.index), set[str]()
    for number, name in rows.items():
        reasons = {
            f"not in {LABELS_CSV}": name not in labelled,
            "without out-of-fold predictions (train its fold, or remove it)": name not in predicted,
            "there twice": name in seen,
        }
        if problem := next((reason for reason, holds in reasons.items() if holds), ""):
            raise UserError(
                f"{path}, line {number}: patientId {name} is {problem}; the file has one patientId per line"
            )
        seen.add(name)
    return list(rows.values())
