"""The dataset for Kaggle: its address and metadata, and its content: wheels, code and files of a run."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rsna.core.errors import UserError
from rsna.core.files import write_json

COMPETITION = "rsna-pneumonia-detection-challenge"
SOURCE = Path(__file__).resolve().parents[2]
BUNDLE_JSON = "bundle.json"

# Kaggle's image has Colab's packages and those in kaggle_requirements.txt of the repository Kaggle/docker-python. In
# 2026 the first three are in neither; older images lack the others too. Without internet nothing can be installed.
PACKAGES = {
    "segmentation-models-pytorch": ">=0.4,<0.7",
    "python-gdcm": ">=3.0.24,<4",
    "iterative-stratification": ">=0.1.7",
    "pydicom": ">=3.0,<4",
    "omegaconf": ">=2.3,<3",
    "timm": ">=0.9",
    "safetensors": ">=0.4",
}
# omegaconf 2.3 needs a package without a wheel; the other packages get the versions that the run was made with
FREE_VERSIONS = {"omegaconf": "omegaconf>=2.4,<3"}
PYTHONS = ("3.11", "3.12", "3.13")  # of older, current and probably future images
MANYLINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
DOWNLOAD = ["download", "--no-deps", "--only-binary=:all:"]  # the arguments of pip

# the client only accepts addresses and titles of 6 to 50 characters
MAX_SLUG = 50
PREFIX = "rsna-pneumonia"
LONGEST_SUFFIX = "-inference"


def address_of(run: str, suffix: str = "") -> str:
    """The address of a run's dataset or, with a suffix, kernel: 6 to 50 lower case letters, digits, single hyphens.

    If the run's name has to be changed, four digits of its hash are added, so that `a.b` and `a_b` differ.
    """
    slug, longest = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-"), MAX_SLUG - len(f"{PREFIX}-{LONGEST_SUFFIX}")
    if slug != run or len(slug) > longest:
        slug = f"{slug[: longest - 5].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:4]}"
    return f"{PREFIX}-{slug}{suffix}"


def title_of(address: str) -> str:
    """A title from which Kaggle derives this address."""
    return address.replace("rsna", "RSNA").replace("-", " ")


def user_slug(user: str) -> str:
    """The user's part of Kaggle's addresses, from a user name or the URL of a profile. UserError if it is neither."""
    slug = re.sub(r"^(https?://)?(www\.)?kaggle\.com/", "", user.strip()).strip("/").lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,49}", slug):
        raise UserError(
            f"user={user}: must be your Kaggle user name, the last part of your page's address "
            "(kaggle.com/<user>): letters, digits and '-'"
        )
    return slug


def pins() -> list[str]:
    """Requirements for the bundle's wheels: the installed versions. Raises UserError if a package is not installed."""
    try:
        return [FREE_VERSIONS.get(name, f"{name}=={version(name)}") for name in PACKAGES]
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install -r requirements.txt") from None


def collect_wheels(target: Path, source: str) -> list[str]:
    """Put the wheels of PACKAGES into `target`, from the folder `source` or, if it is "", from pip's index.

    Returns the Python versions for which all wheels were found. Raises UserError if there is no such version.
    """
    if source and not Path(source).is_dir():
        raise UserError(f"wheels={source}: no such folder")
    target.mkdir(parents=True)
    where = ["--no-index", "--find-links", source] if source else ["--retries", "1", "--timeout", "20"]
    wanted = [*(f"--platform={name}_x86_64" for name in MANYLINUX), *pins()]
    words = [*where, "--dest", str(target), *wanted]
    reasons = {python: pip_download([*words, "--python-version", python]) for python in PYTHONS}
    if all(reasons.values()):
        problem = f"wheels={source} lacks some" if source else "is there internet? Without it, set wheels=<folder>"
        download = ["pip", *DOWNLOAD, "--dest", "<folder>", "--python-version", PYTHONS[1], *wanted]
        raise UserError(
            f"no wheels for Kaggle: pip says '{reasons[PYTHONS[0]]}'; {problem}. To fill a folder on a machine with "
            f"internet: {shlex.join(download)}"
        )
    return [python for python, reason in reasons.items() if not reason]


def pip_download(words: Sequence[str]) -> str:
    """Run `pip download` for wheels only, without dependencies; return the reason if it fails, else ""."""
    command = [sys.executable, "-m", "pip", *DOWNLOAD, "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def write_files(files: dict[str, Path], folder: Path, wheels: str) -> list[str]:
    """Put code, licence, files (name in the dataset -> path here) and wheels into a folder; see collect_wheels."""
    shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copyfile(SOURCE.parent / "LICENSE", folder / "LICENSE")
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:  # a hard link is enough: commands replace files by renaming, which does not change the bundle's file
            os.link(path, folder / name)
        except OSError:  # the bundle is on another disk, or on one without hard links
            shutil.copyfile(path, folder / name)
    return collect_wheels(folder / "wheels", wheels)


def write_metadata(folder: Path, user: str, run: str, content: dict[str, Any]) -> None:
    """Write dataset-metadata.json for the client, and `content` as bundle.json for the notebooks."""
    metadata = {
        "title": title_of(address_of(run)),
        "id": f"{user}/{address_of(run)}",
        "subtitle": "Code, wheels and weights of a pneumonia detector",
        "description": "Code under the MIT licence (LICENSE). The weights were trained on the images of the RSNA "
        "Pneumonia Detection Challenge, whose rules hold for them.",
        "licenses": [{"name": "other"}],
    }
    write_json(metadata, folder / "dataset-metadata.json")
    write_json(content, folder / BUNDLE_JSON)
