"""How training starts on a competition of the challenge's size, and what an epoch costs as the images grow.

    python bench/scale.py [quick=true] [images=26684] [few=600] [rounds=3]

Made-up tables, and PNG files that are a few images under many names. Start-up is the real script's, from the command
until the first step is done, beside what a bare Python needs to import the packages that it cannot do without. The
growth is that of the second epoch's seconds, with validation and scores, from few images to four times as many.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.core.config import WORKSPACE
from rsna.data.cache import INDEX_COLUMNS
from rsna.data.competition import BOX_COLUMNS, CLASSES, FOLD_COLUMNS, LABEL_COLUMNS, LABELS_CSV
from rsna.data.letterbox import write_png

SIDE, SIZE = 1024, 32
PACKAGES = "torch, torchvision, segmentation_models_pytorch, pandas, cv2, pydicom, omegaconf"


def make_workspace(root: Path, n: int) -> None:
    """Tables of n images, a quarter with a box, and their cached images."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**32, n)
    ids = pd.Series([f"{number:08x}-{k:07d}" for k, number in enumerate(numbers)], name="patientId")
    positive = np.arange(n) % 4 == 0
    boxes = np.column_stack([rng.integers(50, 500, (n, 2)), np.tile([200, 300], (n, 1))]).astype(float)
    boxes[~positive] = np.nan
    labels = pd.DataFrame(boxes, columns=BOX_COLUMNS).assign(patientId=ids, Target=positive.astype(int))[LABEL_COLUMNS]
    folds = pd.DataFrame({"patientId": ids, "fold": np.arange(n) % 5, "target": positive.astype(int)})
    folds["n_boxes"], folds["group"] = folds["target"], ids
    folds["class"] = np.where(positive, CLASSES[2], CLASSES[0])
    folds = folds.assign(view="AP", sex="F", age=50)[FOLD_COLUMNS]
    facts = {"split": "train", "rows": SIDE, "cols": SIDE, "transfer_syntax": "1.2", "photometric": "MONOCHROME2"}
    geometry = {"status": "ok", "scale_x": SIZE / SIDE, "scale_y": SIZE / SIDE, "pad_x": 0, "pad_y": 0}
    index = ids.to_frame().assign(**facts, **geometry).reindex(columns=INDEX_COLUMNS)
    cache = root / "working" / f"png_{SIZE}"
    for folder in (root / "input", root / "folds", cache / "train"):
        folder.mkdir(parents=True)
    for table, path in ((labels, root / "input" / LABELS_CSV), (folds, root / "folds" / "folds.csv")):
        table.to_csv(path, index=False)
    index.to_csv(cache / "index.csv", index=False)
    for k in range(4):
        write_png(rng.integers(0, 255, (SIZE, SIZE), dtype=np.uint8), root / f"{k}.png")
    for k, name in enumerate(ids):
        (cache / "train" / f"{name}.png").hardlink_to(root / f"{k % 4}.png")


def command(root: Path, *words: str) -> list[str]:
    own = [f"root={root}", f"size={SIZE}", "weights=none", "fold=0", *words]
    return [sys.executable, str(WORKSPACE / "src" / "train.py"), *own]


def start_up(root: Path) -> tuple[float, float]:
    """Seconds from the command until the progress bar stands there, and until the first step is done."""
    # the bar is drawn on a terminal only; here with every step, so that the first one can be seen
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    environment = os.environ | {"TQDM_MININTERVAL": "0"}
    start, bar, seen = time.perf_counter(), 0.0, b""
    with subprocess.Popen(command(root), stdout=its_end, stderr=its_end, env=environment) as process:
        os.close(its_end)
        while not re.search(rb" [1-9]\d*/\d+ \[", seen):
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # what Linux answers once the command has ended
                sys.exit(seen.decode())
            bar = bar or (time.perf_counter() - start if b" 0/" in seen else 0.0)
        first = time.perf_counter() - start
        process.terminate()
        # a terminal that nobody reads would hold up what the command still prints
        os.close(terminal)
    return bar, first


def imports() -> float:
    start = time.perf_counter()
    # without tidying up at the end, which is no part of a start
    subprocess.run([sys.executable, "-c", f"import os, {PACKAGES}; os._exit(0)"], check=True)
    return time.perf_counter() - start


def epoch_seconds(root: Path) -> float:
    done = subprocess.run(command(root, "epochs=2"), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return float(pd.read_csv(root / "working" / "resnet34" / "fold0" / "seconds.csv")["seconds"].iloc[-1])


def main(words: dict[str, str]) -> None:
    images, few, rounds = (2000, 100, 1) if words.get("quick") == "true" else (26684, 600, 3)
    n, few = int(words.get("images", images)), int(words.get("few", few))
    with tempfile.TemporaryDirectory() as folder:
        make_workspace(Path(folder, "all"), n)
        times = []
        for _ in range(int(words.get("rounds", rounds))):
            bar, first = start_up(Path(folder, "all"))
            bare = imports()
            print(f"{n} images: {bar:.2f} s to the first epoch, {first:.2f} s to its first step; imports {bare:.2f} s")
            times.append((first, bare))
        print(f"start_up_seconds_of_{n}_images {np.median([first for first, _ in times]):.2f}")
        print(f"ratio start_up_to_bare_imports {np.median([first / bare for first, bare in times]):.2f}")
        costs = {}
        for count in (few, 4 * few):
            make_workspace(Path(folder, str(count)), count)
            costs[count] = epoch_seconds(Path(folder, str(count))) / count
            print(f"{count} images: {1e3 * costs[count]:.2f} ms per image and epoch")
        print(f"ratio cost_per_image_of_{4 * few}_to_{few}_images {costs[4 * few] / costs[few]:.2f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
