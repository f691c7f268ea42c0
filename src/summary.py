"""Print what came out of a run: scores by fold, the threshold, baselines, the test score if it can be known.

python src/summary.py [name=...] [test_labels=<labels csv of the test images>]
"""

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.reporting.summary import summary_table


def main(cfg: Config) -> None:
    table = summary_table(cfg)
    print(f"run {cfg.name}; IoU: most confident box with the largest true box, on positives;")
    print("mAP: the competition's metric, at one threshold for all folds")
    print(table)
    report = cfg.run_dir / "report.html"
    print(f"report: {report}" if report.is_file() else f"report: {command(cfg, 'report')}")
    print(f"boxes on images: {command(cfg, 'show_results')}")
    print(f"submission: {cfg.submission_csv}")


if __name__ == "__main__":
    run(main)
