"""The table at the end of a run: scores by fold, baselines, and the test score if it can be known. 80 columns wide."""

from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.data.competition import LABELS_CSV, read_labels, truth_boxes
from rsna.data.submission_format import parse_submission
from rsna.evaluation.metric import of_images
from rsna.evaluation.scores import baselines, describe, read_scores
from rsna.inference.submission import read_submission

Row = tuple[str, Any, Any, Any, str]  # what it is, images, AUC, IoU, mAP


def summary_table(cfg: Config) -> str:
    """The results of a run as lines of at most 80 characters. Raises UserError for what is missing or not current."""
    scores, submission = read_scores(cfg.run_dir, command(cfg, "evaluate")), read_submission(cfg)
    rows = [(f"fold {f['fold']}", f["images"], f["AUC"], f["IoU"], digits(f["mAP"])) for f in scores["per_fold"]]
    rows += out_of_fold_rows(scores)
    share = submission["images_with_box"] / submission["images"]
    rows.append(("images that get a box, test", submission["images"], None, None, f"{share:.1%}"))
    rows.append(("  threshold, test", None, None, None, digits(submission["threshold"])))
    if Path(cfg.test_labels).is_file():
        rows += test_rows(cfg)
    elif Path(cfg.test_labels) != Path(cfg.root) / "test_labels.csv":
        raise UserError(f"test_labels={cfg.test_labels}: no such file")
    return format_rows(rows)


def format_rows(rows: list[Row]) -> str:
    """Left-aligned names and mAP, right-aligned numbers between."""
    table = pd.DataFrame(rows, columns=["", "images", "AUC", "IoU", "mAP"])
    names, last = (table[column].str.ljust(table[column].str.len().max()) for column in ("", "mAP"))
    table["images"] = table["images"].map(lambda count: "" if pd.isna(count) else f"{count:.0f}")
    table = table.assign(mAP=last).drop(columns="").set_axis(names).rename_axis(None)
    return "\n".join(map(str.rstrip, table.to_string(float_format="{:.3f}".format, na_rep="").splitlines()))


def out_of_fold_rows(scores: dict[str, Any]) -> list[Row]:
    """All folds together, the cross-fitted score, and the baselines on the same images."""
    n = scores["images"]
    by_fold = pd.Series([fold["mAP"] for fold in scores["per_fold"]])
    spread, name = (f" ± {by_fold.std():.4f}", " (± over folds)") if len(by_fold) > 1 else ("", "")
    low, high = scores["interval"]
    return [
        (f"out of fold{name}", n, scores["AUC"], scores["IoU"], digits(scores["mAP"]) + spread),
        ("  95 % interval, people resampled", n, None, None, f"{low:.4f} to {high:.4f}"),
        ("  cross-fitted threshold", n, None, None, digits(scores["cross_fitted_mAP"])),
        ("  plain view only, its best threshold", n, None, None, digits(scores["no_tta_best_mAP"])),
        *((f"  {name}", n, None, None, digits(value)) for name, value in scores["baselines"].items()),
        ("images that get a box, out of fold", n, None, None, f"{scores['with_box']:.1%}"),
    ]


def digits(value: float | None, form: str = ".4f") -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None or pd.isna(value) else format(value, form)


def test_rows(cfg: Config) -> list[Row]:
    """The submission against the truth of the test images, with the same baselines; only ever a last look."""
    kept = parse_submission(cfg.submission_csv)
    ids = kept["patientId"].drop_duplicates().tolist()
    kept = kept.dropna(subset=["confidence"])
    labels = read_labels(Path(cfg.test_labels))
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(f"test_labels={cfg.test_labels}: no row for {len(unknown)} test images, such as {min(unknown)}")
    truth = of_images(truth_boxes(labels), ids)
    scores = describe(kept, truth, pd.Series(ids, index=ids), cfg.bootstrap, cfg.seed)
    if not scores["per_iou"]:
        return [("submission, test images", len(ids), None, None, "no truth and no box")]
    low, high = scores["interval"]
    known = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    simple = baselines(known, pd.Series(0, index=ids), kept, truth)
    return [
        ("submission, test images", len(ids), None, None, f"{scores['mAP']:.4f}"),
        ("  95 % interval, images resampled", len(ids), None, None, f"{low:.4f} to {high:.4f}"),
        *((f"  {name}", len(ids), None, None, f"{value:.4f}") for name, value in simple.items()),
    ]
