"""What the cache costs as PNG files, beside one memory-mapped array and tar shards of the same PNGs.

    python bench/cache_format.py [quick=true] [images=20000] [size=512] [folder=<on the disk to measure>]

A few phantoms under many names, each a file of its own. Random reads are what training does; shards are read from their
beginning. Disk space, files and listing are projected to a million images. The kernel keeps in memory what was just
written, so these are rates of decoding and of system calls, not of a disk.
"""

import io
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from rsna.data.cache import read_png, write_png
from rsna.synthetic.patients import draw_split
from rsna.synthetic.phantom import lay_out, render

MILLION, DIFFERENT, PER_SHARD, READS = 10**6, 40, 1000, 2000


def phantoms(size: int) -> list[NDArray[np.uint8]]:
    """Some images of (size, size)."""
    rng = np.random.default_rng(0)
    images = (render(lay_out(image.case, rng), rng) for image in draw_split(DIFFERENT, 0, 0, False)[:DIFFERENT])
    return [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]


def measure(folder: Path, n: int, size: int) -> None:
    rng, images = np.random.default_rng(0), phantoms(size)
    paths = [folder / "png" / f"{k:08x}-{number:08x}.png" for k, number in enumerate(rng.integers(0, 2**32, n))]
    for k, path in enumerate(paths):
        write_png(images[k % len(images)], path)
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, size, size))
    for k in range(n):
        array[k] = images[k % len(images)]
    array.flush()
    for first in range(0, n, PER_SHARD):
        with tarfile.open(folder / f"{first:07}.tar", "w") as shard:
            for path in paths[first : first + PER_SHARD]:
                shard.add(path, path.name)
    start = time.perf_counter()
    listed = sum(entry.stat().st_size for entry in os.scandir(folder / "png"))
    listing = time.perf_counter() - start
    on_disk = {
        "png": sum(path.stat().st_blocks * 512 for path in paths),
        "array": (folder / "images.npy").stat().st_size,
        "shards": sum(path.stat().st_size for path in folder.glob("*.tar")),
    }
    order = rng.integers(0, n, min(n, READS))
    rates = {}
    start = time.perf_counter()
    for k in order:
        read_png(paths[k], size)
    rates["png"] = len(order) / (time.perf_counter() - start)
    start = time.perf_counter()
    for k in order:
        np.array(array[k])
    rates["array"] = len(order) / (time.perf_counter() - start)
    start, count = time.perf_counter(), 0
    for path in sorted(folder.glob("*.tar"))[: -(-READS // PER_SHARD)]:
        with tarfile.open(path) as shard:
            for member in shard:
                content = shard.extractfile(member)
                cv2.imdecode(np.frombuffer((content or io.BytesIO()).read(), np.uint8), cv2.IMREAD_GRAYSCALE)
                count += 1
    rates["shards"] = count / (time.perf_counter() - start)
    print(f"{n} images of {size} px, {listed / n / 1024:.0f} KB each as PNG")
    files = {"png": MILLION, "array": 1, "shards": MILLION // PER_SHARD}
    for name, space in on_disk.items():
        projected = f"{space / n * MILLION / 1e9:.0f} GB in {files[name]} files for a million (projected)"
        print(f"{name}: {rates[name]:.0f} images/s by one thread; {projected}")
    print(f"listing with sizes: {listing / n * MILLION:.1f} s for a million PNGs (projected)")
    for name in ("array", "shards"):
        print(f"ratio images_per_second_of_{name}_to_png {rates[name] / rates['png']:.2f}")
        print(f"ratio space_of_{name}_to_png {on_disk[name] / on_disk['png']:.2f}")


def main(words: dict[str, str]) -> None:
    images = 400 if words.get("quick") == "true" else 20000
    with tempfile.TemporaryDirectory(dir=words.get("folder")) as folder:
        (Path(folder) / "png").mkdir()
        measure(Path(folder), int(words.get("images", images)), int(words.get("size", 512)))


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
