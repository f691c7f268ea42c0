"""The output of infer: a table, a picture of each image with its boxes, a contact sheet, and DICOM reports."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rsna.core.config import Config
from rsna.core.errors import UserError
from rsna.core.files import read_json, write_json
from rsna.core.sources import hash_of
from rsna.core.tables import write_table
from rsna.data.boxes import xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS
from rsna.data.letterbox import fit_letterbox, original_to_cached
from rsna.execution.processes import map_files
from rsna.inference.image_files import read_image, safe_name
from rsna.inference.tiles import ORANGE, Picture, draw_tile, stack_rows
from rsna.reporting.montage import PER_ROW, write_montage
from rsna.reporting.structured_report import write_reports

PREDICTIONS, SHEET, MANIFEST = "predictions.csv", "contact_sheet.png", "infer.json"
SIDE, ON_SHEET = 1024, 40  # side of an overlay, px; most images on the contact sheet, the most confident first
FLAGGED = (80, 80, 255)  # BGR


def write_results(cfg: Config, table: pd.DataFrame, folder: Path) -> None:
    """Write the table of predict_files, what overlays= and format= ask for, and a manifest. UserError as in claim."""
    order = table[table["refused"] == ""].sort_values("confidence", ascending=False, kind="stable")
    boxed = order.dropna(subset=["confidence"])
    drawn = {"boxes": boxed, "all": order, "none": order[:0]}[cfg.overlays]["file"].unique().tolist()
    reported = boxed["file"].unique().tolist() if cfg.format == "dicom-sr" else []
    names = [PREDICTIONS, *([SHEET] if drawn else []), *(f"overlays/{safe_name(file)}.png" for file in drawn)]
    names += [f"reports/{safe_name(file)}.dcm" for file in reported]
    claim(folder, names)
    write_table(table, folder / PREDICTIONS)
    draw = partial(write_overlay, table=table, folder=folder / "overlays")
    tiles = list(map_files(draw, [Path(file) for file in drawn], cfg, "overlays"))[:ON_SHEET]
    if tiles:
        write_montage(stack_rows([tiles[k : k + PER_ROW] for k in range(0, len(tiles), PER_ROW)]), folder / SHEET)
    run = {"run": cfg.name, "version": hash_of(cfg.run_dir / "ensemble.json")}
    write_reports(table, reported, folder / "reports", run)
    write_json({**run, "files": {name: hash_of(folder / name) for name in names}}, folder / MANIFEST)


def claim(folder: Path, names: list[str]) -> None:
    """List in the manifest the files that are about to be written, and remove other files of an earlier call.

    Raises UserError if one of the names is a file that infer did not write, or that was changed since.
    """
    listed = read_json(folder / MANIFEST, "", {"files": dict})["files"] if (folder / MANIFEST).exists() else {}
    written = {name for name, hashed in listed.items() if hashed in ("", hash_of(folder / name)) and ".." not in name}
    for name in names:
        if name not in written and (folder / name).exists():
            raise UserError(f"{folder / name}: not as infer wrote it, and not overwritten; choose another output=")
    for name in written.difference(names):
        (folder / name).unlink(missing_ok=True)
    write_json({"files": dict.fromkeys(names, "")}, folder / MANIFEST)


def counts(table: pd.DataFrame) -> str:
    """A line with the number of files, boxes, refused and flagged files in the table of predict_files."""
    files, boxes = table.drop_duplicates("file"), table.dropna(subset=["confidence"])
    refused, flagged, with_box = (files["refused"] != "").sum(), (files["flag"] != "").sum(), boxes["file"].nunique()
    words = f"{len(files)} files: {with_box} with a box ({len(boxes)} boxes), {len(files) - refused - with_box} without"
    return f"{words}, {refused} refused; {flagged} flagged"


def write_overlay(path: Path, table: pd.DataFrame, folder: Path) -> Picture:
    """Write an image with its boxes, which are red if it is flagged, and return its tile for the contact sheet."""
    image, rows = read_image(path, [SIDE]), table[table["file"] == str(path)]
    geometry = np.array(fit_letterbox(*image.shape, SIDE)[2])
    boxes_xyxy = original_to_cached(xywh_to_xyxy(rows[BOX_COLUMNS].dropna().to_numpy(dtype=float)), geometry)
    values, flag = " ".join(f"{value:.2f}" for value in rows["confidence"].dropna()[:3]), rows["flag"].iloc[0]
    boxes = [(boxes_xyxy, FLAGGED if flag else ORANGE)]
    note = "research use only" + (f"; flagged: {flag}" if flag else "")
    write_montage(draw_tile(image.squares[0], boxes, values, note, SIDE), folder / f"{safe_name(str(path))}.png")
    return draw_tile(image.squares[0], boxes, values, ("! " if flag else "") + path.stem[:12])
