"""Presets: named sets of settings that replace the defaults."""

from pathlib import Path

from rsna.core.errors import UserError

WORKSPACE = Path(__file__).resolve().parents[3]

SEVERAL_BOXES = {"max_boxes": "4", "missing_weight": "0", "gate": "auto"}

# fmt: off
PRESETS: dict[str, dict[str, str]] = {
    # small images and few folds: all commands take minutes on two cores; the workspace is demo/
    "demo": {
        "name": "demo", "root": str(WORKSPACE / "demo"), "weights": "none", "size": "64", "n_folds": "2",
        "epochs": "10", "jobs": "2",
    },
    # as in the fast.ai post, except for brightness: no test-time augmentation or gradient clipping; Adam (AdamW without
    # weight decay)
    "fastai": {
        "name": "fastai", "model": "fastai", "size": "512", "batch_size": "8", "num_classes": "2",
        "full_image_negatives": "true", "prior_init": "false", "freeze_bn": "false",
        "phases": "head:3:1e-3:one_cycle_legacy,last2:5:2e-6/2e-5/2e-4:one_cycle_legacy,"
        "all:10:1e-6/1e-5/1e-4:one_cycle_legacy",
        "weight_decay": "0", "grad_clip": "0", "flip": "0.5", "rotate": "30", "translate": "0", "scale": "0",
        "brightness_contrast": "0.1", "tta": "plain",
    },
    # several boxes per image, so a view or model without a certain box adds nothing to its confidence
    "detector": {"name": "detector", "model": "detector", **SEVERAL_BOXES},
    "single_box": {"name": "single_box", "model": "single_box"},
    "classifier": {"name": "classifier", "model": "classifier"},
    # for the submission: boxes of two models, gated by the class probabilities of three; docs/experiments.md explains
    # the weight
    "best": {"name": "best", "members": "detector,single_box:0.25,classifier", **SEVERAL_BOXES},
}
# fmt: on


def preset_words(names: str) -> dict[str, str]:
    """The settings of one or more presets, separated by commas; the last one wins. UserError for an unknown preset."""
    words: dict[str, str] = {}
    for name in names.split(",") if names else []:
        if name not in PRESETS:
            raise UserError(f"preset={name}: there is no such preset; there are {', '.join(PRESETS)}")
        words |= PRESETS[name]
    return words
