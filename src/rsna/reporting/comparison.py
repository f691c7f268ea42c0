"""Runs side by side: the table that `compare` prints and writes, and the report's table of baselines and runs."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.data.competition import LABELS_CSV, largest_box, read_folds, read_labels, truth_boxes
from rsna.evaluation.metric import mean_average_precision
from rsna.evaluation.runs import Resampling, compare_runs, differing_settings, find_runs, people_of, read_settings
from rsna.reporting.elements import ReportData, Table
from rsna.reporting.summary import digits


def tabulate_runs(cfg: Config) -> tuple[pd.DataFrame, dict[str, str]]:
    """A table of all scored runs, best first, and the reason of each one left out. Raises UserError without a run."""
    runs, refused = find_runs(cfg)
    if not runs:
        reasons = f" ({'; '.join(refused.values())})" if refused else ""
        raise UserError(f"{cfg.working}: no run with scores{reasons}; run: {command(cfg, 'evaluate')}")
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    people = people_of(read_folds(cfg.folds_csv, command(cfg, "make_folds")))
    table = compare_runs(runs, runs[0], truth, Resampling(people, cfg.bootstrap, cfg.seed))
    settings = differing_settings({run.name: read_settings(run.folder) for run in runs})
    table["settings"] = [" ".join(f"{key}={value}" for key, value in settings[name].items()) for name in table["run"]]
    return table, refused


def print_table(table: pd.DataFrame) -> None:
    """The numbers as a table, then the settings that differ, one line per run. The first row is the best run."""
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
    """`+0.0123 (+0.0010 to +0.0230)`; empty where there is none."""
    if pd.isna(row["difference"]):
        return ""
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def comparison_section(cfg: Config, data: ReportData) -> dict[str, Any]:
    """The report's table of baselines and of the other runs in working/."""
    scores, perfect = data.run.scores, largest_box(data.truth).assign(confidence=1.0)
    own = {"this run": scores["mAP"], **scores["baselines"]}
    own["a perfect largest box on each opacity"] = mean_average_precision(data.truth, perfect)
    rows = [[name, str(len(data.run.ids)), digits(value), "-"] for name, value in own.items()]
    runs, refused = find_runs(cfg)
    others = [run for run in runs if run.folder != data.run.folder]
    for row in compare_runs(others, data.run, data.truth, data.resampling).to_dict("records"):
        paired = difference(row) or "no common image"
        rows.append([f"run {row['run']}", str(row["shared images"]), digits(row["mAP"]), paired])
    caption = (
        "Out of fold. Difference: that run minus this one, on the images that both have, each at its own threshold; "
        "in brackets the 95 % interval over patients. One that contains 0 settles nothing."
    )
    return {
        "comparison": Table(caption, ["", "images", "mAP", "difference to this run"], rows),
        "left_out": sorted(name for name in refused if name != data.run.name),
    }
