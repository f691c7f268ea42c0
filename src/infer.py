"""Predict any images with a finished run: DICOM, PNG or JPEG. Research use only: this is not a medical device.

./run.sh infer name=<run> images=<file, folder or pattern> [output=...] [prior=0.1] [overlays=all] [format=dicom-sr]
-> predictions.csv, contact_sheet.png, overlays/ and reports/ in output=; default: a folder in working/<name>/infer/
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.locks import file_lock
from rsna.inference.image_files import find_images, output_folder
from rsna.inference.new_images import as_predicted, predict_files
from rsna.reporting.overlays import own_files, write_results
from rsna.reporting.structured_report import check_format


def main(cfg: Config) -> None:
    print("research use only: this is not a medical device")
    folder = output_folder(cfg)
    paths = find_images(cfg.images, folder)
    check_format(cfg.format, paths)
    cfg = as_predicted(cfg)
    with file_lock(folder):
        own_files(folder)  # which raises UserError for another file in the way, before hours of work
        write_results(cfg, predict_files(cfg, paths), folder)


if __name__ == "__main__":
    run(main)
