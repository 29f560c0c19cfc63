"""The tables, made of the cells' files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.answers import TOKENS
from benchmarks.compare import SETS, Row, difference, differs, mean_and_spread, read_row
from benchmarks.diagnostics import between_table, gradients_table, reading_table
from benchmarks.flops import NAME as FLOPS
from benchmarks.flops import total
from benchmarks.settings import Plan
from genrecal.core.errors import ConfigError
from genrecal.core.files import read_json, write_text

HEADINGS = {"mmb": "MMB", "mmmu": "MMMU", "mmvet": "MM-Vet q."}
NONE = "-"
# A row is marked only from so many seeds on: with fewer, what a seed does is not known.
FEWEST_SEEDS = 3


def all_tables(plan: Plan, results: Path) -> dict[str, str]:
    """Every table, by the name that stands in the document's markers."""
    return {name: suite_table(plan, name, results) for name in plan.suites} | {
        "diagnostics": reading_table(plan, results),
        "between": between_table(plan, results),
        "gradients": gradients_table(plan, results),
    }


def suite_table(plan: Plan, suite: str, results: Path) -> str:
    """A suite as Markdown: every row that has a cell, and what is missing."""
    chosen = plan.suites[suite]
    rows = {name: read_row(results, name) for name in chosen.rows}
    there = {name: row for name, row in rows.items() if row.cells}
    missing = [name for name in rows if name not in there]
    if not there:
        return f"{chosen.title}: not run yet.\n"
    base = _title(plan, chosen.against[0])
    counted = read_json(results / FLOPS) if (results / FLOPS).is_file() else {}
    head = ["", *HEADINGS.values(), "mean", f"against {base}", *TOKENS, "updates", "TFLOP", "seeds"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for name, row in there.items():
        against = there.get(plan.against(suite, name))
        lines.append(_line(_cells(plan, chosen.against[0], row, against, counted.get(name))))
    pairs = [
        (there[one], there[other])
        for one, other in chosen.differences
        if one in there and other in there and _common(there[one], there[other])
    ]
    if pairs:
        lines += ["", _line(["difference", "mean", *TOKENS, "seeds"]), _line(["---", *["---:"] * 4])]
        lines += [_line(_pair(plan, chosen.against[0], one, other)) for one, other in pairs]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _pair(plan: Plan, first: str, one: Row, other: Row) -> list[str]:
    title = f"{_titled(plan, first, one.name)} minus {_titled(plan, first, other.name)}"
    whole, *parts = [difference(one, other, names) for names in (SETS, *((name,) for name in TOKENS))]
    found = [_difference(of.mean, of.interval.low, of.interval.high) for of in (whole, *parts)]
    if differs(whole) and whole.seeds >= FEWEST_SEEDS:
        title, found[0] = f"**{title}**", f"**{found[0]}**"
    return [title, *found, str(whole.seeds)]


def _cells(
    plan: Plan, first: str, row: Row, against: Row | None, counted: dict[str, float] | None
) -> list[str]:
    title = _titled(plan, first, row.name)
    found = ["", "", ""]
    if against is not None and against.name != row.name and (_common(row, against)):
        whole = difference(row, against)
        parts = [difference(row, against, (name,)) for name in TOKENS]
        found = [_difference(one.mean, one.interval.low, one.interval.high) for one in (whole, *parts)]
        if differs(whole) and whole.seeds >= FEWEST_SEEDS:
            title, found[0] = f"**{title}**", f"**{found[0]}**"
    last = row.cells[row.seeds[0]]
    if not last["stages"]:
        cost = "0"
    else:
        cost = NONE if counted is None else f"{total(last, counted) / 1e12:.1f}"
    return [
        title,
        *(_mean(row, (name,)) for name in SETS),
        _mean(row, SETS),
        *found,
        str(last["student_updates"]),
        cost,
        str(len(row.seeds)) if last["stages"] else NONE,
    ]


def _common(one: Row, other: Row) -> bool:
    untrained = any(not next(iter(row.cells.values()))["stages"] for row in (one, other))
    return untrained or bool(set(one.seeds) & set(other.seeds))


def _mean(row: Row, sets: tuple[str, ...]) -> str:
    mean, spread = mean_and_spread(row, sets)
    return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _difference(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _titled(plan: Plan, first: str, row: str) -> str:
    """The row's title, with its setting where that is another than `first`'s."""
    setting = row.partition("/")[0]
    return _title(plan, row) + ("" if setting == first.partition("/")[0] else f" ({setting})")


def _title(plan: Plan, row: str) -> str:
    return plan.variants[row.partition("/")[2]].title


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def put_between_markers(document: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- table: NAME -->` and `<!-- end -->` by the table of that suite.

    Raises:
        ConfigError: the document has no such markers.
    """
    text = document.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (found and end):
            raise ConfigError(f"has no place for the table '{name}'", where=document)
        text = f"{before}{found}\n{table}\n{end}{after}"
    write_text(document, text)
