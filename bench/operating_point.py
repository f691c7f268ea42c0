"""How much score the choice of the threshold loses when the test set holds more or fewer positives than the images it
is chosen on: the rules of this project beside each other, on simulated predictions.

    python bench/operating_point.py [quick=true] [seeds=10] [images=3000]

An image's class moves the log-odds of its box, each of 5 folds adds noise of its own, and the test table fuses all of
them while out of fold one has seen each image. Loss: the score at the threshold that is best for the test truth minus
that at the chosen one. Rules, all carried to the fused table by the fraction of test images with a box in single folds:

share       the best threshold out of fold
smoothed    the best of the smoothed curve
own         the same of a part of the images without pulling its curves towards those of all
em          the best of the curve weighted for the fraction of positives that EM estimates on the test images
settled     prior=auto: em where the interval of that fraction excludes the one out of fold, else smoothed, on all share
known       as em, with the true fraction: what EM could reach at most

The images are 3,000 of the training mix (22 % positive, negatives more often Not Normal than in the test set) and 1,000
of the test set's mix (35 %), whose opacities, as in the test set, are smaller: less sure and less well placed. The
threshold is chosen on `all`, on the latter as `test_like`, or, `few`, on 60 such images beside 240 of the other mix.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.evaluation.metric import threshold_sweep, top_confidences
from rsna.evaluation.operating_point import Images, Surface, make_grid, measure, measure_part
from rsna.evaluation.prior import count_bins, estimate_prior, mean_score
from rsna.evaluation.threshold import best_threshold, point_for_test

PRIORS = (0.1, 0.2, 0.3, 0.36, 0.5)
TRAINING, TEST_LIKE = (0.22, 0.57), (0.35, 0.5)  # fraction positive, fraction of negatives Not Normal
SMALL = 0.78  # side of the test set's boxes as a factor on that of the training set's
CALIBRATION = {"all": 1000, "test_like": 1000, "few": 60}  # images of the test set's mix
TEST_IMAGES, FOLDS = 3000, 5
LOG_ODDS = np.array([-3.2, -1.8, 0.0])  # of Normal, Not Normal, Lung Opacity
HARDER = 0.4  # log-odds that a small opacity lacks


class Simulated(NamedTuple):
    images: Images  # the first fold's predictions
    by_fold: pd.DataFrame
    fused: pd.DataFrame


def simulate(n: int, mix: tuple[float, float], size: float, rng: np.random.Generator) -> Simulated:
    """One box per image; it fits better where the confidence is high, and one in seven lies elsewhere.

    mix: fraction positive, fraction of negatives Not Normal; size: factor on the sides of the boxes.
    """
    positive = rng.random(n) < mix[0]
    kind = np.where(positive, 2, rng.random(n) < mix[1])
    odds = LOG_ODDS[kind] - HARDER * (positive & (size < 1)) + rng.normal(0, 1.1, n)
    confidence = 1 / (1 + np.exp(-(odds + rng.normal(0, 0.6, (FOLDS, n)))))
    corner, sides = rng.uniform(100, 700, (n, 2)), 200 * np.exp(rng.normal(0, 0.25, (n, 2)))
    error = 0.18 / size * np.exp(-0.25 * np.clip(odds, -3, 3))[:, None] * rng.normal(0, 1, (n, 4))
    moved = corner + error[:, :2] * sides + 300 * (rng.random((n, 1)) < 0.15)
    ids, columns = np.array([f"{k:06d}" for k in range(n)]), ["x", "y", "width", "height"]
    truth = pd.DataFrame(np.hstack([corner, sides]), columns=columns).assign(patientId=ids)
    boxes = pd.DataFrame(np.hstack([moved, sides * np.exp(error[:, 2:])]), columns=columns).assign(patientId=ids)
    by_fold = [boxes.assign(confidence=values, fold=k) for k, values in enumerate(confidence)]
    agree = rng.random((FOLDS, n)) < np.where(positive, 0.85, 0.6)  # a fold elsewhere adds missing_weight of its own
    fused = boxes.assign(confidence=(confidence * np.where(agree, 1, 0.75)).mean(axis=0))
    return Simulated(Images(by_fold[0], truth[positive], pd.Series(ids, index=ids)), pd.concat(by_fold), fused)


def joined(first: Images, second: Images) -> Images:
    """Both; the ids of the second get a letter."""
    renamed = [table.assign(patientId="t" + table["patientId"]) for table in second[:2]]
    people = pd.Series("t" + second.people.index, "t" + second.people.index)
    return Images(*(pd.concat(pair) for pair in zip(first, [*renamed, people], strict=True)))


def losses(every: Images, part: Images | None, test: Simulated, prior: float) -> dict[str, float]:
    """The loss of each rule, and the estimated fraction of positives; part: None to choose on all."""
    images, grid = part or every, make_grid(every.predictions)
    raw = best_threshold(threshold_sweep(images.truth, images.predictions))
    top = top_confidences(images.predictions)
    positive = top.index.isin(images.truth["patientId"])
    estimate, low, high = estimate_prior(count_bins(top, positive), test.by_fold, 200, 0)
    own = measure(images, grid, (1.0,))
    surface = measure_part(part, every, grid, (1.0,)) if part else own
    fraction = float(positive.mean())

    def weighted(fraction: float, surface: Surface = surface) -> float:
        scores = mean_score(surface.found, surface.false_alarms, fraction)
        return float(surface.thresholds[scores[0, 0].argmax()])

    thresholds = {"share": raw, "smoothed": weighted(fraction), "own": weighted(fraction, own)}
    thresholds |= {"em": weighted(estimate), "known": weighted(prior)}
    usual = thresholds["smoothed"] if part else raw
    thresholds["settled"] = usual if low <= fraction <= high else thresholds["em"]
    sweep = threshold_sweep(test.images.truth, test.fused)
    best = sweep["score"].max()
    found: dict[str, float] = {"estimate": estimate, "covered": low <= prior <= high, "oracle": best}
    for rule, threshold in thresholds.items():
        at = point_for_test(test.fused, test.by_fold, threshold).threshold
        place = np.searchsorted(-sweep["threshold"].to_numpy(), -at, side="right") - 1
        found[rule] = best - sweep["score"].iloc[max(place, 0)]
    return found


def main(words: dict[str, str]) -> None:
    quick = words.get("quick") == "true"
    seeds, n = int(words.get("seeds", 2 if quick else 10)), int(words.get("images", 2000 if quick else 3000))
    rows: list[dict[str, Any]] = []
    for name, n_part in CALIBRATION.items():
        for prior in PRIORS:
            for seed in range(seeds):
                rng = np.random.default_rng([seed, round(100 * prior)])
                part = simulate(n_part, TEST_LIKE, SMALL, rng).images
                others = simulate(n if n_part == 1000 else 4 * n_part, TRAINING, 1.0, rng).images
                test = simulate(TEST_IMAGES, (prior, TEST_LIKE[1]), SMALL, rng)
                found = losses(joined(part, others), None if name == "all" else part, test, prior)
                rows.append({"calibrate": name, "prior": prior, **found})
    table = pd.DataFrame(rows)
    print(table.groupby(["calibrate", "prior"]).mean().to_string(float_format="{:.4f}".format))
    for name, own in table.groupby("calibrate"):
        for rule in ("share", "smoothed", "own", "em", "settled", "known"):
            print(f"ratio loss_of_{rule}_to_oracle_on_{name} {own[rule].mean() / own['oracle'].mean():.4f}")
        print(f"ratio error_of_the_estimated_prior_on_{name} {(own['estimate'] / own['prior'] - 1).abs().mean():.4f}")
    at_test = table[np.isclose(table["prior"], 0.36)].groupby("calibrate")[["share", "settled"]].mean()
    for name in ("all", "few"):
        settled = at_test.loc["test_like" if name == "all" else name, "settled"] / at_test.loc[name, "share"]
        print(f"ratio loss_of_settled_on_a_part_to_share_on_{name}_at_36_percent {settled:.4f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
