"""report.md: what a pull request needs of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cost_rows import cost_rows
from bench.differences import Compared, points, smallest
from bench.gate import Gate
from bench.report import NO_FIGURE, Report, markdown


def as_markdown(reports: Sequence[Report], compared: Mapping[str, Compared], gate: Gate | None) -> str:
    """report.md: what a pull request needs."""
    against = f" against {plain(reports[0].name)}" if len(reports) > 1 else ""
    lines = [f"### {plain(reports[-1].name)}{against}", ""]
    if gate is not None:
        lines += [f"**Gate: {gate.verdict}** (exit code {gate.exit_code})", ""]
        lines += ["| | difference | 95% interval | allowed | verdict |", "|---|---:|---:|---:|---|"]
        lines += [
            f"| {plain(part.title)} | {points(part.mean)} "
            f"| {points(part.interval.low)} to {points(part.interval.high)} "
            f"| {points(-part.allowed_drop)} | {part.verdict} |"
            for part in gate.asked
        ]
        lines.append("")
    lines += [markdown(reports).rstrip(), ""]
    if compared:
        lines += [
            "| | | difference | 95% interval | alone right | McNemar p | same score | smallest shown |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
    for name, one in compared.items():
        for key, difference in one.differences.items():
            table, p = difference.table, difference.mcnemar_p
            lines.append(
                f"| {plain(name)} | {plain(one.titles[key])} | {points(difference.mean)} "
                f"| {points(difference.interval.low)} to {points(difference.interval.high)} "
                f"| {f'{table.only_one} / {table.only_other}' if table else NO_FIGURE} "
                f"| {NO_FIGURE if p is None else f'{p:.3g}'} "
                f"| {100 * difference.agreement:.1f}% | {smallest(difference.smallest_shown)} |"
            )
    lines.append("")
    for report in reports:
        lines += [
            f"<details><summary>Cost of {plain(report.name)}</summary>",
            "",
            "| | | |",
            "|---|---:|---|",
        ]
        lines += [
            f"| {plain(what)} | {plain(value)} | {plain(how)} |" for what, value, how in cost_rows(report)
        ]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text that stays within its Markdown cell and holds no markup."""
    for mark in ("\\", "|", "<", "*", "_", "`", "[", "&"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
