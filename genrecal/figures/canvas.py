"""How every figure looks, and how it is written: SVG, PNG, inline SVG for a page, CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's colours, which people with any colour vision tell apart; without yellow, which is too pale.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#A6A6A6"
# For heat maps: even steps of lightness, the same with any colour vision.
HEAT = "cividis"
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 200
# A colour that nothing else has; on a page its text colour takes its place.
INK = "#010203"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw and write within this; `name` makes the ids of an SVG the same each time."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        yield


def color_of(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def dash_of(place: int) -> str:
    """Solid for the first round of colours, then dashed, dotted ..."""
    return DASHES[place // len(PALETTE) % len(DASHES)]


def panels(count: int, *, columns: int, width_in: float, height_in: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of at most `columns`, each panel of the given size in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width_in, rows * height_in), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[place // columns, place % columns]) for place in range(count)]


def entitle(axes: Axes, text: str, *, width: int = 40) -> None:
    """A title of as many lines as it needs to stay over its panel; `text` may hold line ends of its own."""
    axes.set_title("\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width)))


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def ink_on(color: Any) -> str:
    """Black or white, whichever is read better on `color`."""
    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, under them, in as many columns as the figure is wide."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        widest_in = 0.6 + 0.072 * max(len(label) for label in entries)
        columns = max(1, min(len(entries), int(figure.get_size_inches()[0] / widest_in)))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def as_file(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of an SVG or PNG file, on white."""
    stream = io.BytesIO()
    # No date: the same figure is the same file.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
    return stream.getvalue()


def inline_svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element for a page: it takes the page's text colour and width.

    Args:
        figure: drawn within `style(name)`.
        name: unique on the page: ids within the SVG start with it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style element in the body would hold for the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib gives every SVG a viewBox"
    # Of the ids only those that something points to, and these with the figure's name.
    wanted = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", body
    )
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    return Markup(f'<svg {box.group()} role="img">{body}')


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with a column for every key; floats with six digits."""
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: f"{cell:.6g}" if isinstance(cell, float) else cell for key, cell in row.items()}
        )
    return stream.getvalue()
