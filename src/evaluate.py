"""Score out-of-fold predictions and choose the confidence threshold; or score any predictions against labels.

python src/evaluate.py [name=...]                          -> working/<name>/{scores.json,threshold.csv,surface.csv}
python src/evaluate.py predictions=<table or submission> [labels=<labels csv>] [threshold=0.4]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.evaluation.score_text import print_scores, score_file
from rsna.evaluation.scores import evaluate_run


def main(cfg: Config) -> None:
    path = cfg.run_dir / "scores.json"
    if cfg.predictions:
        score_file(cfg)
    elif scores := evaluate_run(cfg):
        print_scores(scores, path)
    else:
        print(f"evaluate: current -> {path}")


if __name__ == "__main__":
    run(main)
