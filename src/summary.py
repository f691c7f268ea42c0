"""Print the results of a run: scores by fold, the threshold, baselines, and the test score if there are labels.

python src/summary.py [name=...] [test_labels=<labels csv of the test images>]
"""

from rsna.startup import run
from rsna.core.artifacts import is_current
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.inference.submission import upload_command
from rsna.reporting.summary import summary_table


def main(cfg: Config) -> None:
    table = summary_table(cfg)
    print(f"run {cfg.name}; IoU: most confident box with the largest true box, on positives;")
    print("mAP: the competition's metric, at one threshold for all folds")
    print(table)
    current = is_current(cfg, "report")
    print(f"report: {cfg.run_dir / 'report.html'}" if current else f"to renew the report: {command(cfg, 'report')}")
    print(f"to see the boxes: {command(cfg, 'show_results')}")
    print(f"submission: {cfg.submission_csv}" if cfg.is_demo else f"to upload: {upload_command(cfg)}")


if __name__ == "__main__":
    run(main)
