"""The one place for every setting: its default, its meaning, and the stage whose output it changes."""

import difflib
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsna.core.errors import UserError, end_with_one_line
from rsna.core.phases import Phase, parse_phases
from rsna.core.validation import check, parse_folds

WORKSPACE = Path(__file__).resolve().parents[3]


def setting(default: Any, stage: str, meaning: str) -> Any:
    """A dataclass field that knows the stage whose result it changes (or stages: `a, b`) and what the help says."""
    return field(default=default, metadata={"stage": stage, "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Every setting of every stage; `python src/<stage>.py help` prints this table."""

    # which run
    name: str = setting("resnet34", "run", "name of the run: working/<name>/ and submissions/<name>.csv")
    fold: str = setting("all", "run", "folds to work on: all, 3, 0,2 or 0..4 (both ends)")
    preset: str = setting("", "run", "start from named settings: demo, fastai, or fastai,demo (the later ones win)")
    device: str = setting("auto", "run", "auto (GPU if there is one), cpu, cuda, cuda:1, mps")
    workers: int = setting(
        -1, "run", "processes that decode and load; -1: one per core, 0: none (as training on a CPU)"
    )
    jobs: int = setting(1, "run", "folds trained at the same time; they share the cores")
    memory: float = setting(0.5, "run", "keep the decoded images in memory if they take no more than this share of it")
    strict: bool = setting(False, "run", "end with an error if one image is refused; false: if more than 5 % are")
    only_test: bool = setting(False, "run", "cache and predict test images only; validation tables stay as they are")
    compile: bool = setting(False, "run", "compile the network for training (torch.compile; needs a C++ compiler)")

    # where
    root: str = setting(str(WORKSPACE), "where", "folder that the four folders below are in")
    input: str = setting("${root}/input", "where", "the competition's files as Kaggle unzips them; only read")
    folds: str = setting("${root}/folds", "where", "folder of folds.csv")
    working: str = setting("${root}/working", "where", "image cache and runs")
    submissions: str = setting("${root}/submissions", "where", "folder of the submissions")

    # folds and cache
    n_folds: int = setting(5, "folds", "number of folds")
    seed: int = setting(42, "folds", "the one seed: folds, weights, augmentation, demo")
    size: int = setting(512, "cache", "side of the square cached images and of the network's input, pixels")

    # training
    encoder: str = setting("resnet34", "train", "an encoder of segmentation-models-pytorch")
    weights: str = setting("imagenet", "train", "encoder's start: imagenet (downloaded), none (random), or a file")
    precision: str = setting(
        "auto",
        "train, predict",
        "of training and prediction: float32, bfloat16 (mixed), auto (bfloat16 where the device multiplies in it)",
    )
    head: str = setting("places", "train", "places: a box at each place of a map; flat: the fast.ai post's, one box")
    epochs: int = setting(12, "train", "passes over the training images")
    batch_size: int = setting(8, "train", "images per step")
    lr: float = setting(1e-3, "train", "peak learning rate of the head, AdamW with one cycle")
    encoder_lr: float = setting(0.3, "train", "share of lr that a pretrained encoder gets; a random one gets all of it")
    phases: str = setting(
        "",
        "train",
        "instead of epochs and lr: part:epochs:rates:schedule,... such as head:3:1e-3,all:9:1e-4/1e-3:cosine",
    )
    weight_decay: float = setting(1e-2, "train", "AdamW weight decay")
    clip: float = setting(5.0, "train", "largest norm of the gradient; longer ones are shortened to it; 0: as they are")
    start_at_mean: bool = setting(
        True, "train", "begin with the mean box and the class rates as the answer to every image"
    )
    classes: int = setting(3, "train", "3: normal, not normal, opacity; 2: opacity or not")
    full_image_negatives: bool = setting(
        False, "train", "regress images without a box to the whole image, as the fast.ai post does (head=flat only)"
    )
    box_weight: float = setting(
        1.0, "train", "weight of the box and place losses (positives only) beside cross-entropy; head=places"
    )
    dropout: float = setting(0.2, "train", "dropout before the head's last layer (head=flat: before both its layers)")
    flip: float = setting(0.5, "train", "augmentation: chance of a left-right flip")
    rotate: float = setting(7.0, "train", "augmentation: largest rotation, degrees")
    shift: float = setting(0.06, "train", "augmentation: largest shift, share of the side")
    zoom: float = setting(0.1, "train", "augmentation: largest change of scale, 0.1: from 0.9 to 1.1")
    light: float = setting(0.15, "train", "augmentation: largest change of brightness, contrast and gamma")

    # prediction and ensemble
    checkpoint: str = setting("best", "predict", "best (highest validation mAP) or last")
    tta: str = setting("plain,hflip", "predict", "views that are predicted and fused: plain, hflip")
    tta_scales: str = setting("1.0", "predict", "zooms of each view, such as 1.0,0.9")
    fusion_iou: float = setting(0.4, "predict", "boxes that overlap more than this speak of the same place")
    elsewhere: float = setting(
        0.75, "predict", "share of its confidence that a member adds to a box that it puts elsewhere"
    )
    max_boxes: int = setting(1, "predict", "boxes kept of each image after fusion, most confident first")
    box_scale: float = setting(1.0, "ensemble", "sides of the fused boxes times this; evaluate says what would pay")
    runs: str = setting("", "ensemble", "fuse these runs' tables instead of this run's folds: a,b")

    # scores and submission
    threshold: str = setting("auto", "submit", "smallest confidence submitted: auto (from scores.json) or a number")
    bootstrap: int = setting(1000, "evaluate", "resamples behind each 95 % interval")
    predictions: str = setting("", "evaluate", "score this table or submission instead of the run's own")
    labels: str = setting("", "evaluate", "labels CSV to score predictions= against; default: the training labels")
    test_labels: str = setting("${root}/test_labels.csv", "evaluate", "test truth, if you have it (the demo does)")

    # the Kaggle kernels
    user: str = setting("", "kaggle", "your Kaggle user name, as in kaggle.com/<user>; for make_kernel")
    wheels: str = setting("", "kaggle", "folder of wheels for the kernels; default: pip downloads them")
    push: bool = setting(False, "kaggle", "upload, run the inference kernel and submit, with your own Kaggle token")

    # the synthetic competition
    demo_train: int = setting(300, "demo", "training images of the synthetic competition")
    demo_test: int = setting(80, "demo", "test images of the synthetic competition")

    @property
    def fold_list(self) -> list[int]:
        """The folds that `fold` names, ascending."""
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
        """Cache of this size: {train,test}/<patientId>.png and index.csv."""
        return Path(self.working) / f"png_{self.size}"

    @property
    def headers_csv(self) -> Path:
        return Path(self.working) / "headers.csv"

    @property
    def run_dir(self) -> Path:
        return Path(self.working) / self.name

    def fold_dir(self, fold: int) -> Path:
        return self.run_dir / f"fold{fold}"

    @property
    def submission_csv(self) -> Path:
        return Path(self.submissions) / f"{self.name}.csv"

    def of_stage(self, *stages: str) -> dict[str, Any]:
        """The settings that change the result of the named stages, by name."""
        asked = set(stages)
        return {f.name: getattr(self, f.name) for f in fields(self) if asked & set(f.metadata["stage"].split(", "))}


PRESETS: dict[str, dict[str, str]] = {
    # small pictures and few folds: the whole sequence in minutes on two cores, in a workspace of its own under demo/
    "demo": {
        "name": "demo",
        "root": str(WORKSPACE / "demo"),
        "weights": "none",
        "size": "64",
        "n_folds": "2",
        "epochs": "10",
        "jobs": "2",
    },
    # the recipe of the fast.ai post in all but lighting: no test-time views, no clipping, Adam (AdamW without decay)
    "fastai": {
        "name": "fastai",
        "head": "flat",
        "size": "512",
        "batch_size": "8",
        "classes": "2",
        "full_image_negatives": "true",
        "start_at_mean": "false",
        "dropout": "0.5",
        "phases": "head:3:1e-3:triangle,last2:5:2e-6/2e-5/2e-4:triangle,all:10:1e-6/1e-5/1e-4:triangle",
        "weight_decay": "0",
        "clip": "0",
        "flip": "0.5",
        "rotate": "30",
        "shift": "0",
        "zoom": "0",
        "light": "0.1",
        "tta": "plain",
    },
}

PATHS = ("root", "input", "folds", "working", "submissions", "predictions", "labels", "test_labels", "wheels")


def load_config(arguments: list[str] | None = None) -> Config:
    """Read `key=value` words (default: the command line) into a checked Config.

    The word `help` prints every setting and leaves with status 0; a word that is wrong is explained in
    one line and leaves with status 2. Also makes errors meant for people end without a traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    end_with_one_line()
    if any(word.lstrip("-") in ("help", "h") for word in words):
        print(help_text())
        raise SystemExit(0)
    try:
        return parse(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(words: list[str]) -> Config:
    """Turn `key=value` words into a Config. Raises UserError with the remedy."""
    given = dict(split_word(word) for word in words)
    preset = preset_words(given.get("preset", ""))
    if {**preset, **given}.get("phases") and (idle := {"epochs", "lr"} & set(given)):
        raise UserError(f"{min(idle)}= has no effect here: phases= names epochs and rates; change or leave out phases=")
    for key in PATHS:
        if given.get(key):
            given[key] = str(Path(given[key]).expanduser().absolute())
    if given.get("weights", "none") not in ("none", "imagenet"):
        given["weights"] = str(Path(given["weights"]).expanduser().absolute())
        if not Path(given["weights"]).is_file():
            raise UserError(f"weights={given['weights']}: no such file; or say weights=imagenet or weights=none")
    schema = OmegaConf.structured(Config)
    OmegaConf.set_readonly(schema, False)
    for key, value in {**preset, **given}.items():
        try:
            OmegaConf.update(schema, key, value)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value}: {explain_value(key, str(error))}") from None
    try:
        config = OmegaConf.to_object(schema)
    except OmegaConfBaseException as error:
        raise UserError(f"settings: {str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    check(vars(config))
    return config


def preset_words(names: str) -> dict[str, str]:
    """The settings of presets joined by commas; the later ones win. Raises UserError for one that is not there."""
    words: dict[str, str] = {}
    for name in names.split(",") if names else []:
        if name not in PRESETS:
            raise UserError(f"preset={name}: there is no such preset; there is {', '.join(PRESETS)}")
        words |= PRESETS[name]
    return words


def command(cfg: Config, stage: str, **changes: str) -> str:
    """What to type to run a stage with these very settings, but for `changes`."""
    usual = parse([word for word in (f"preset={cfg.preset}", f"root={cfg.root}") if not word.endswith("=")])
    here = {} if cfg.root in (str(WORKSPACE), preset_words(cfg.preset).get("root")) else {"root": cfg.root}
    preset = {"preset": cfg.preset} if cfg.preset else {}
    differing = {f.name: getattr(cfg, f.name) for f in fields(Config) if getattr(cfg, f.name) != getattr(usual, f.name)}
    words = {**preset, **here, **differing, **changes}
    return shlex.join(["./run.sh", stage, *(f"{key}={value}" for key, value in words.items())])


def split_word(word: str) -> tuple[str, str]:
    """`key=value` -> (key, value). Raises UserError for any other word and for unknown keys."""
    key, equals, value = word.partition("=")
    names = [f.name for f in fields(Config)]
    if not equals:
        raise UserError(f"'{word}': settings are written key=value; 'help' lists them")
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "'help' lists the settings"
        raise UserError(f"{word}: there is no setting '{key}'; {hint}")
    return key, value


def explain_value(key: str, reason: str) -> str:
    kind = next(f.type for f in fields(Config) if f.name == key)
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return f"{key} is {names[kind]}" if kind in names else reason.splitlines()[0]


def help_text() -> str:
    """Every setting with its default and meaning."""
    lines = ["settings, written key=value:"]
    for f in fields(Config):
        default = str(f.default) or "''"
        lines.append(f"  {f.name + '=' + default:<36} {f.metadata['meaning']}")
    for name, overrides in PRESETS.items():
        words = " ".join(f"{key}={value}" for key, value in overrides.items())
        lines.append(f"preset={name} is: {words}")
    return "\n".join(lines).replace(str(WORKSPACE), "<this workspace>")
