"""Fuse views, runs and folds into working/<name>/{oof,oof_no_tta,test,test_by_fold}.csv and {oof,test}_images.csv.

python src/ensemble.py fold=0..4 [name=...] [wbf_iou=...] [missing_weight=...] [max_boxes=...]
python src/ensemble.py name=both runs=a,b            the folds of the runs a and b
"""

from rsna.startup import run
from rsna.core.artifacts import run_names
from rsna.core.config import Config
from rsna.inference.ensemble import fuse_run


def main(cfg: Config) -> None:
    counts, state = fuse_run(cfg), "current"
    if counts:
        models = f"{len(cfg.fold_list)} folds of {len(run_names(cfg))} run(s)"
        state = f"{models}, {counts[0]} out-of-fold and {counts[1]} test images"
    print(f"ensemble: {state} -> {cfg.run_dir / 'test.csv'}")


if __name__ == "__main__":
    run(main)
