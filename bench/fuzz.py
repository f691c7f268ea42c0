"""Damaged DICOM files by the thousand through the decoder: no crash of the run, no hang, no growing memory.

    python bench/fuzz.py [files=20000] [seed=0] [input=<folder with .dcm files>] [quick=true]

Each file is a whole one (all transfer syntaxes of the tests, the files that come with pydicom, and those of input=)
with bytes changed, cut out, doubled or cut off, in the header or anywhere. It goes through what cache_images does with
a file: decoded to a square, or refused with a reason. Reported: how many of each, the slowest file, memory in the
second tenth and at the end, and how often a decoder took its process with it, which costs a run that one file.
"""

import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from helpers.dicom_files import GDCM_SYNTAXES, radiograph, write_dicom
from pydicom import uid

from rsna.core.command_line import parse
from rsna.data.cache import cache_image
from rsna.execution.processes import map_files

SIZE = 64
TIME_LIMIT = 5.0  # of processor time, as it is limited, for a file of a few kilobytes; whole ones take milliseconds
NATIVE = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.JPEGBaseline8Bit]


class Outcome(NamedTuple):
    name: str
    status: str  # ok, refused, died
    reason: str
    seconds: float
    megabytes: float  # resident memory of the process afterwards


def write_seeds(folder: Path, given: str) -> list[Path]:
    """Whole files to start from, none above 60 kB: bytes that matter should be hit often."""
    own = [write_dicom(folder / f"{uid.UID(s).name}.dcm", radiograph(48, 40), s) for s in [*NATIVE, *GDCM_SYNTAXES]]
    wide = radiograph(48, 40).astype("uint16") * 16
    own += [
        write_dicom(folder / f"{uid.UID(s).name} 12.dcm", wide, s, BitsStored=12)
        for s in [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless]
    ]
    others = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
    others += sorted(Path(given).rglob("*.dcm")) if given else []
    small = [path for path in others if path.stat().st_size < 60_000]
    return own + [path for path in small if "PixelData" in pydicom.dcmread(path, force=True)]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Few changes; a third of the files have them in the first kilobyte, where the header is."""
    data = bytearray(content)
    reach = min(len(data), 1000) if rng.random() < 0.33 else len(data)
    for _ in range(rng.choice((1, 1, 2, 3, 10))):
        at, kind = rng.randrange(reach), rng.random()
        if kind < 0.6:
            data[at : at + 1] = bytes(
                [rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256), data[at] ^ (1 << rng.randrange(8))))]
            )
        elif kind < 0.75:
            del data[at : at + rng.randint(1, 16)]
        elif kind < 0.9:
            data[at:at] = data[at : at + rng.randint(1, 16)]
        else:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
        reach = min(reach, len(data)) or 1
        if not data:
            break
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def decode(path: Path, cache: Path) -> Outcome:
    """What cache_images does with a file, timed."""
    start = time.process_time()
    row = cache_image(path, cache, SIZE, TIME_LIMIT)
    seconds = time.process_time() - start
    return Outcome(path.stem, row["status"], row["reason"], seconds, resident())


def resident() -> float:
    """Memory of this process in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def died(path: Path) -> Outcome:
    return Outcome(path.stem, "died", "the process that decoded it died", 0.0, 0.0)


def run(files: int, seed: int, given: str) -> list[Outcome]:
    """Write damaged files and decode them, in processes that live as long as a file does not kill them."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, cache = folder / "stage_2_train_images", folder / "cache"
        for path in (source, cache / "train", folder / "seeds"):
            path.mkdir(parents=True)
        seeds = [
            (re.sub(r"[^\w.]+", "_", path.stem), path.read_bytes()) for path in write_seeds(folder / "seeds", given)
        ]
        print(f"{len(seeds)} whole files to start from, {files} damaged ones, seed {seed}")
        paths = []
        for number in range(files):
            stem, content = rng.choice(seeds)
            paths.append(source / f"{number:06}-{stem}.dcm")
            paths[-1].write_bytes(mutate(content, rng))
        return list(map_files(partial(decode, cache=cache), paths, parse([]), "damaged files", died))


def main(words: dict[str, str]) -> None:
    files = int(words.get("files", 1000 if words.get("quick") == "true" else 20_000))
    outcomes = run(files, int(words.get("seed", 0)), words.get("input", ""))
    kinds = Counter(outcome.status for outcome in outcomes)
    print("  ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    deadly = Counter(outcome.name.split("-", 1)[1] for outcome in outcomes if outcome.status == "died")
    print(f"took their process with them: {dict(deadly)}")
    for reason, count in Counter(" ".join(o.reason.split()[:6]) for o in outcomes if o.reason).most_common(12):
        print(f"{count:6} {reason} ...")
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"slowest: {slowest.seconds:.2f} s, {slowest.name}: {slowest.status} {slowest.reason}")
    alive = [outcome.megabytes for outcome in outcomes if outcome.status != "died"]
    tenth = max(1, len(alive) // 10)
    early, late = statistics.median(alive[tenth : 2 * tenth]), statistics.median(alive[-tenth:])
    print(f"memory of a process: {early:.0f} MB in the second tenth, {late:.0f} MB in the last (medians)")
    print(f"ratio answered_to_files {len(outcomes) / files:.4f}")
    print(f"ratio time_limit_to_slowest_file {TIME_LIMIT / slowest.seconds:.2f}")
    print(f"ratio late_to_early_memory {late / early:.2f}")
    if len(outcomes) != files or slowest.seconds > 2 * TIME_LIMIT or late > 1.5 * early:
        sys.exit("a file was lost, took too long, or memory grew")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
