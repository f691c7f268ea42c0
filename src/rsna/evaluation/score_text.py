"""The scores of a run as lines that a person can read."""

from pathlib import Path
from typing import Any

import pandas as pd


def print_scores(scores: dict[str, Any], path: Path) -> None:
    """Print everything that decides between runs; path: the file that holds all of it."""
    folds = pd.DataFrame(scores["per_fold"])
    low, high = scores["interval"]
    spread = f", folds ± {folds['mAP'].std():.4f}" if len(folds) > 1 else ""
    folds = folds.rename(columns={"cross_fitted_mAP": "cross-fitted mAP"})
    print(folds.to_string(index=False, float_format="{:.4f}".format, na_rep="-"))
    print(f"mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}{spread}")
    print(by_name("mAP by IoU threshold", scores["per_iou"], 3))
    print(by_name("mAP by view position", scores["per_view_position"]))
    print(f"threshold {scores['threshold']:.4f}: the best on these predictions, {scores['with_box']:.1%} get a box")
    if scores["cross_fitted_mAP"] is None:
        print("a cross-fitted score, with the threshold chosen on the other folds, takes two folds at least")
    else:
        print(f"cross-fitted, with the threshold chosen on the other folds: {scores['cross_fitted_mAP']:.4f}")
    print(by_name("on the same images", scores["baselines"]))
    print_scales(scores)
    print_tta(scores)
    print(f"scores -> {path}")


def by_name(title: str, values: dict[str, float], digits: int = 4) -> str:
    return f"{title}: " + "  ".join(f"{name} {value:.{digits}f}" for name, value in values.items())


def print_scales(scores: dict[str, Any]) -> None:
    """What smaller or larger boxes would score, and whether the choice carries over to other folds."""
    found = scores["box_scales"]
    print(by_name("boxes scaled about their centres, each at its best threshold", found["best"]))
    both, threshold_alone = found["cross_fitted_mAP"], scores["cross_fitted_mAP"]
    if both is not None and threshold_alone is not None:
        print(
            f"cross-fitted, scale and threshold: {both:.4f}, the threshold alone {threshold_alone:.4f}: "
            + ("it pays, see box_scale=" if both > threshold_alone else "it does not pay")
        )


def print_tta(scores: dict[str, Any]) -> None:
    """Whether test-time augmentation pays, each way at the threshold that suits it best."""
    fused, plain = scores["best_mAP"], scores["no_tta_best_mAP"]
    if plain > fused:
        print(
            f"NOTE: test-time augmentation costs here: the plain view alone scores {plain:.4f}, "
            f"fused {fused:.4f} (tta=plain)"
        )
    else:
        print(f"test-time augmentation: {fused:.4f}, the plain view alone {plain:.4f}")
