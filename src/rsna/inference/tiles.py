"""Tiles: a small image with boxes and a caption, and rows of them."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Boxes = tuple[NDArray[np.float64], Colour]
TILE, CAPTION, NAME, GAP = 256, 28, 16, 4  # px: side of an image, height of the two strips below it, gap between tiles
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.55
# BGR; truth is blue and prediction orange, as in the report, since some people cannot tell red from green
BLUE, ORANGE, WHITE = (233, 180, 86), (0, 176, 255), (255, 255, 255)


def draw_tile(
    image: Picture, boxes: Sequence[Boxes], value: str = "", title: str = "", side: int = TILE, name: str = ""
) -> Picture:
    """Draw an (S, S) uint8 image with boxes (n, 4) xyxy in its pixels; below it title and value, and below them name.

    Returns uint8 (side + CAPTION, side, 3) BGR; with a name, there are NAME more rows.
    """
    smaller = len(image) > side
    grey = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    tile = np.zeros((side + CAPTION + (NAME if name else 0), side, 3), np.uint8)
    tile[:side] = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for boxes_xyxy, colour in boxes:
        for left, top, right, bottom in np.rint(boxes_xyxy * side / len(image)).astype(int).tolist():
            cv2.rectangle(tile[:side], (left, top), (min(right, side - 1), min(bottom, side - 1)), colour, 2)
    title, name = (text.encode("ascii", "replace").decode() for text in (title, name))  # all that the font has
    (width, _), _ = cv2.getTextSize(value, FONT, FONT_SCALE, 1)
    for text, x, colour in ((title, 4, WHITE), (value, side - width - 4, ORANGE)):
        cv2.putText(tile, text, (x, side + CAPTION - 9), FONT, FONT_SCALE, colour, 1, cv2.LINE_AA)
    scale = 0.4 * min(1, side / max(cv2.getTextSize(name, FONT, 0.4, 1)[0][0] + 8, 1))
    cv2.putText(tile, name, (4, side + CAPTION + NAME - 10), FONT, scale, WHITE, 1, cv2.LINE_AA)
    return tile


def stack_rows(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Join rows of tiles of the same shape into one picture; shorter rows are filled with black."""
    longest = max(map(len, rows))
    black, gap = (np.zeros((len(rows[0][0]), width, 3), np.uint8) for width in (TILE, GAP))
    padded = [[*row, *[black] * (longest - len(row))] for row in rows]
    return np.vstack([np.hstack([part for tile in row for part in (tile, gap)][:-1]) for row in padded])
