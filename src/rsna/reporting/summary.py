"""The tables that `summary` (at most 80 characters wide) and `compare` print."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.artifacts import read_manifest
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.data.competition import read_folds, read_labels, read_truth, truth_boxes
from rsna.data.submission_format import parse_submission
from rsna.evaluation.baselines import baselines
from rsna.evaluation.metric import of_images
from rsna.evaluation.runs import compare_runs, differing_settings, find_runs, people_of, read_settings
from rsna.evaluation.scores import describe, read_scores, spread_of_folds
from rsna.inference.submission import read_submission

Row = tuple[str, Any, Any, Any, str]  # name, images, AUC, IoU, mAP


def summary_table(cfg: Config) -> str:
    """Scores by fold, baselines, and the test score if there are labels. Raises UserError if a file is not current."""
    scores, submission = read_scores(cfg.run_dir, command(cfg, "evaluate")), read_submission(cfg)
    rows = [(f"fold {f['fold']}", f["images"], f["AUC"], f["IoU"], digits(f["mAP"])) for f in scores["per_fold"]]
    rows += out_of_fold_rows(scores)
    share = submission["images_with_box"] / submission["images"]
    if Path(cfg.test_labels).is_file():
        rows += test_rows(cfg)
    elif Path(cfg.test_labels) != Path(cfg.root) / "test_labels.csv":
        raise UserError(f"test_labels={cfg.test_labels}: no such file")
    with_box = f"with a box: {scores['with_box']:.1%} of the images out of fold, {share:.1%} of the test images"
    return f"{with_box}\nat the test threshold {submission['threshold']:.4f}\n{format_rows(rows)}"


def format_rows(rows: list[Row]) -> str:
    """The rows as text: names and mAP left-aligned, the columns between right-aligned."""
    table = pd.DataFrame(rows, columns=["", "images", "AUC", "IoU", "mAP"])
    names, last = (table[column].str.ljust(table[column].str.len().max()) for column in ("", "mAP"))
    table["images"] = table["images"].astype(str)
    table = table.assign(mAP=last).drop(columns="").set_axis(names).rename_axis(None)
    return "\n".join(map(str.rstrip, table.to_string(float_format="{:.3f}".format, na_rep="").splitlines()))


def out_of_fold_rows(scores: dict[str, Any]) -> list[Row]:
    """All folds together, the cross-fitted score, and the baselines on the same images."""
    n = scores["images"]
    over_folds = spread_of_folds(scores)
    spread, name = ("", "") if pd.isna(over_folds) else (f" ± {over_folds:.4f}", " (± over folds)")
    low, high = scores["interval"]
    return [
        (f"out of fold{name}", n, scores["AUC"], scores["IoU"], digits(scores["mAP"]) + spread),
        ("  95 % interval, patients resampled", n, None, None, f"{low:.4f} to {high:.4f}"),
        ("  cross-fitted threshold", n, None, None, digits(scores["cross_fitted_mAP"])),
        ("  plain view only, its best threshold", n, None, None, digits(scores["no_tta_best_mAP"])),
        *((f"  {name}", n, None, None, digits(value)) for name, value in scores["baselines"].items()),
    ]


def digits(value: float | None, form: str = ".4f") -> str:
    """A number for a table; a dash for None or NaN."""
    return "-" if value is None or pd.isna(value) else format(value, form)


def test_rows(cfg: Config) -> list[Row]:
    """The score of the submission on the labels of the test images, with the baselines. Look at it once, at the end.

    Raises UserError if a test image has no label.
    """
    kept = parse_submission(cfg.submission_csv)
    ids = kept["patientId"].drop_duplicates().tolist()
    kept = kept.dropna(subset=["confidence"])
    labels = read_labels(Path(cfg.test_labels))
    unknown = set(ids) - set(labels["patientId"])
    if unknown:
        raise UserError(f"test_labels={cfg.test_labels}: no row for {len(unknown)} test images, such as {min(unknown)}")
    truth = of_images(truth_boxes(labels), ids)
    if truth.empty and kept.empty:
        return [("submission, test images", len(ids), None, None, "no truth and no box")]
    scores = describe(kept, truth, pd.Series(ids, index=ids), cfg.bootstrap, cfg.seed)
    low, high = scores["interval"]
    simple = baselines(read_truth(Path(cfg.input)), pd.Series(0, index=ids), kept, truth)
    return [
        ("submission, test images", len(ids), None, None, f"{scores['mAP']:.4f}"),
        ("  95 % interval, images resampled", len(ids), None, None, f"{low:.4f} to {high:.4f}"),
        *((f"  {name}", len(ids), None, None, f"{value:.4f}") for name, value in simple.items()),
    ]


def tabulate_runs(cfg: Config) -> tuple[pd.DataFrame, dict[str, str]]:
    """A table of all scored runs, best first; and run -> why it is left out. Raises UserError if there is no run."""
    runs, refused = find_runs(cfg)
    if not runs:
        reasons = f" ({'; '.join(refused.values())})" if refused else ""
        raise UserError(f"{cfg.working}: no run with scores{reasons}; run: {command(cfg, 'evaluate')}")
    for run in runs:
        fused = {key.split("/")[0] for key in read_manifest(run.folder / "ensemble.json")["inputs"]}
        refused |= dict.fromkeys(fused & set(refused), f"it is fused in {run.name} and was not scored alone")
    people = people_of(read_folds(cfg.folds_csv, command(cfg, "make_folds")))
    table = compare_runs(cfg, runs, runs[0], read_truth(Path(cfg.input)), people)
    settings = differing_settings({run.name: read_settings(run.folder) for run in runs})
    table["settings"] = [" ".join(f"{key}={value}" for key, value in settings[name].items()) for name in table["run"]]
    return table, refused


def print_table(table: pd.DataFrame) -> None:
    """Print the table of tabulate_runs, and one line per run with the settings that differ."""
    rows = [
        {
            "run": row["run"],
            "images": row["images"],
            "mAP": f"{row['mAP']:.4f}" + ("" if pd.isna(row["spread"]) else f" ± {row['spread']:.4f}"),
            "95 % interval": row["interval"],
            "cross-fitted": digits(row["cross_fitted"]),
            f"difference to {table['run'].iloc[0]}": difference(row) or "-",
            "on images": row["shared images"],
            "seconds": digits(row["seconds"], ".0f"),
            "MB": f"{row['megabytes']:.0f}",
        }
        for row in table.to_dict("records")
    ]
    print(pd.DataFrame(rows).to_string(index=False))
    print("mAP out of fold at each run's own threshold ± spread over folds; cross-fitted: at the threshold chosen on")
    print("the other folds; seconds: of all epochs of all folds; MB: checkpoints; a difference whose interval")
    print("contains 0 does not settle which of the two is better")
    for name, words in zip(table["run"], table["settings"], strict=True):
        print(f"{name}: {words or 'no setting differs'}")


def difference(row: dict[Hashable, Any]) -> str:
    """The difference with its interval, `+0.0123 (+0.0010 to +0.0230)`; empty if there is none."""
    if pd.isna(row["difference"]):
        return ""
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
