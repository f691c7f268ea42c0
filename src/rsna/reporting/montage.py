"""Montages: rows of small images with boxes and captions."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rsna.core.artifacts import require
from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import write_then_rename
from rsna.data.boxes import xywh_to_xyxy
from rsna.data.cache import read_index
from rsna.data.competition import BOX_COLUMNS, read_truth
from rsna.data.letterbox import GEOMETRY_COLUMNS, original_to_cached, read_png
from rsna.data.submission_format import parse_submission
from rsna.evaluation.metric import image_scores, of_images
from rsna.evaluation.runs import read_run
from rsna.inference.tiles import BLUE, ORANGE, Colour, Picture, draw_tile, stack_rows

Rows = dict[str, list[str]]  # title -> patientIds
PER_ROW = 4  # so that captions are readable at the width of a README
SOFTWARE = "RSNA pneumonia workspace"  # in the picture's metadata
COLOURS = 256  # mostly greys; with fewer, soft tissue shows banding


def write_montage(picture: Picture, path: Path) -> None:
    """Write a montage as a PNG with COLOURS colours, which halves its size."""
    image = Image.fromarray(picture[..., ::-1])
    reduced = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    metadata = PngInfo()
    metadata.add_text("Software", SOFTWARE)
    with write_then_rename(path, mark=SOFTWARE.encode()) as temporary:
        reduced.save(temporary, format="PNG", optimize=True, pnginfo=metadata)


def results_montage(cfg: Config) -> Picture:
    """Out-of-fold images with true (blue) and predicted (orange) boxes. Raises UserError if scores are not current."""
    run = read_run(cfg)
    truth = of_images(read_truth(Path(cfg.input)), run.ids)
    rows = choose_results(truth, run.kept, run.ids, cfg.seed)
    return draw_rows(cfg, "train", rows, [(truth, BLUE), (run.kept, ORANGE)])


def choose_results(truth: pd.DataFrame, kept: pd.DataFrame, ids: list[str], seed: int) -> Rows:
    """The rows of the montage; ids: all images. `best` and `worst` are images with a true and a predicted box."""
    scores = image_scores(truth, kept).mean(axis=1).sort_values(ascending=False, kind="stable")
    positive, boxed = set(truth["patientId"]), set(kept["patientId"])
    hits = scores.index[scores.index.isin(positive & boxed)].tolist()
    alarms = kept[~kept["patientId"].isin(positive)].sort_values("confidence", ascending=False, kind="stable")
    half = min(PER_ROW, (len(hits) + 1) // 2)
    rows = {
        "best": hits[:half],
        "worst": hits[half:][::-1],
        "missed": sorted(positive - boxed),
        "false alarm": alarms["patientId"].drop_duplicates().tolist(),
        "random": np.random.default_rng(seed).permutation(sorted(ids)).tolist(),
    }
    return {title: names[:PER_ROW] for title, names in rows.items()}


def submission_montage(cfg: Config) -> Picture:
    """Test images with the boxes of the submission. Raises UserError if it is not current, or no image is cached."""
    require(cfg, "make_submission")
    table = of_images(parse_submission(cfg.submission_csv), cached_images(cfg, "test").index)
    return draw_rows(cfg, "test", choose_submitted(table, cfg.seed), [(table.dropna(subset=["confidence"]), ORANGE)])


def choose_submitted(table: pd.DataFrame, seed: int) -> Rows:
    """The rows of the montage; table: the submission, see parse_submission."""
    top = table.dropna(subset=["confidence"]).groupby("patientId")["confidence"].max()
    order = top.sort_values(ascending=False, kind="stable").index.tolist()
    most, least = order[:PER_ROW], order[PER_ROW:][-PER_ROW:]
    random = np.random.default_rng(seed).permutation(table["patientId"].unique())[:PER_ROW].tolist()
    return {"most confident": most, "least confident": least, "random": random}


def draw_rows(cfg: Config, split: str, rows: Rows, tables: list[tuple[pd.DataFrame, Colour]]) -> Picture:
    """A montage of the cached images among `rows`, with the boxes of each table in its colour.

    The captions show the confidences of the last table. Raises UserError if none of the images is cached.
    """
    known = cached_images(cfg, split)
    tiles: dict[str, list[Picture]] = {}
    for title, name in ((title, name) for title, names in rows.items() for name in names if name in known.index):
        image = read_png(cfg.cache_dir / split / f"{name}.png", cfg.size)
        geometry, boxes = known.loc[name].to_numpy(dtype=float), []
        for table, colour in tables:
            boxes_xyxy = xywh_to_xyxy(table.loc[table["patientId"] == name, BOX_COLUMNS].to_numpy(dtype=float))
            boxes.append((original_to_cached(boxes_xyxy, geometry), colour))
        last, _ = tables[-1]
        confidences = last.loc[last["patientId"] == name, "confidence"].sort_values(ascending=False)
        tile = draw_tile(image, boxes, " ".join(f"{value:.2f}" for value in confidences[:3]), title, name=name)
        tiles.setdefault(title, []).append(tile)
    if not tiles:
        raise UserError(f"{cfg.cache_dir}: none of the {split} images is there; nothing to draw")
    return stack_rows(list(tiles.values()))


def cached_images(cfg: Config, split: str) -> pd.DataFrame:
    """GEOMETRY_COLUMNS of the cached images of a split, without those that were refused; index patientId."""
    index = read_index(cfg.cache_dir, cfg.size)
    return index[(index["split"] == split) & (index["status"] == "ok")].set_index("patientId")[GEOMETRY_COLUMNS]
