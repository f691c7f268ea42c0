"""The code cells of the notebooks for Kaggle, which mostly run commands. notebooks.py fills in `$name`."""

WHERE = """\
import json, os, shutil, subprocess, sys
from pathlib import Path

# Kaggle's folders; set KAGGLE_FOLDER to try the notebook in a copy of them
KAGGLE = Path(os.environ.get("KAGGLE_FOLDER", "/kaggle"))
OUTPUT = KAGGLE / "working"         # what Kaggle keeps
WORKSPACE = KAGGLE / "temp/rsna"    # removed after the session, with the image cache

def attached(*places):
    # older and newer kernels have their inputs in different places
    for place in places:
        if (KAGGLE / "input" / place).is_dir():
            return KAGGLE / "input" / place
    raise FileNotFoundError(f"{places[0]} is not attached to this notebook: Add input, at the right")

COMPETITION = attached("$competition", "competitions/$competition")
BUNDLE = attached("$address", "datasets/$user/$address")

def part(name):
    # Kaggle unpacks folders that were uploaded as archives; if it did not, unpack here
    archive = BUNDLE / f"{name}.zip"
    if archive.is_file():
        shutil.unpack_archive(archive, WORKSPACE / "bundle" / name)
        return WORKSPACE / "bundle" / name
    return BUNDLE / name

WORKSPACE.mkdir(parents=True, exist_ok=True)
OUTPUT.mkdir(parents=True, exist_ok=True)
SOURCE = part("src")
print(f"images {COMPETITION}\\ncode   {SOURCE}\\noutput {OUTPUT}")"""

PACKAGES = """\
PACKAGES = $packages
pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", str(part("wheels"))]
pip += ["--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off"]
done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True)
print(done.stdout + done.stderr)
if done.returncode:
    made_for = ", ".join(json.loads((BUNDLE / "bundle.json").read_text())["pythons"])
    raise RuntimeError(f"pip failed; the wheels are for Python {made_for}, this is {sys.version.split()[0]}")"""

SETTINGS = """\
SETTINGS = $words
PATHS = [f"root={WORKSPACE}", f"input={COMPETITION}", f"submissions={OUTPUT}"]
os.environ |= {"TQDM_DISABLE": "1", "TQDM_MININTERVAL": "30", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

def run(name, *words):
    command = [sys.executable, str(SOURCE / f"{name}.py"), *SETTINGS, *PATHS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"{name} ended with status {process.returncode}; see its output above")

import torch
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(f"PyTorch {torch.__version__} on", ", ".join(gpus) or "the CPU")"""

LAY_OUT = """\
trained = part("run")
for path in sorted(trained.rglob("*")):
    place = WORKSPACE / path.relative_to(trained)
    if path.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(path)
        print(place.relative_to(WORKSPACE), f"{path.stat().st_size / 1e6:.1f} MB")"""

FINISH = """\
import pandas as pd

submission = OUTPUT / "submission.csv"
if OUTPUT / "$run.csv" != submission:
    shutil.copyfile(OUTPUT / "$run.csv", submission)
table = pd.read_csv(submission)
print(f"{len(table)} images, {table['PredictionString'].notna().sum()} with a box -> {submission}")
table.dropna().head(10)"""

COMPARE = """\
import hashlib

at_home = json.loads((BUNDLE / "bundle.json").read_text())["submission"]
here = hashlib.sha256(submission.read_bytes()).hexdigest()[:16]
if at_home == here:
    print("the same file, byte for byte, as the one made at home")
elif at_home == "none":
    print("no submission was made at home to compare with")
else:
    print(f"not the file made at home ({at_home}, here {here}): expected on another kind of device, see above,")
    print("or if that file was made with another threshold= than this bundle")"""

PICTURES = """\
from IPython.display import Image

run("show_submission")
Image(filename=str(WORKSPACE / "working/$run/submission.png"))"""

HISTORY = """\
from IPython.display import Image, display

run("show_history")
run("show_results")
for picture in [*(f"{name}/history.png" for name in TRAINED), "$run/results.png"]:
    display(Image(filename=str(WORKSPACE / "working" / picture)))"""

START = """\
folds = part("run") / "folds/folds.csv"
if folds.is_file():
    # the folds of the dataset: they may depend on files that Kaggle does not have
    (WORKSPACE / "folds").mkdir(exist_ok=True)
    shutil.copyfile(folds, WORKSPACE / "folds/folds.csv")
    print("folds from the dataset")
else:
    run("make_folds")
run("cache_images")"""

KEEP = """\
TRAINED = $trains
kept = OUTPUT / "run"
for path in sorted(path for name in {"$run", *TRAINED} for path in (WORKSPACE / "working" / name).rglob("*")):
    if path.suffix in (".csv", ".json", ".png", ".yaml") or path.name in ("best.pt", "last.pt"):
        place = kept / path.relative_to(WORKSPACE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
shutil.copytree(WORKSPACE / "folds", kept / "folds", dirs_exist_ok=True)
print(f"{sum(path.stat().st_size for path in kept.rglob('*') if path.is_file()) / 1e6:.1f} MB -> {kept}")"""
