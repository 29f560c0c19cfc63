"""`genrecal figures`: the paper's figures from run folders. Read me first.

    run folders -> Run -> a figure's own data -> drawing, caption, CSV -> files, and a page with all of them

A figure whose data is not there is skipped, and says what is missing and how to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from genrecal.core.console import console
from genrecal.core.errors import ConfigError
from genrecal.core.files import write_bytes, write_text
from genrecal.figures import cosine, gains, losses, pairs, progress, reading, tsne
from genrecal.figures.canvas import as_csv, as_file, inline_svg, style
from genrecal.figures.page import page
from genrecal.figures.runs import Missing, Run, open_runs

FORMATS = ("svg", "png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """How one figure is made; `read` raises Missing where the runs lack its data."""

    title: str
    read: Callable[[Sequence[Run]], Any]
    draw: Callable[[Any], Figure]
    caption: Callable[[Any], str]
    table: Callable[[Any], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A finished figure."""

    name: str  # of its files
    title: str
    caption: str
    csv: str
    svg: Markup  # inline, in the page's own text colour
    files: dict[str, bytes]  # format -> content


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A figure that the runs have no data for."""

    name: str
    title: str
    why: str


FIGURES: dict[str, Plot] = {
    "figure-1-students": Plot(
        title="Figure 1: before and after, by student",
        read=gains.read_by_student,
        draw=gains.draw,
        caption=gains.caption,
        table=gains.table,
    ),
    "figure-2-teachers": Plot(
        title="Figure 2: before and after, by teacher",
        read=gains.read_by_teacher,
        draw=gains.draw,
        caption=gains.caption,
        table=gains.table,
    ),
    "figure-5-pairs": Plot(
        title="Figure 5: teachers and students",
        read=pairs.read,
        draw=pairs.draw,
        caption=pairs.caption,
        table=pairs.table,
    ),
    "figure-6-tsne": Plot(
        title="Figure 6: features before and after the Recalibrator",
        read=tsne.read,
        draw=tsne.draw,
        caption=tsne.caption,
        table=tsne.table,
    ),
    "figure-7-cosine": Plot(
        title="Figure 7: cosines through the Recalibrator",
        read=cosine.read,
        draw=cosine.draw,
        caption=cosine.caption,
        table=cosine.table,
    ),
    "figure-9-losses": Plot(
        title="Figure 9: losses of the Recalibrator's stage",
        read=losses.read,
        draw=losses.draw,
        caption=losses.caption,
        table=losses.table,
    ),
    "figure-10-progress": Plot(
        title="Figure 10: scores on the way",
        read=progress.read,
        draw=progress.draw,
        caption=progress.caption,
        table=progress.table,
    ),
    "reading": Plot(
        title="Does the Recalibrator read the student?",
        read=reading.read,
        draw=reading.draw,
        caption=reading.caption,
        table=reading.table,
    ),
}


def draw_figures(
    runs: Sequence[Run], *, formats: Sequence[str] = FORMATS
) -> tuple[list[Drawn], list[Skipped]]:
    """Every figure that the runs have data for, and what kept the others.

    Args:
        runs: what `open_runs` gave.
        formats: svg, png or both: the contents of `Drawn.files`.
    """
    drawn, skipped = [], []
    for name, plot in FIGURES.items():
        try:
            data = plot.read(runs)
        except Missing as error:
            skipped.append(Skipped(name=name, title=plot.title, why=str(error)))
            continue
        with style(name):
            figure = plot.draw(data)
            # The layout takes longest, and is the same for every format.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            drawn.append(
                Drawn(
                    name=name,
                    title=plot.title,
                    caption=plot.caption(data),
                    csv=as_csv(plot.table(data)),
                    svg=inline_svg(figure, name),
                    files={kind: as_file(figure, kind) for kind in formats},
                )
            )
    return drawn, skipped


def figures_command(
    folders: Sequence[Path],
    output: Path,
    *,
    formats: Sequence[str] = FORMATS,
    baselines: Sequence[Path] = (),
) -> None:
    """What `genrecal figures` does: draw, write, say what was skipped.

    Raises:
        ConfigError: an unknown format, a folder that is no run, or no figure at all could be drawn.
        BenchError: a bench report cannot be read.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown:
        raise ConfigError(f"unknown format '{unknown[0]}'", where="--format", fix="Name svg or png")
    runs = open_runs(folders, baselines)
    drawn, skipped = draw_figures(runs, formats=formats)
    for one in drawn:
        for kind, content in one.files.items():
            write_bytes(output / f"{one.name}.{kind}", content)
        write_text(output / f"{one.name}.csv", one.csv)
        console.print(f"{one.name}: {one.caption}", soft_wrap=True, markup=False)
    for missing in skipped:
        console.print(f"{missing.name}: skipped: {missing.why}", soft_wrap=True, markup=False)
    if not drawn:
        raise ConfigError("no figure could be drawn", where=", ".join(str(folder) for folder in folders))
    write_text(output / "figures.html", page(runs, drawn, skipped))
    console.print(f"{len(drawn)} figures: {output / 'figures.html'}", soft_wrap=True, markup=False)
