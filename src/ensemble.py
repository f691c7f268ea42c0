"""Fuse views, runs and folds into working/<name>/{oof,oof_no_tta,test,test_by_fold}.csv and {oof,test}_images.csv.

python src/ensemble.py fold=0..4 [name=...] [wbf_iou=...] [missing_weight=...] [max_boxes=...]
python src/ensemble.py name=both runs=a,b            fuses the folds of runs a and b
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.inference.ensemble import fuse_run
from rsna.inference.gate import describe_gate


def main(cfg: Config) -> None:
    made, state = fuse_run(cfg), "current"
    if made:
        models = f"fold {', '.join(map(str, cfg.fold_list))} of {', '.join(run.name for run in cfg.fused_runs)}"
        state = f"{models}, {made['oof']} out-of-fold and {made['test']} test images"
        if cfg.gate == "auto":
            print(f"ensemble: {describe_gate(made['gate'])}")
    print(f"ensemble: {state} -> {cfg.run_dir / 'test.csv'}")


if __name__ == "__main__":
    run(main)
