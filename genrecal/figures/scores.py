"""A benchmark's score over seeds, with the spread that it must be shown with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import Report, Result, grid
from genrecal.core.errors import BenchError
from genrecal.figures.runs import Missing, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A score in percent. With one seed the interval is over questions, with several over the seeds."""

    mean: float
    low: float
    high: float
    seeds: int
    n: int  # questions


def scored(runs: Sequence[Run]) -> list[Run]:
    """The runs whose student was scored before and after, on the same questions.

    Raises:
        Missing: there is none, or the scores cannot be compared.
    """
    found = [run for run in runs if run.before is not None and run.after is not None]
    if not found:
        after = [run.folder for run in runs if run.after is None]
        if after:
            raise Missing(f"{after[0]} has no scores", fix=f"genrecal bench {after[0]}/student --mmb FILE")
        student = runs[0].config["student"]
        raise Missing(
            f"no scores of the student {student} before",
            fix=f"genrecal bench {student} --mmb FILE, or --baseline",
        )
    try:
        grid([report for run in found for report in (run.before, run.after) if report])
    except BenchError as error:
        raise Missing(f"the scores cannot be compared: {error}") from None
    return found


def benchmarks(runs: Sequence[Run]) -> list[str]:
    """Titles of the sets that some run was scored on before and after."""
    titles = dict.fromkeys(
        title for run in runs for title in by_title(run.after) if title in by_title(run.before)
    )
    return list(titles)


def by_title(report: Report | None) -> dict[str, Result]:
    """A report's results that have a score."""
    results = report.results.values() if report else ()
    return {result.score.title: result for result in results if result.score.score is not None}


def pooled(reports: Sequence[Report], title: str) -> Value | None:
    """The score of several seeds; None: none of them has one.

    A report that several runs share, as they started from one student, counts once.
    """
    distinct = {report.fingerprint: report for report in reports}
    results = [found for one in distinct.values() if (found := by_title(one).get(title))]
    if not results:
        return None
    scores = [100 * float(result.score.score or 0.0) for result in results]
    low, high = min(scores), max(scores)
    interval = results[0].interval
    if len(results) == 1 and interval is not None:
        low, high = 100 * interval.low, 100 * interval.high
    return Value(mean=sum(scores) / len(scores), low=low, high=high, seeds=len(results), n=results[0].score.n)


def whiskers(values: Sequence[Value]) -> str:
    """What the intervals of a figure are, for its caption."""
    if all(value.seeds == 1 for value in values):
        return "whiskers: 95% bootstrap interval over questions"
    if all(value.seeds > 1 for value in values):
        return f"means of {_counts(values)} seeds; whiskers: lowest and highest seed"
    return "whiskers: lowest and highest seed, or the 95% interval over questions where there is one seed"


def questions(counts: dict[str, int]) -> str:
    """`MMB n = 1,164, MMMU n = 900`."""
    return ", ".join(f"{title} n = {count:,}" for title, count in counts.items())


def _counts(values: Sequence[Value]) -> str:
    counts = sorted({value.seeds for value in values})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
