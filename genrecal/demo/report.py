"""The demo's report: results.json of every seed -> one self-contained report.html, and report.md.

The page loads nothing: its styles stand in it, its curves are SVG elements, its images data URIs. All texts
pass through jinja2's escaping; the curves alone, which are drawn here, do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from genrecal.core.files import write_text
from genrecal.demo.curves import Line, panel
from genrecal.demo.results import LONG_TOKENS
from genrecal.demo.summary import (
    FIGURES,
    NO_FIGURE,
    READING_STAGES,
    Results,
    agreement,
    read_results,
    score_cell,
    spread_meaning,
    summary_lines,
    table_rows,
    titles,
)
from genrecal.figures.draw import Drawn

TEMPLATE = Path(__file__).with_name("report.html.j2")

# Subject -> what its row is.
ROWS = {
    "teacher": "the large model: InternVL's architecture, pre-trained in this run",
    "baseline": "the small model before anything below: Qwen2-VL's architecture, pre-trained in this"
    " run on less data",
    "sft": "the small model fine-tuned on the distillation set as it is: the same data, batches and number of"
    " student updates as GenRecal's stages 2 and 3, no teacher",
    "sft-teacher": "the same fine-tuning, on the teacher's own answers in place of those of the set",
    "genrecal": "the small model after GenRecal's three stages",
    "genrecal-int8": "GenRecal's student as ONNX graphs with int8 weights, run by ONNX Runtime without torch;"
    " its parameters are those of the row above",
}
NOTES = (
    "All questions are the demo's own, about drawn images, in the file formats of the benchmarks and scored"
    " by their rules: no figure here compares with a published one.",
    "The mean weighs every column alike. Weights are the files on disk. Speed is measured one question at a"
    " time, medians: the first token from the decoded image on, tokens/s after it. Peak memory is that of the"
    " whole process with its libraries: torch for a checkpoint, ONNX Runtime for a build.",
)
OFFLINE = (
    "The column '{title}' is not MM-Vet's score: MM-Vet is graded by an LLM judge, and here rules without a"
    " model compare each reply with the reference."
)

BLUE, ORANGE, GREEN = "#4285d4", "#e0862b", "#3da56b"
# Term of the loss -> its colour; the regularisation (Algorithm 2) is dashed.
TERMS = {"ar": BLUE, "kl": ORANGE, "reg_ar": BLUE, "reg_kl": ORANGE, "sft": GREEN}
GRADIENTS = {"grad_distill": ("distillation", BLUE), "grad_sft": ("SFT", GREEN)}
RISES = {
    "kl_rise_first": ("first answer token", BLUE),
    "kl_rise_later": ("later answer tokens", ORANGE),
}


def write_report(folders: list[Path], output: Path, *, figures: Sequence[Drawn] = ()) -> Path:
    """Write report.html and report.md into `output`, from the results.json of every seed's folder.

    Args:
        folders: of the seeds.
        output: where the report goes.
        figures: the paper's figures, drawn from the runs.

    Returns: the path of the page.

    Raises:
        GenrecalError: a results.json is missing or has another form.
    """
    results = read_results(folders)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        seeds=[result["seed"] for result in results],
        columns=_columns(results),
        benchmarks=len(titles(results)),
        rows=table_rows(results),
        spread=spread_meaning(results),
        single_seeds=_single_seeds(results) if len(results) > 1 else [],
        row_notes=_row_notes(results),
        notes=_notes(results),
        lines=summary_lines(results),
        losses=_losses(results),
        reading=_reading(results),
        figures=figures,
        agreement=agreement(results),
        long_tokens=LONG_TOKENS,
        samples=results[0]["samples"],
        labels={key: row["label"] for key, row in results[0]["subjects"].items()},
        seconds=_seconds(results),
        versions=_versions(results),
    )
    write_text(output / "report.md", _markdown(results))
    write_text(output / "report.html", page)
    return output / "report.html"


def _columns(results: Sequence[Results]) -> list[str]:
    return [*titles(results).values(), *FIGURES]


def _row_notes(results: Sequence[Results]) -> list[tuple[str, str]]:
    subjects = results[0]["subjects"]
    return [(row["label"], ROWS[key]) for key, row in subjects.items() if key in ROWS]


def _notes(results: Sequence[Results]) -> list[str]:
    offline = [title for title in titles(results).values() if "offline judge" in title]
    return [*(OFFLINE.format(title=title) for title in offline), *NOTES]


def _single_seeds(results: Sequence[Results]) -> list[dict[str, Any]]:
    """For each seed its scores with their intervals, and the mean."""
    return [
        {
            "seed": result["seed"],
            "rows": [
                (row["label"], [score_cell([score]) for score in row["scores"].values()], 100 * row["mean"])
                for row in result["subjects"].values()
            ],
        }
        for result in results
    ]


def _losses(results: Sequence[Results]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """For each run its label and a panel for each of its stages."""
    labels = results[0]["subjects"]
    runs = []
    for run, rows in results[0]["curves"].items():
        panels = []
        for stage in dict.fromkeys(row["stage"] for row in rows):
            lines = [
                Line(
                    name=term,
                    color=color,
                    dashed=term.startswith("reg_"),
                    seeds=tuple(
                        [
                            (row["step"], row["terms"][term])
                            for row in result["curves"].get(run, [])
                            if row["stage"] == stage and term in row["terms"]
                        ]
                        for result in results
                    ),
                )
                for term, color in TERMS.items()
            ]
            panels.append((stage, panel(f"loss-{run}-{stage}", lines, log=True)))
        runs.append((labels[run]["label"] if run in labels else run, panels))
    return runs


def _reading(results: Sequence[Results]) -> list[tuple[str, Markup]]:
    """Gradient norms and KL rises of each stage in which the Recalibrator trains."""
    panels = []
    for stage in READING_STAGES:
        for what, figures, log in (
            ("norm of the gradient at z_q", GRADIENTS, True),
            ("rise of the KL with shuffled z_q, nats per token", RISES, False),
        ):
            lines = [
                Line(
                    name=name,
                    color=color,
                    seeds=tuple(
                        [
                            (row["step"], row[key])
                            for row in result["reading"]
                            if row["stage"] == stage and row[key] is not None
                        ]
                        for result in results
                    ),
                )
                for key, (name, color) in figures.items()
            ]
            kind = "gradient" if log else "rise"
            panels.append((f"{stage}: {what}", panel(f"reading-{stage}-{kind}", lines, log=log)))
    return panels


def _seconds(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Step -> seconds of each seed, and the sums."""
    steps = dict.fromkeys(step for result in results for step in result["seconds"])
    rows = [(step, [result["seconds"].get(step) for result in results]) for step in steps]
    rows.append(("all steps", [sum(result["seconds"].values()) for result in results]))
    return [(step, [NO_FIGURE if s is None else f"{s:.1f}" for s in values]) for step, values in rows]


def _versions(results: Sequence[Results]) -> list[tuple[str, str]]:
    """Package -> its version; every one, where seeds ran with different ones."""
    names = dict.fromkeys(name for result in results for name in result["versions"])
    return [
        (name, ", ".join(dict.fromkeys(result["versions"].get(name, NO_FIGURE) for result in results)))
        for name in names
    ]


def _markdown(results: Sequence[Results]) -> str:
    columns = ["", *_columns(results)]
    table = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    table += [[row.label, *map(str, row.cells)] for row in table_rows(results)]
    lines = ["# GenRecal demo", "", spread_meaning(results), ""]
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in table]
    lines += ["", *(f"- {_plain(line)}" for line in summary_lines(results))]
    lines += ["", "## The rows", ""]
    lines += [f"- **{_plain(label)}**: {note}" for label, note in _row_notes(results)]
    lines += ["", *(f"- {_plain(note)}" for note in _notes(results))]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """`text` as Markdown that stays within its cell or line and holds no markup."""
    for mark in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
