"""Print a table of all runs in working/: score and spread, difference to the best, settings, seconds, megabytes.

python src/compare.py [working=...]   -> working/compare.csv

The best is the highest score among the runs with the most images; docs/report.md explains the difference to it.
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.reporting.comparison import print_refused, print_table, tabulate_runs, write_comparison


def main(cfg: Config) -> None:
    table, refused = tabulate_runs(cfg)
    path = write_comparison(table, cfg)
    print_table(table)
    print_refused(refused)
    print(f"comparison -> {path}")


if __name__ == "__main__":
    run(main)
