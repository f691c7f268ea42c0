"""Draw test images with the boxes of the submission: the most and the least confident, and some at random.

python src/show_submission.py [name=...]   -> working/<name>/submission.png
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.evaluation.runs import as_shown
from rsna.reporting.montage import submission_montage, write_montage


def main(cfg: Config) -> None:
    path = cfg.run_dir / "submission.png"
    write_montage(submission_montage(as_shown(cfg)), path)
    print(f"test images with the boxes of the submission -> {path}")


if __name__ == "__main__":
    run(main)
