"""Print a table of all runs in working/: score, spread, difference to the best, settings, seconds, megabytes.

python src/compare.py [working=...]   -> working/compare.csv; docs/report.md explains the difference to the best
"""

from pathlib import Path

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.tables import write_table
from rsna.reporting.summary import print_table, tabulate_runs


def main(cfg: Config) -> None:
    table, refused = tabulate_runs(cfg)
    path = Path(cfg.working) / "compare.csv"
    write_table(table, path, mark=b"run,images,")
    print_table(table)
    for name, reason in refused.items():
        print(f"NOTE: {name} is left out: {reason}")
    print(f"comparison -> {path}")


if __name__ == "__main__":
    run(main)
