"""Decode every DICOM once into a PNG of size x size pixels, and list all images in the cache's index.csv.

python src/cache_images.py [size=...] [workers=...] [input=...] [only_test=true]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.data.cache import report, update_cache


def main(cfg: Config) -> None:
    report(cfg, *update_cache(cfg))


if __name__ == "__main__":
    run(main)
