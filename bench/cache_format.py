"""What a large image cache costs as PNG files, as one memory-mapped array, and as tar shards (WebDataset's form).

    python bench/cache_format.py [quick=true] [images=20000] [size=512] [folder=/tmp]

The images are a few phantoms with noise of one grey level, under as many names as there are images, each a file of its
own. Reading is by one thread, first from the disk (the pages of the files are dropped before), then from memory: PNGs
and rows of the array in random order, shards from the first image to the last, as they can only be read. What a
million would take is projected from the cost per image.
"""

import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from growth import run
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.data.cache import cache_image
from rsna.data.competition import TRAIN_IMAGES, list_images
from rsna.data.letterbox import read_png

Pictures = list[NDArray[np.uint8]]
PER_SHARD, MILLION = 1000, 1_000_000
FILES_OF_A_MILLION = {"png": MILLION, "shards": MILLION // PER_SHARD, "array": 1}


def make_pictures(folder: Path, size: int) -> Pictures:
    """Phantoms as the cache holds them, each with four kinds of noise."""
    run("make_demo", f"root={folder}", "demo_train=10", "demo_test=2")
    (folder / "cache/train").mkdir(parents=True)
    sources, rng = list_images(folder / "input" / TRAIN_IMAGES), np.random.default_rng(0)
    for path in sources:
        cache_image(path, folder / "cache", size)
    plain = [read_png(folder / "cache/train" / f"{path.stem}.png", size) for path in sources]
    noise = [rng.integers(-1, 2, (size, size)) for _ in range(4)]
    return [np.clip(image + own, 0, 255).astype(np.uint8) for image in plain for own in noise]


def write_pngs(folder: Path, pictures: Pictures, n: int) -> None:
    folder.mkdir()
    encoded = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    for k in range(n):
        (folder / f"{k:08d}-0000-4000-8000-000000000000.png").write_bytes(encoded[k % len(encoded)])


def write_array(folder: Path, pictures: Pictures, n: int) -> None:
    folder.mkdir()
    shape = n, *pictures[0].shape
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for k in range(n):
        array[k] = pictures[k % len(pictures)]
    array.flush()


def write_shards(folder: Path, pngs: Path) -> None:
    folder.mkdir()
    paths = sorted(pngs.iterdir())
    for start in range(0, len(paths), PER_SHARD):
        with tarfile.open(folder / f"{start // PER_SHARD:06d}.tar", "w") as shard:
            for path in paths[start : start + PER_SHARD]:
                shard.add(path, path.name)


def read_pngs(folder: Path, size: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    names = sorted(os.listdir(folder))
    return (read_png(folder / names[k], size) for k in order)


def read_array(folder: Path, _: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    array = np.load(folder / "images.npy", mmap_mode="r")
    return (np.array(array[k]) for k in order)


def read_shards(folder: Path, _: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """As many images as `order` has, in the order of the shards."""
    left = len(order)
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as shard:
            for member in shard:
                if left == 0:
                    return
                left -= 1
                content = shard.extractfile(member) or io.BytesIO()
                yield np.asarray(cv2.imdecode(np.frombuffer(content.read(), np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def forget(folder: Path) -> None:
    """Drop the files of a folder from the system's memory."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(images: Iterable[NDArray[np.uint8]]) -> float:
    """Images per second; each pixel is touched."""
    start, n = time.perf_counter(), 0
    for image in images:
        n += int(image.sum() > 0)
    return n / (time.perf_counter() - start)


def list_seconds(folder: Path) -> float:
    """Names and times of all files."""
    start = time.perf_counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        entry.stat()
    return time.perf_counter() - start


class Cost(NamedTuple):
    gigabytes: float
    images_per_second_from_disk: float
    images_per_second_from_memory: float


def measure(name: str, folder: Path, size: int, n: int) -> Cost:
    """Read a finished folder of a format twice, list it, and print what it takes."""
    order = np.random.default_rng(1).permutation(n)[:4000]
    forget(folder)
    cold, warm = (rate(READERS[name](folder, size, order)) for _ in range(2))
    files, seconds, million = list(folder.iterdir()), list_seconds(folder), MILLION / n
    gigabytes, many = sum(path.stat().st_size for path in files) / 1e9, FILES_OF_A_MILLION[name]
    print(f"{name}: {n} images, {gigabytes:.2f} GB, {len(files)} files, listed in {seconds:.3f} s")
    print(f"    {cold:.0f} images/s from the disk, {warm:.0f} from memory")
    listed = seconds * many / len(files)
    print(
        f"    projected to a million: {gigabytes * million:.0f} GB, {many} files, listed in {listed:.1f} s", flush=True
    )
    return Cost(gigabytes, cold, warm)


def main(words: dict[str, str]) -> None:
    size, n = int(words.get("size", 512)), 300 if words.get("quick") == "true" else 20_000
    n = int(words.get("images", n))
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=words.get("folder")) as root:
        pictures, folders = make_pictures(Path(root, "demo"), size), {name: Path(root, name) for name in READERS}
        write_pngs(folders["png"], pictures, n)
        costs = {"png": measure("png", folders["png"], size, n)}
        write_shards(folders["shards"], folders["png"])
        costs["shards"] = measure("shards", folders["shards"], size, n)
        for name in ("png", "shards"):
            shutil.rmtree(folders[name])
        write_array(folders["array"], pictures, n)
        costs["array"] = measure("array", folders["array"], size, n)
    for name in ("array", "shards"):
        for what, own, png in zip(Cost._fields, costs[name], costs["png"], strict=True):
            print(f"ratio {what}_of_{name}_to_png {own / png:.2f}")


READERS = {"png": read_pngs, "array": read_array, "shards": read_shards}

if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
