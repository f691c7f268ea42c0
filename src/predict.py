"""Predict each fold's validation images and the test images, in each test-time view; nothing is fused here.

python src/predict.py fold=0..4 [tta=plain,hflip] [tta_scales=1.0] [checkpoint=best] [only_test=true] [jobs=-1]
-> working/<name>/fold<k>/{valid,test}.csv (boxes) and {valid,test}_images.csv (class probabilities)
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.execution.folds import run_each_fold
from rsna.inference.predictor import predict_fold


def main(cfg: Config) -> None:
    if cfg.jobs != 1 or cfg.engine == "ray":
        run_each_fold(cfg, "predict", predict_fold)
        return
    for member in cfg.trained_runs:
        current = [str(fold) for fold in member.fold_list if not predict_fold(member, fold)]
        if current:
            print(f"predict: fold {', '.join(current)} current -> {member.run_dir}")


if __name__ == "__main__":
    run(main)
