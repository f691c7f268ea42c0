"""Write a run's report: one HTML file with scores, plots and images, which needs no network.

python src/report.py [name=...]   -> working/<name>/report.html
"""

from rsna.startup import run
from rsna.core.artifacts import record
from rsna.core.config import Config
from rsna.core.locks import file_lock
from rsna.evaluation.runs import as_shown
from rsna.reporting.report import write_report


def main(cfg: Config) -> None:
    shown = as_shown(cfg)
    with file_lock(cfg.run_dir):
        path = write_report(shown)
        record(cfg, "report")
    print(f"report, {path.stat().st_size / 2**20:.1f} MB, opens in any browser -> {path}")


if __name__ == "__main__":
    run(main)
