"""Print a table of all runs in working/: score and spread, difference to the best, settings, seconds, megabytes.

python src/compare.py [working=...]   -> working/compare.csv

The best is the highest score among the runs with the most images. The difference to it is taken on the images that
both have, each run at its own threshold, with a 95 % interval from resampling people for both at once: an interval
that holds 0 says that the order of the two is not settled.
"""

from pathlib import Path

import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.errors import UserError
from rsna.core.tables import write_table
from rsna.data.competition import LABELS_CSV, read_folds, read_labels, truth_boxes
from rsna.evaluation.runs import Run, compare_runs, differing_settings, find_runs, people_of, read_settings


def main(cfg: Config) -> None:
    runs, refused = find_runs(Path(cfg.working), cfg.folds_csv)
    if not runs:
        raise UserError(f"{cfg.working}: no run with scores{explain(refused)}; run: {command(cfg, 'evaluate')}")
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    people = people_of(read_folds(cfg.folds_csv, command(cfg, "make_folds")))
    table = compare_runs(runs, runs[0], truth, people, cfg.bootstrap, cfg.seed)
    settings = differing_settings({run.name: read_settings(run.folder) for run in runs})
    table["settings"] = [" ".join(f"{key}={value}" for key, value in settings[name].items()) for name in table["run"]]
    write_table(table, Path(cfg.working) / "compare.csv")
    print_table(table, runs[0])
    print_refused(refused)
    print(f"comparison -> {Path(cfg.working) / 'compare.csv'}")


def explain(refused: dict[str, str]) -> str:
    return f" ({'; '.join(refused.values())})" if refused else ""


def print_table(table: pd.DataFrame, best: Run) -> None:
    """The numbers as a table, then what sets the runs apart, one line each."""
    shown = pd.DataFrame(
        {
            "run": table["run"],
            "images": table["images"],
            "mAP": [with_spread(row["mAP"], row["spread"]) for _, row in table.iterrows()],
            "95 % interval": table["interval"],
            "others' threshold": table["honest"].map(in_digits),
            f"difference to {best.name}": [difference(row) for _, row in table.iterrows()],
            "on images": table["shared images"],
            "seconds": table["seconds"].map(lambda value: "-" if pd.isna(value) else f"{value:.0f}"),
            "MB": table["megabytes"].map("{:.0f}".format),
        }
    )
    print(shown.to_string(index=False))
    print("mAP out of fold at each run's own threshold ± spread over folds; seconds: of all epochs of all folds;")
    print("MB: checkpoints; a difference whose interval holds 0 does not settle which of the two is better")
    for name, words in zip(table["run"], table["settings"], strict=True):
        print(f"{name}: {words or 'no setting differs'}")


def with_spread(value: float, spread: float) -> str:
    return f"{value:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")


def in_digits(value: float | None) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.4f}"


def difference(row: pd.Series) -> str:
    if pd.isna(row["difference"]):
        return "-"
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def print_refused(refused: dict[str, str]) -> None:
    for name, reason in refused.items():
        print(f"NOTE: {name} is left out: {reason}")


if __name__ == "__main__":
    run(main)
