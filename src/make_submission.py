"""Write submissions/<name>.csv in Kaggle's format from working/<name>/test.csv, and its manifest next to it.

python src/make_submission.py [name=...] [threshold=auto|0.35]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.inference.submission import Submission, upload_command, write_submission


def main(cfg: Config) -> None:
    submission = write_submission(cfg)
    if submission is None:
        print(f"make_submission: current -> {cfg.submission_csv}")
        return
    print_counts(submission)
    print(f"checked against the sample submission -> {cfg.submission_csv}")
    print("synthetic images: nothing to upload" if cfg.is_demo else f"to upload: {upload_command(cfg)}")


def print_counts(submission: Submission) -> None:
    boxes, total, with_box = submission.boxes, submission.images, submission.images_with_box
    point = submission.point
    print(f"threshold {point.threshold:.4f}: {point.how_chosen}")
    if point.box_scale != 1:
        print(f"box sides scaled by {point.box_scale:g}")
    print(f"{with_box} of {total} images ({with_box / total:.1%}) got a box, {len(boxes)} boxes")
    if len(boxes):
        print(f"confidences from {boxes['confidence'].min():.4f} to {boxes['confidence'].max():.4f}")
    else:
        print("WARNING: without any box it scores 0 on each image with an opacity; set a lower threshold=")


if __name__ == "__main__":
    run(main)
