"""Plots as SVG elements inside a page, with the page's light or dark colours.

Each figure has the width of a phone; a wider page shows several side by side. The colours are those of Okabe and Ito,
which colour-blind readers can tell apart, and never the only difference: lines also differ in their dashes, bars in
their hatching.
"""

import io
import re
from typing import Any

from matplotlib import rcsetup, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# CSS variable, which the page defines for light and dark -> placeholder colour in the drawing
COLOURS = {"ink": "#010101", "soft": "#020202", "paper": "#030303", "blue": "#0072b2", "red": "#d55e00"}
COLOURS |= {"green": "#009e73", "pink": "#cc79a7", "orange": "#e69f00", "sky": "#56b4e9", "yellow": "#f0e442"}
INK, SOFT, PAPER, BLUE, RED, GREEN, PINK, ORANGE, SKY, YELLOW = COLOURS.values()
SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":")
# only lines, because a pattern of circles takes 300 kB of SVG
HATCHES = ("", "///", "---", "\\\\\\", "xxx", "||", "++")
WIDTH = 4.4  # inches of 72 units; at this width in CSS pixels, the text is about as large as the page's
# fmt: off
STYLE: Any = {
    "font.size": 10, "font.family": "DejaVu Sans", "legend.fontsize": 9,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.grid": True, "axes.axisbelow": True, "grid.color": SOFT, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": SOFT, "hatch.color": PAPER, "hatch.linewidth": 0.7, "image.cmap": "cividis",
    "axes.prop_cycle": rcsetup.cycler(color=SERIES), "lines.linewidth": 1.4,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "svg.fonttype": "none",  # text, not outlines: searchable and smaller
    "svg.hashsalt": "report",  # the same figure gives the same bytes
}
# fmt: on
# a decorator: a function that draws uses the report's style, whatever matplotlibrc says
styled: Any = style.context(STYLE, after_reset=True)


def new_axes(height: float = 3.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of the report's width and its axes, side by side; height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    for axis in axes:
        axis.patch.set_alpha(0)
    return figure, axes


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element without a size, with the page's colours, and with ids that begin with `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # of <svg> itself, which comes first
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", svg)
    # screen readers read the text alternative instead
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
