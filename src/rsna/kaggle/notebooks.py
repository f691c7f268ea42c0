"""The two notebooks for Kaggle: one predicts with a trained run, the other trains it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rsna.core.errors import optional
from rsna.core.files import write_json, write_text
from rsna.kaggle import notebook_cells as code
from rsna.kaggle.bundle import COMPETITION, PACKAGES, address_of, title_of
from rsna.reporting.summary import digits


@dataclass(frozen=True)
class Kernel:
    """The data of a notebook."""

    user: str
    run: str
    words: Sequence[str]  # settings as on the command line, without paths
    scores: dict[str, Any] | None = None  # scores.json
    trains: Sequence[str] = ()  # the runs that are trained: this one, or its members
    weights: str = ""  # name of the file with initial weights in the bundle, if there is one
    internet: bool = False


def inference_notebook(kernel: Kernel) -> Any:
    """The notebook that predicts the test images with the bundle's folds, fuses them and writes submission.csv."""
    return notebook(
        kernel,
        f"# Pneumonia detection: a submission from run `{kernel.run}`\n\n"
        "Reads the competition's test images and the trained folds of the attached dataset; writes `submission.csv`. "
        "It needs a GPU and no internet.\n\n" + score_table(kernel.scores),
        "## Settings\n\nThose of training, prediction and threshold.",
        code.SETTINGS,
        "## The trained folds\n\nLinked to where the commands look for them; the dataset itself is read-only.",
        code.LAY_OUT,
        "## From DICOM to pixels, test images only",
        'run("cache_images", "only_test=true")',
        "## Prediction\n\nEach fold predicts each test image in all views; two GPUs work on two folds at a time.",
        'run("predict", "only_test=true", "jobs=-1")',
        "## Ensemble, threshold, submission\n\nBoxes of the folds are fused. The threshold is chosen on the "
        "out-of-fold predictions in the dataset, which are scored again here.",
        'run("ensemble")\nrun("evaluate")\nrun("make_submission")',
        "## The file to submit",
        code.FINISH,
        "On the same kind of device this is the file that was made at home. GPU and CPU round differently (mixed "
        "precision, order of sums): then confidences can differ in the third digit and boxes by about a pixel.",
        code.COMPARE,
        "## Predictions on test images\n\nThe most and the least confident, and some at random; orange: predicted "
        "boxes and their confidences.",
        code.PICTURES,
    )


def training_notebook(kernel: Kernel) -> Any:
    """The notebook with all commands from the competition's files to submission.csv."""
    return notebook(
        kernel,
        f"# Pneumonia detection: training of run `{kernel.run}`\n\n"
        "Trains the folds on the competition's images and ends with a submission. It needs a GPU"
        + (", and internet for the pretrained weights.\n\n" if kernel.internet else " and no internet.\n\n")
        + "A session ends after 12 hours, and what is not finished by then is not kept: train fewer folds at a time "
        "if they do not fit (`fold=0..1` in the settings).",
        "## Settings",
        code.SETTINGS
        + ("\nSETTINGS += [f\"weights={part('weights') / " + repr(kernel.weights) + '}"]') * bool(kernel.weights),
        "## Folds and image cache",
        code.START,
        "## Training\n\nEach line is an epoch: losses, and scores on the fold's validation images. Two GPUs "
        "train two folds at a time.",
        'run("train", "jobs=-1")',
        "## Prediction, ensemble, scores, submission",
        'run("predict", "jobs=-1")\nfor name in ("ensemble", "evaluate", "make_submission", "summary"):\n    run(name)',
        "## The file to submit",
        code.FINISH,
        "## What to keep\n\nDownload `run/` from the output into your workspace; the commands there continue from it.",
        code.KEEP,
        "## History and predictions\n\nLosses and scores over the epochs; then true (blue) and "
        "out-of-fold predicted (orange) boxes.",
        code.HISTORY,
    )


def notebook(kernel: Kernel, introduction: str, *texts: str) -> Any:
    """Alternating text and code cells, after those that both notebooks start with; same texts, same bytes."""
    packages = "What Kaggle's image lacks comes from the dataset. What it has in a suitable version stays."
    first = (f"{introduction}\n\n## Where things are", code.WHERE, f"## Packages\n\n{packages}", code.PACKAGES)
    requirements = [name + limits for name, limits in PACKAGES.items()]
    lists = {"packages": requirements, "words": kernel.words, "trains": kernel.trains}
    names = {"competition": COMPETITION, "address": address_of(kernel.run), "user": kernel.user, "run": kernel.run}
    names |= {name: "[\n" + "".join(f"    {word!r},\n" for word in words) + "]" for name, words in lists.items()}
    v4 = optional("nbformat.v4")
    cells = []
    for number, text in enumerate(first + texts):
        make = v4.new_code_cell if number % 2 else v4.new_markdown_cell
        cells.append(make(Template(text).substitute(names) if number % 2 else text, id=f"cell-{number}"))
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec, "language_info": {"name": "python"}})


def score_table(scores: dict[str, Any] | None) -> str:
    """The run's out-of-fold scores as Markdown; empty if there are none."""
    if not scores:
        return ""
    low, high = scores["interval"]
    lines = [f"Out of fold: mAP {scores['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}.", ""]
    lines += ["| fold | images | AUC | IoU | mAP |", "|---|---|---|---|---|"]
    for fold in scores["per_fold"]:
        figures = " | ".join(digits(fold[key], ".4f") for key in ("AUC", "IoU", "mAP"))
        lines.append(f"| {fold['fold']} | {fold['images']} | {figures} |")
    return "\n".join(lines)


def write_kernel(content: Any, folder: Path, kernel: Kernel, suffix: str) -> None:
    """Write a notebook and its kernel-metadata.json."""
    address = address_of(kernel.run, suffix)
    path = folder / f"{address}.ipynb"
    write_text(optional("nbformat").writes(content) + "\n", path)
    # fmt: off
    metadata = {
        "id": f"{kernel.user}/{address}", "title": title_of(address), "code_file": path.name,
        "language": "python", "kernel_type": "notebook", "is_private": True,
        "enable_gpu": True, "enable_tpu": False, "enable_internet": kernel.internet,
        # otherwise Kaggle may assign a P100, which current builds of PyTorch do not support
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [f"{kernel.user}/{address_of(kernel.run)}"], "competition_sources": [COMPETITION],
        "kernel_sources": [], "model_sources": [],
    }
    # fmt: on
    write_json(metadata, folder / "kernel-metadata.json")
