"""The output of infer: a table, a picture of each image with its boxes, a contact sheet, and DICOM reports."""

from collections.abc import Sequence
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
NAMED_REFUSALS = 5
SIDE, ON_SHEET = 1024, 40  # side of an overlay, px; most images on the contact sheet, the most confident first
FLAGGED = (80, 80, 255)  # BGR


def write_results(cfg: Config, table: pd.DataFrame, folder: Path) -> None:
    """Write the table of predict_files, what overlays= and format= ask for, and a manifest.

    Raises UserError as own_files; and at the end, if a report could not be written or every file was refused.
    """
    order = table[table["refused"] == ""].sort_values("confidence", ascending=False, kind="stable")
    boxed = order.dropna(subset=["confidence"])
    drawn = {"boxes": boxed, "all": order, "none": order[:0]}[cfg.overlays]["file"].unique().tolist()
    reported = boxed["file"].unique().tolist() if cfg.format == "dicom-sr" else []
    names = [PREDICTIONS, *([SHEET] if drawn else []), *(f"overlays/{safe_name(file)}.png" for file in drawn)]
    names += [f"reports/{safe_name(file)}.dcm" for file in reported]
    claim(folder, names)
    # pandas would not quote a carriage return, as in the file that macOS adds to a folder with an icon of its own
    named = table.assign(file=table["file"].str.replace("\r", "\\r", regex=False))
    write_table(named, folder / PREDICTIONS)
    draw = partial(write_overlay, table=table, folder=folder / "overlays")
    tiles = list(map_files(draw, [Path(file) for file in drawn], cfg, "overlays"))[:ON_SHEET]
    if tiles:
        write_montage(stack_rows([tiles[k : k + PER_ROW] for k in range(0, len(tiles), PER_ROW)]), folder / SHEET)
    run = {"run": cfg.name, "version": hash_of(cfg.run_dir / "ensemble.json")}
    missing = write_reports(table, reported, folder / "reports", run)
    files = {name: hash_of(folder / name) for name in names if (folder / name).is_file()}
    write_json({**run, "files": files}, folder / MANIFEST)
    refused = named[named["refused"] != ""]
    for file, reason in refused[["file", "refused"]].to_numpy()[:NAMED_REFUSALS]:
        print(f"refused {file}: {reason}")
    print(f"{counts(table)} -> {folder}")
    if missing:
        raise UserError(f"{missing} of {len(reported)} reports could not be written, see above; all else is written")
    if len(refused) == len(table):
        raise UserError(f"images={cfg.images}: every file was refused; {folder / PREDICTIONS} has the reasons")


def own_files(folder: Path, names: Sequence[str] = (PREDICTIONS, SHEET)) -> set[str]:
    """The files in the folder that infer wrote and that have not changed since, by its manifest.

    Raises UserError if one of `names`, which are to be written, is another file.
    """
    listed = read_json(folder / MANIFEST, "", {"files": dict})["files"] if (folder / MANIFEST).exists() else {}
    written = {name for name, hashed in listed.items() if hashed in ("", hash_of(folder / name)) and ".." not in name}
    for name in names:
        if name not in written and (folder / name).exists():
            raise UserError(f"{folder / name}: not as infer wrote it, and not overwritten; choose another output=")
    return written


def claim(folder: Path, names: list[str]) -> None:
    """List in the manifest the files that are about to be written, and remove other files of an earlier call."""
    for name in own_files(folder, names).difference(names):
        (folder / name).unlink(missing_ok=True)
    write_json({"files": dict.fromkeys(names, "")}, folder / MANIFEST)


def counts(table: pd.DataFrame) -> str:
    """A line with the number of files, boxes, refused and flagged files in the table of predict_files."""
    files, boxes = table.drop_duplicates("file"), table.dropna(subset=["confidence"])
    refused, flagged, with_box = (files["refused"] != "").sum(), (files["flag"] != "").sum(), boxes["file"].nunique()
    words = f"{plural(len(files), 'file', 'files')}: {with_box} with a box ({plural(len(boxes), 'box', 'boxes')})"
    return f"{words}, {len(files) - refused - with_box} without, {refused} refused; {flagged} flagged"


def plural(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


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
