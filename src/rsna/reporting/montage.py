"""Sheets of small pictures with boxes, and plots: what the show verbs draw."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna.core.errors import UserError
from rsna.core.files import write_then_rename

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Boxes = tuple[NDArray[np.float64], Colour]
TILE = 256  # px
GREEN, YELLOW, WHITE = (80, 220, 80), (0, 220, 255), (255, 255, 255)  # blue, green, red


def draw_tile(image: Picture, boxes: Sequence[Boxes], above: str = "", below: str = "") -> Picture:
    """An (S, S) uint8 image as a (TILE, TILE, 3) picture with boxes (n, 4) xyxy in pixels of the image, and words."""
    grey = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)
    tile = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    for boxes_xyxy, colour in boxes:
        for left, top, right, bottom in np.rint(boxes_xyxy * TILE / len(image)).astype(int).tolist():
            cv2.rectangle(tile, (left, top), (right, bottom), colour, 1)
    for text, height, colour in ((above, 16, YELLOW), (below, TILE - 8, WHITE)):
        cv2.putText(tile, text, (6, height), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return tile


def stack_rows(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Rows of tiles as one picture, black where a row is shorter than the longest."""
    longest = max(map(len, rows))
    black = np.zeros((TILE, TILE, 3), np.uint8)
    return np.vstack([np.hstack([*row, *[black] * (longest - len(row))]) for row in rows])


def optional(module: str) -> Any:
    """Import a module that only one of the show verbs needs. Raises UserError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.split(".")[0]
        raise UserError(f"this needs {package}; run: pip install -r requirements-show.txt") from None


def new_figure(rows: int, columns: int, title: str) -> tuple[Any, list[Any]]:
    """A figure of the plotting library without a window, and its axes row by row."""
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    figure.suptitle(title)
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with write_then_rename(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
