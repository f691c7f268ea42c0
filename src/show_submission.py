"""Draw test images with the boxes of the submission: the most and the least confident, and some at random.

python src/show_submission.py [name=...]   -> working/<name>/submission.png
"""

import numpy as np
import pandas as pd

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.data.boxes import xywh_to_xyxy
from rsna.data.cache import read_index, read_png, write_png
from rsna.data.competition import BOX_COLUMNS
from rsna.data.letterbox import GEOMETRY_COLUMNS, original_to_cached
from rsna.data.submission_format import parse_submission
from rsna.reporting.montage import YELLOW, Picture, draw_tile, stack_rows

PER_ROW = 6


def main(cfg: Config) -> None:
    table = parse_submission(cfg.submission_csv)
    index = read_index(cfg.cache_dir, cfg.size)
    geometry = index[(index["split"] == "test") & (index["status"] == "ok")].set_index("patientId")[GEOMETRY_COLUMNS]
    table = table[table["patientId"].isin(geometry.index)]
    if table.empty:
        raise UserError(f"{cfg.submission_csv}: none of its images is in {cfg.cache_dir}; nothing to draw")
    chosen = choose(table, cfg.seed)
    rows = [[draw(cfg, title, name, table, geometry) for name in ids] for title, ids in chosen.items() if ids]
    write_png(stack_rows(rows), cfg.run_dir / "submission.png")
    print(f"test images with the submission's boxes -> {cfg.run_dir / 'submission.png'}")


def choose(table: pd.DataFrame, seed: int) -> dict[str, list[str]]:
    """Titles and patientIds of the sheet's rows."""
    top = table.dropna(subset=["confidence"]).groupby("patientId")["confidence"].max()
    order = top.sort_values(ascending=False, kind="stable").index.tolist()
    names = np.random.default_rng(seed).permutation(table["patientId"].unique())
    return {
        "most confident": order[:PER_ROW],
        "least confident": order[PER_ROW:][-PER_ROW:],
        "random": names[:PER_ROW].tolist(),
    }


def draw(cfg: Config, title: str, name: str, table: pd.DataFrame, geometry: pd.DataFrame) -> Picture:
    """One test image with its boxes, the highest confidence above."""
    image = read_png(cfg.cache_dir / "test" / f"{name}.png", cfg.size)
    own = table[table["patientId"] == name].dropna(subset=["confidence"])
    corners = xywh_to_xyxy(own[BOX_COLUMNS].to_numpy(dtype=float))
    boxes = original_to_cached(corners, geometry.loc[name].to_numpy(dtype=float))
    return draw_tile(image, [(boxes, YELLOW)], f"{own['confidence'].max():.2f}" if len(own) else "", title)


if __name__ == "__main__":
    run(main)
