"""The patients of the synthetic competition and their images, with the real mix of views and classes."""

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from rsna.data.competition import CLASSES
from rsna.synthetic.canvas import Rng
from rsna.synthetic.phantom import Case

Key = TypeVar("Key")
Cell = tuple[str, str, int]  # view, class, number of boxes
NORMAL, NOT_NORMAL, OPACITY = CLASSES

# counted in the real training images: class, number of boxes -> AP images, PA images
COUNTS = {
    (NORMAL, 0): (1637, 7214),
    (NOT_NORMAL, 0): (5872, 5949),
    (OPACITY, 1): (1664, 950),
    (OPACITY, 2): (2888, 378),
    (OPACITY, 3): (100, 19),
    (OPACITY, 4): (12, 1),
}
MIX = {(view, *cell): counts[k] for k, view in enumerate(("AP", "PA")) for cell, counts in COUNTS.items()}
TOTALS = {kind: sum(n for cell, n in MIX.items() if cell[1] == kind) for kind in CLASSES}
# percent of the images by class, as in the real test set
SHIFTED_PERCENT = {NORMAL: 32, NOT_NORMAL: 32, OPACITY: 36}
SHIFTED_MIX = {cell: n / TOTALS[cell[1]] * SHIFTED_PERCENT[cell[1]] for cell, n in MIX.items()}
BOX_SHRINK = 0.78  # factor on the sides of boxes in shifted images
# images per patient -> percent of patients; mean 2.11; the real tail is longer (up to 65 images, mean 2.33)
IMAGES_PER_PATIENT = {1: 62, 2: 16, 3: 8, 4: 4, 5: 3, 6: 2, 8: 2, 10: 2, 14: 1}
MALE_SHARE = 0.567
AGE_MEAN, AGE_SPREAD, AGES = 47, 17, (2, 92)
# sick patients come back, and lie in bed (AP): this correlates the classes and views of a patient's images
SEVERITY = {NORMAL: 0.0, NOT_NORMAL: 1.0, OPACITY: 2.0, "AP": 0.7, "PA": 0.0}
SEVERITY_SPREAD, RETURN_SPREAD = 1.1, 1.0


@dataclass(frozen=True)
class PatientImage:
    """One image of the competition, and the patient it shows."""

    patient_id: str  # Kaggle's patientId, which is one per image
    patient: int
    follow_up: int
    age: int
    kind: str  # one of CLASSES
    case: Case


def apportion(weights: Mapping[Key, float], count: int) -> dict[Key, int]:
    """Split `count` in proportion to the weights, by the largest remainder method: integers with the sum `count`."""
    total = sum(weights.values())
    exact = {key: count * weight / total for key, weight in weights.items()}
    quota = {key: int(share) for key, share in exact.items()}
    by_remainder = sorted(exact, key=lambda key: quota[key] - exact[key])
    for key in by_remainder[: count - sum(quota.values())]:
        quota[key] += 1
    return quota


def draw_split(count: int, split: int, seed: int, shift: bool) -> list[PatientImage]:
    """The images of a split (0: training, 1: test).

    shift: all test images and the last fifth of the training images have another mix of classes and smaller boxes.
    """
    last = shift * (count if split else max(1, count // 5))
    shifted = draw_patients(last, split + 2, seed, SHIFTED_MIX)
    small = [replace(image, case=replace(image.case, box_scale=BOX_SHRINK)) for image in shifted]
    return draw_patients(count - last, split, seed) + small


def draw_patients(count: int, split: int, seed: int, mix: Mapping[Cell, float] = MIX) -> list[PatientImage]:
    """Draw the `count` images of a split, in random order; no patient is in two splits."""
    rng = np.random.default_rng([seed, split])
    cells = list(Counter(apportion(mix, count)).elements())
    severity = [SEVERITY[kind] + SEVERITY[view] + rng.normal(0, SEVERITY_SPREAD) for view, kind, _ in cells]
    sickest_first = [cells[i] for i in np.argsort(severity)[::-1]]
    # odd patient numbers for one split, even ones for the other; shifted images have a range of their own
    numbers = 2 * rng.permutation(count) + 1 + split % 2 + split // 2 * 10**7
    images: list[PatientImage] = []
    for number, size in zip(numbers, draw_sizes(count, rng), strict=False):
        start = len(images)
        images += draw_patient(int(number), sickest_first[start : start + size], seed, rng)
    return [images[i] for i in rng.permutation(count)]


def draw_sizes(count: int, rng: Rng) -> list[int]:
    """The number of images of each patient, with a sum of at least `count`; large numbers tend to come first."""
    mean = sum(size * share for size, share in IMAGES_PER_PATIENT.items()) / sum(IMAGES_PER_PATIENT.values())
    quota = apportion(IMAGES_PER_PATIENT, max(1, round(count / mean)))
    sizes = np.array(list(Counter(quota).elements()))
    order = np.argsort(-np.log(sizes) + rng.normal(0, RETURN_SPREAD, len(sizes)))
    return [*sizes[order].tolist(), *[1] * (count - int(sizes.sum()))]


def draw_patient(number: int, cells: list[Cell], seed: int, rng: Rng) -> list[PatientImage]:
    """A patient's images, one per cell; the patient ages between visits."""
    sex = "M" if rng.random() < MALE_SHARE else "F"
    age = int(np.clip(rng.normal(AGE_MEAN, AGE_SPREAD), *AGES))
    follow_up = np.cumsum(rng.integers(1, 4, len(cells))) - 1
    images = []
    for visit, (view, kind, n_boxes) in zip(follow_up.tolist(), cells, strict=True):
        patient_id = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        case = Case(sex, view, kind != NORMAL, n_boxes, body_seed=(seed, number))
        images.append(PatientImage(patient_id, number, visit, age + visit // 8, kind, case))
    return images
