"""All settings and their defaults, one dataclass per concern. command_line.py reads them from the command line."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rsna.core.phases import Phase, parse_phases
from rsna.core.presets import WORKSPACE
from rsna.core.validation import parse_folds, parse_weights


def setting(default: Any, meaning: str, common: bool = False, limits: tuple[float, float] | None = None) -> Any:
    """A dataclass field with its help text. `help` prints the common settings, `help all` prints all.

    limits: smallest and largest value of a model's own setting; those of other settings are in validation.RANGES.
    """
    return field(default=default, metadata={"meaning": meaning, "common": common, "limits": limits})


@dataclass(frozen=True)
class RunSettings:  # which run, and on which machine; these do not change results
    name: str = setting("resnet34", "name of the run: working/<name>/ and submissions/<name>.csv", common=True)
    fold: str = setting("all", "folds to work on: all, 3, 0,2 or 0..4 (both ends included)", common=True)
    preset: str = setting(
        "",
        "named settings: best, detector, single_box, classifier, fastai, demo, or fastai,demo (the last wins)",
        common=True,
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps", common=True)
    jobs: int = setting(1, "folds, or trials of tune, at the same time, one GPU each; -1: one per GPU", common=True)
    engine: str = setting("local", "local, or ray: files and folds as tasks on a Ray cluster; see docs/cluster.md")
    address: str = setting("auto", "of the Ray cluster: auto (this machine's), host:port, or ray://host:port")
    gpus: float = setting(1.0, "GPUs of a fold on a Ray cluster; 0.5: two folds share one")
    workers: int = setting(-1, "processes that decode images, and load them for a GPU; -1: one per core, 0: none")
    memory: float = setting(0.5, "keep a fold's images in memory if they need at most this fraction of it; 0: never")
    strict: bool = setting(False, "stop if a single image cannot be decoded; false: if more than 5 % cannot")
    only_test: bool = setting(False, "cache and predict the test images only; validation tables stay as they are")
    tracker: str = setting("none", "show training in tensorboard, wandb or mlflow; see docs/tuning.md")
    compile: bool = setting(False, "compile the network for training (torch.compile; needs a C++ compiler)")


@dataclass(frozen=True)
class PathSettings:  # where files are; relative paths start at the current directory
    root: str = setting(str(WORKSPACE), "the workspace: the folder that holds the four folders below", common=True)
    input: str = setting("${root}/input", "the competition's files as Kaggle unzips them; only read", common=True)
    folds: str = setting("${root}/folds", "folder of folds.csv")
    working: str = setting("${root}/working", "image cache and runs")
    submissions: str = setting("${root}/submissions", "folder of the submissions")


@dataclass(frozen=True)
class FoldSettings:  # how images are assigned to folds
    n_folds: int = setting(5, "number of folds", common=True)


@dataclass(frozen=True)
class SeedSettings:  # what makes random choices repeatable
    seed: int = setting(42, "the one seed: folds, initial weights, augmentation, bootstrap, demo", common=True)


@dataclass(frozen=True)
class CacheSettings:  # how images are cached
    size: int = setting(512, "side of the cached images and of the network's input, pixels", common=True)


@dataclass(frozen=True)
class ModelSettings:  # which network; a model's own settings are in its file, and `help all` lists them
    model: str = setting(
        "single_box", "single_box, detector, classifier, fastai (the post's): a file of src/rsna/models", common=True
    )
    encoder: str = setting("resnet34", "an encoder of segmentation-models-pytorch", common=True)
    num_classes: int = setting(3, "3: normal, not normal, opacity; 2: no opacity, opacity")


@dataclass(frozen=True)
class ComputeSettings:  # the precision of a network in training and prediction
    precision: str = setting("auto", "float32, bfloat16 (mixed), auto (bfloat16 where the device supports it)")


@dataclass(frozen=True)
class TrainSettings:  # how a network is trained
    weights: str = setting("imagenet", "initial encoder weights: imagenet (downloaded), none, or a file", common=True)
    epochs: int = setting(12, "passes over the training images", common=True)
    batch_size: int = setting(8, "images per step of a fold", common=True)
    lr: float = setting(1e-3, "peak learning rate of the head, AdamW with one cycle", common=True)
    encoder_lr: float = setting(0.3, "fraction of lr for a pretrained encoder; a random one gets all of it")
    freeze_bn: bool = setting(True, "a pretrained encoder keeps the statistics of its batch normalisation")
    phases: str = setting(
        "", "instead of epochs and lr: part:epochs:lrs:schedule,... such as head:3:1e-3,all:9:1e-4/1e-3:cosine"
    )
    weight_decay: float = setting(1e-2, "AdamW weight decay")
    grad_clip: float = setting(5.0, "largest norm of the gradient; 0: no limit")
    prior_init: bool = setting(True, "initialise the biases with the mean box and the class frequencies")


@dataclass(frozen=True)
class AugmentSettings:  # how training images are augmented
    flip: float = setting(0.5, "probability of a horizontal flip")
    rotate: float = setting(7.0, "largest rotation, degrees")
    translate: float = setting(0.06, "largest translation, fraction of the side")
    scale: float = setting(0.1, "largest change of scale; 0.1: from 0.9 to 1.1")
    brightness_contrast: float = setting(0.15, "contrast x 0.85 to 1.15; log gamma as much, brightness half as much")


@dataclass(frozen=True)
class PredictSettings:  # which checkpoint predicts, and from which views
    checkpoint: str = setting("best", "best (highest validation mAP; without boxes: lowest loss) or last")
    tta: str = setting("plain,hflip", "test-time augmentation: plain, or plain,hflip", common=True)
    tta_scales: str = setting("1.0", "zooms of each view about its centre, 0.5 to 2, 1.0 among them: 1.0,0.9")


@dataclass(frozen=True)
class FusionSettings:  # how the boxes of views, folds and runs are fused into one set per image
    wbf_iou: float = setting(0.4, "weighted boxes fusion: boxes that overlap by more than this IoU are merged")
    missing_weight: float = setting(
        0.75, "fraction of its highest confidence that a view or model adds to a box it does not have"
    )
    gate: str = setting(
        "none",
        "what class probabilities do to confidences: none; alpha,beta: confidence^alpha * p^(1 - alpha), "
        "p = p_opacity + beta * p_not_normal; auto: chosen out of fold",
    )
    max_boxes: int = setting(1, "boxes kept per image after fusion, most confident first", common=True)
    runs: str = setting("", "fuse these runs instead of the folds of this one: a,b or a,b:0.25 (weight)", common=True)
    members: str = setting("", "presets that are fused, each trained as a run <name>_<preset>; weights as with runs=")


@dataclass(frozen=True)
class EvaluationSettings:  # how predictions are scored
    bootstrap: int = setting(1000, "resamples behind each 95 % interval")
    calibrate: str = setting(
        "auto", "images that the threshold is chosen on: all, test_like (the last 1,000), a file of patientIds, or auto"
    )


@dataclass(frozen=True)
class OperatingPointSettings:  # settings that must be the same for evaluate and make_submission
    box_scale: str = setting(
        "auto", "factor on the sides of the boxes: a number, or auto (chosen with the threshold; 1 with calibrate=all)"
    )


@dataclass(frozen=True)
class SubmissionSettings:  # which predictions are submitted
    threshold: str = setting("auto", "smallest confidence submitted: auto, or a number", common=True)
    prior: str = setting("auto", "fraction of test images with an opacity: auto (estimated), a number, or none")


@dataclass(frozen=True)
class ScoringSettings:  # predictions and labels to score, other than a run's out-of-fold predictions
    predictions: str = setting("", "evaluate: score this table or submission instead of the run's own")
    labels: str = setting("", "evaluate: labels CSV to score predictions= against; default: the training labels")
    test_labels: str = setting("${root}/test_labels.csv", "labels of the test images, if you have them")


@dataclass(frozen=True)
class InferSettings:  # what infer predicts, and what it writes
    images: str = setting("", "infer: a DICOM, PNG or JPEG file, a folder, or a pattern such as 'scans/**/*.dcm'")
    output: str = setting("", "infer: folder of the results; default: a folder in working/<name>/infer/")
    overlays: str = setting("boxes", "infer: images that are drawn: boxes (those with a box), all, none")
    format: str = setting("table", "infer: table, or dicom-sr: also a DICOM Structured Report per DICOM with a box")


@dataclass(frozen=True)
class KaggleSettings:  # what make_kernel needs
    user: str = setting("", "make_kernel: your Kaggle user name, as in kaggle.com/<user>")
    wheels: str = setting("", "make_kernel: folder of wheels; default: pip downloads them")
    push: bool = setting(False, "make_kernel: upload, run the inference kernel and submit, with your Kaggle token")


@dataclass(frozen=True)
class TuneSettings:  # the search for better settings
    space: str = setting("", 'tune: settings to vary, "lr=1e-4..3e-3:log fpn_channels=64|128"')
    trials: int = setting(30, "tune: trials, with those that were pruned")


@dataclass(frozen=True)
class DemoSettings:  # the synthetic competition
    demo_train: int = setting(300, "training images of the synthetic competition")
    demo_test: int = setting(80, "test images of the synthetic competition")
    shift: bool = setting(False, "make_demo: the last fifth of the training images and the test set as the real test")


# fmt: off
@dataclass(frozen=True)
class Config(
    RunSettings, PathSettings, FoldSettings, SeedSettings, CacheSettings, ModelSettings, ComputeSettings,
    TrainSettings, AugmentSettings, PredictSettings, FusionSettings, EvaluationSettings, OperatingPointSettings,
    SubmissionSettings, ScoringSettings, InferSettings, TuneSettings, KaggleSettings, DemoSettings,
):
    # fmt: on
    """All settings of all commands, and the paths that follow from them.

    model_settings: the chosen model's own settings that differ from the defaults in its file, or that a preset sets.
    typed: the original values of settings that `at` replaced.
    member_configs: the Config of each of `members`, with all settings that it is trained with.
    """

    model_settings: dict[str, Any] = field(default_factory=dict)
    member_configs: list[Any] = field(default_factory=list)
    typed: dict[str, Any] = field(default_factory=dict)

    @property
    def fold_list(self) -> list[int]:
        """The folds that `fold` selects, sorted."""
        return parse_folds(self.fold, self.n_folds)

    @property
    def phase_list(self) -> list[Phase]:
        """The phases of training, in order."""
        return parse_phases(self.phases or f"all:{self.epochs}:{self.lr!r}:onecycle")

    @property
    def total_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phase_list)

    @property
    def folds_csv(self) -> Path:
        return Path(self.folds) / "folds.csv"

    @property
    def cache_dir(self) -> Path:
        """The cache of images of this size: {train,test}/<patientId>.png and index.csv."""
        return Path(self.working) / f"png_{self.size}"

    @property
    def run_dir(self) -> Path:
        return Path(self.working) / self.name

    def fold_dir(self, fold: int) -> Path:
        return self.run_dir / f"fold{fold}"

    def at(self, **place: Any) -> "Config":
        """The same config for a process in some place, such as on one GPU; commands in its messages do not show it."""
        return replace(self, **place, typed={key: getattr(self, key) for key in place})

    def of_run(self, name: str) -> "Config":
        """The same config for another run, which fuses only its own folds."""
        return replace(self, name=name, runs="", members="", member_configs=[])

    @property
    def trained_runs(self) -> list["Config"]:
        """The runs that `train` and `predict` work on: the members, or the run itself."""
        return self.member_configs or [self]

    @property
    def fused_runs(self) -> list["Config"]:
        """The runs whose predictions are fused: the members, the runs in runs=, or the run itself."""
        return self.member_configs or [self.of_run(name) for name in parse_weights(self.runs) or [self.name]]

    @property
    def fusion_weights(self) -> list[float]:
        """The weight of each of `fused_runs` in box fusion."""
        return list(parse_weights(self.members or self.runs).values()) or [1.0]

    @property
    def is_demo(self) -> bool:
        return "demo" in self.preset.split(",")

    @property
    def submission_csv(self) -> Path:
        return Path(self.submissions) / f"{self.name}.csv"

    def only(self, *groups: type) -> dict[str, Any]:
        """Name -> value of the settings in these groups (dataclasses); with ModelSettings also the model's own."""
        names = [f.name for group in groups for f in fields(group)]
        of_model = self.model_settings if ModelSettings in groups else {}
        return {name: getattr(self, name) for name in names} | of_model


# settings that are the path of a file, unless they are one of these words
FILE_OR_WORD = {"weights": ("imagenet", "none"), "calibrate": ("auto", "all", "test_like")}
# in the order of the help text
GROUPS: tuple[type, ...] = Config.__bases__
NAMES = tuple(f.name for group in GROUPS for f in fields(group))
