"""Figure 6: t-SNE of both models' question features before and after the Recalibrator's blocks.

All four kinds have the student's width, the teacher's after rec_proj_pre. Rows are scaled to length 1, as the
blocks' first norm takes the length away before anything reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genrecal.core.cosines import Array, cosines, unit_rows
from genrecal.figures.canvas import PALETTE, entitle, legend_below, panels
from genrecal.figures.features import HOW, Moment, start_and_end
from genrecal.figures.naming import first_seeds
from genrecal.figures.runs import Missing, Run, read_each

# tensor -> label, colour, marker: the models by colour, before and after by filling
KINDS = {
    "z_q_student": ("student before the Recalibrator", PALETTE[0], "o", False),
    "h_q_student": ("student after it", PALETTE[0], "o", True),
    "p_q_teacher": ("teacher before the Recalibrator", PALETTE[1], "s", False),
    "h_q_teacher": ("teacher after it", PALETTE[1], "s", True),
}
FEWEST = 3
MOST_RUNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """One run at one moment: the plane's coordinates of every kind, [N, 2]."""

    run: str
    moment: str
    points: dict[str, Array]
    before: float  # mean cosine of a pair's student and teacher features before the blocks
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    maps: tuple[Map, ...]
    pairs: int
    seed: int  # of t-SNE
    several_seeds: bool  # whether runs of other seeds were left out
    left_out: str


def read(runs: Sequence[Run], *, seed: int = 0) -> Maps:
    found = read_each(runs, _moments)
    if not found.runs:
        raise Missing("no run left features", fix=HOW)
    first = first_seeds(found.runs)
    shown = first[:MOST_RUNS]
    return Maps(
        maps=tuple(_map(run, moment, seed) for run in shown for moment in found.values[run.folder]),
        pairs=_pairs(found.values[shown[-1].folder]),
        seed=seed,
        several_seeds=len(first) < len(found.runs),
        left_out=found.left_out,
    )


def draw(data: Maps) -> Figure:
    columns = 2 if len(data.maps) <= 2 else 4
    figure, axes = panels(len(data.maps), columns=columns, width_in=3.2, height_in=2.8)
    for one, map_ in zip(axes, data.maps, strict=True):
        for kind, (label, color, marker, filled) in KINDS.items():
            x, y = map_.points[kind].T
            one.scatter(
                x,
                y,
                s=26,
                marker=marker,
                label=label,
                edgecolors=color,
                facecolors=color if filled else "none",
            )
        entitle(one, f"{map_.run}\n{map_.moment}" if len(data.maps) > 2 else map_.moment, width=32)
        one.set_xticks([])
        one.set_yticks([])
        one.margins(0.12)
        for side in one.spines.values():
            side.set_visible(True)
        # Rounded first: -0.004 is 0.00.
        before, after = round(map_.before, 2) + 0.0, round(map_.after, 2) + 0.0
        one.set_xlabel(f"cosine of a pair: {before:.2f} before, {after:.2f} after", fontsize=9)
    legend_below(figure, axes)
    return figure


def caption(data: Maps) -> str:
    return (
        f"t-SNE (seed {data.seed}, rows of length 1) of the question features of n = {data.pairs}"
        " question-answer pairs, averaged over positions: the student's and the teacher's, before and after"
        " the Recalibrator's blocks, at the start and at the end of training. Distances between far groups"
        " mean little in t-SNE; the mean cosine of a pair's student and teacher features, which it does not"
        " distort, stands under each panel."
        + (" Of several seeds the first is shown." if data.several_seeds else "")
        + data.left_out
    )


def table(data: Maps) -> list[dict[str, Any]]:
    return [
        {
            "run": one.run,
            "moment": one.moment,
            "kind": kind,
            "pair": pair,
            "x": float(x),
            "y": float(y),
            "mean_cosine_before": one.before,
            "mean_cosine_after": one.after,
        }
        for one in data.maps
        for kind, points in one.points.items()
        for pair, (x, y) in enumerate(points)
    ]


def _moments(run: Run) -> tuple[Moment, Moment] | None:
    found = start_and_end(run, tuple(KINDS))
    if found is not None and _pairs(found) < FEWEST:
        raise Missing(
            f"{run.folder} has features of {_pairs(found)} pairs", fix="Raise engine.feature_samples"
        )
    return found


def _pairs(moments: tuple[Moment, Moment]) -> int:
    return len(moments[0].tensors["z_q_student"])


def _map(run: Run, moment: Moment, seed: int) -> Map:
    # Imported here: it takes about a second, which the other figures need not pay.
    from sklearn.manifold import TSNE

    rows = np.concatenate([unit_rows(moment.tensors[kind]) for kind in KINDS])
    perplexity = min(30.0, max(2.0, (len(rows) - 1) / 4))
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows.astype(np.float32))
    parts = np.split(plane.astype(np.float64), len(KINDS))
    when = "start" if moment.when == "before" else "end"
    return Map(
        run=run.title,
        moment=f"{when}: {moment.when} {moment.stage}",
        points=dict(zip(KINDS, parts, strict=True)),
        before=_matched(moment, "z_q_student", "p_q_teacher"),
        after=_matched(moment, "h_q_student", "h_q_teacher"),
    )


def _matched(moment: Moment, one: str, other: str) -> float:
    return float(np.diagonal(cosines(moment.tensors[one], moment.tensors[other])).mean())
