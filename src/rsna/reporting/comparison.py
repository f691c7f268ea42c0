"""Runs side by side: the table that `compare` prints and writes, and the report's table of baselines and runs."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.tables import write_table
from rsna.data.competition import LABELS_CSV, largest_box, read_folds, read_labels, truth_boxes
from rsna.evaluation.metric import mean_average_precision
from rsna.evaluation.runs import Resampling, compare_runs, differing_settings, find_runs, people_of, read_settings
from rsna.reporting.elements import ReportData, Table, digits


def tabulate_runs(cfg: Config) -> tuple[pd.DataFrame, dict[str, str]]:
    """All scored runs, best first, as a table; and the names of those left out, with the reason.

    Raises UserError if no run is scored.
    """
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


def write_comparison(table: pd.DataFrame, cfg: Config) -> Path:
    path = Path(cfg.working) / "compare.csv"
    write_table(table, path)
    return path


def print_table(table: pd.DataFrame) -> None:
    """The numbers as a table, then the settings that differ, one line per run. The first row is the best run."""
    shown = pd.DataFrame(
        {
            "run": table["run"],
            "images": table["images"],
            "mAP": [with_spread(row["mAP"], row["spread"]) for _, row in table.iterrows()],
            "95 % interval": table["interval"],
            "cross-fitted": [digits(value, ".4f") for value in table["cross_fitted"]],
            f"difference to {table['run'].iloc[0]}": [difference(row) or "-" for row in table.to_dict("records")],
            "on images": table["shared images"],
            "seconds": [digits(value, ".0f") for value in table["seconds"]],
            "MB": table["megabytes"].map("{:.0f}".format),
        }
    )
    print(shown.to_string(index=False))
    print("mAP out of fold at each run's own threshold ± spread over folds; cross-fitted: at the threshold chosen on")
    print(
        "the other folds; seconds: of all epochs of all folds; MB: checkpoints; a difference whose interval contains 0"
    )
    print("does not settle which of the two is better")
    for name, words in zip(table["run"], table["settings"], strict=True):
        print(f"{name}: {words or 'no setting differs'}")


def print_refused(refused: dict[str, str]) -> None:
    for name, reason in refused.items():
        print(f"NOTE: {name} is left out: {reason}")


def with_spread(value: float, spread: float) -> str:
    return f"{value:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")


def difference(row: dict[Hashable, Any]) -> str:
    """`+0.0123 (+0.0010 to +0.0230)`; empty where there is none."""
    if pd.isna(row["difference"]):
        return ""
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def comparison_section(cfg: Config, data: ReportData) -> dict[str, Any]:
    """The report's table of baselines and of the other runs in working/."""
    n_images = str(len(data.run.ids))
    perfect = largest_box(data.truth).assign(confidence=1.0)
    baselines = dict(data.run.scores.get("baselines", {}))
    baselines["a perfect largest box on each opacity"] = mean_average_precision(data.truth, perfect)
    others, refused = find_runs(cfg)
    others = [run for run in others if run.folder != data.run.folder]
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    people = people_of(data.folds.reset_index())
    table = compare_runs(others, data.run, truth, Resampling(people, cfg.bootstrap, cfg.seed))
    rows = [["this run", n_images, digits(data.run.scores["mAP"], ".4f"), "-"]]
    rows += [[name, n_images, digits(value, ".4f"), "-"] for name, value in baselines.items()]
    rows += [
        [
            f"run {row['run']}",
            str(row["shared images"]),
            digits(row["mAP"], ".4f"),
            difference(row) or "no common image",
        ]
        for row in table.to_dict("records")
    ]
    return {
        "comparison": Table(
            "Out of fold. Difference: that run minus this one, on the images that both have, each at its own "
            "threshold; in brackets the 95 % interval over patients. One that contains 0 settles nothing.",
            ["", "images", "mAP", "difference to this run"],
            rows,
        ),
        "left_out": sorted(name for name in refused if name != data.run.name),
        "compare_command": command(cfg, "compare"),
    }
