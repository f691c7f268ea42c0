"""Draw out-of-fold images with true (blue) and predicted (orange) boxes: best, worst, missed, false alarms, random.

python src/show_results.py [name=...]   -> working/<name>/results.png
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.evaluation.runs import as_shown
from rsna.reporting.montage import results_montage, write_montage


def main(cfg: Config) -> None:
    path = cfg.run_dir / "results.png"
    write_montage(results_montage(as_shown(cfg)), path)
    print(f"out of fold: true boxes blue, predicted boxes orange -> {path}")


if __name__ == "__main__":
    run(main)
