"""Draw augmented training images with their boxes, as the network sees them: one row per epoch, up to four.

./run.sh show_batch [fold=0] [size=...] [rotate=...]   -> working/<name>/batch.png
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.reporting.montage import write_montage
from rsna.reporting.training_pictures import draw_batch_sheet


def main(cfg: Config) -> None:
    for member in cfg.trained_runs:
        sheet, path = draw_batch_sheet(member, member.fold_list[0]), member.run_dir / "batch.png"
        write_montage(sheet, path)
        print(f"the same images in several epochs, one row each, as the network sees them -> {path}")


if __name__ == "__main__":
    run(main)
