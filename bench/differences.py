"""Two reports side by side, build minus baseline, in every benchmark; refused where they do not compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.comparable import require_comparable
from bench.paired import Difference, difference_and_draws, scored_by_both
from bench.report import Report, Result
from genrecal.core.errors import BenchError

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
# Generation setting -> transformers' default.
DECODING: dict[str, Any] = {
    "max_new_tokens": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two reports side by side, build minus baseline, and the draws behind each interval."""

    differences: Mapping[str, Difference]
    draws: Mapping[str, np.ndarray]
    titles: Mapping[str, str]


def compare(build: Report, baseline: Report, *, whole: bool = True, seed: int = 0) -> Compared:
    """The paired difference in every benchmark of `build`.

    Args:
        build: what is compared.
        baseline: what it is compared with.
        whole: refuse a benchmark that one of them lacks or has no complete score in; else leave it out.
        seed: of the draws.

    Raises:
        BenchError: a benchmark is missing in `baseline`, is incomplete, or differs in a choice or its ids.
    """
    differences, draws, titles = {}, {}, {}
    for place, (name, result) in enumerate(sorted(build.results.items())):
        if not whole and not (_complete(baseline, name) and _complete(build, name)):
            continue
        if name not in baseline.results:
            raise BenchError(
                f"has no score in '{name}', the build has",
                where=baseline.name,
                fix="Bench both on the same test sets",
            )
        other = baseline.results[name]
        for report, one in ((build, result), (baseline, other)):
            if one.score.score is None:
                raise BenchError(
                    f"the score of '{report.name}' is incomplete",
                    where=result.score.title,
                    fix="Run the judge again; its replies so far are kept",
                )
        require_same_questions(result, other, names=(build.name, baseline.name))
        one_hits, other_hits, left_out = scored_by_both(result.score.hits, other.score.hits)
        differences[name], draws[name] = difference_and_draws(
            one_hits,
            other_hits,
            clusters=result.clusters,
            weights=result.weights,
            seed=seed + place,
            left_out=left_out,
        )
        titles[name] = result.score.title
    if whole and not differences:
        raise BenchError("has no scores", where=build.name)
    return Compared(differences=differences, draws=draws, titles=titles)


def _complete(report: Report, name: str) -> bool:
    return name in report.results and report.results[name].score.score is not None


def require_same_questions(one: Result, other: Result, *, names: tuple[str, str]) -> None:
    """Refuse two results that differ in a choice, in how answers were drawn, or in the questions.

    Raises:
        BenchError: names what differs.
    """
    require_comparable(one.score, other.score, names=names)
    left, right = decoding(one.generation), decoding(other.generation)
    if left != right:
        odd = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
        found = ", ".join(f"{key} {left.get(key, 'unset')} / {right.get(key, 'unset')}" for key in odd)
        raise BenchError(
            f"'{names[0]}' and '{names[1]}' were generated with different settings ({found})",
            where=one.score.title,
            fix="Bench both with the same settings",
        )
    if one.data_sha256 != other.data_sha256:
        strange = sorted(one.score.hits.keys() ^ other.score.hits.keys())
        what = (
            f"ids, '{strange[0]}' the first of {len(strange)}" if strange else "contents under the same ids"
        )
        raise BenchError(
            f"'{names[0]}' and '{names[1]}' answered different questions ({what})",
            where=one.score.title,
            fix="Bench both on the same files, with the same --limit",
        )


def decoding(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide how tokens are drawn, without what is left at its default."""
    found = {name: generation[name] for name in DECODING if generation.get(name) is not None}
    if not found.get("do_sample", False):
        for name in ("do_sample", *SAMPLING):
            found.pop(name, None)
    return {name: value for name, value in found.items() if value != DECODING[name]}


def difference_lines(compared: Compared, *, names: tuple[str, str]) -> list[str]:
    """The paired differences in points, a line for each benchmark."""
    lines = [f"{names[0]} minus {names[1]}, in points with the 95% interval"]
    for name, difference in compared.differences.items():
        interval = difference.interval
        line = f"  {compared.titles[name]}: {points(difference.mean)}"
        line += f" [{points(interval.low)}, {points(interval.high)}]"
        if difference.table is not None:
            line += f", right alone {difference.table.only_one} / {difference.table.only_other}"
            line += f", McNemar p = {difference.mcnemar_p:.3g}"
        line += f", same score in {100 * difference.agreement:.1f}% of {difference.n}"
        if difference.clusters < difference.n:
            line += f" ({difference.clusters} images)"
        line += f", smallest shown {smallest(difference.smallest_shown)}"
        if difference.left_out:
            line += f", {difference.left_out} unscored left out"
        lines.append(line)
    return lines


def points(share: float) -> str:
    """A difference in points with its sign; a zero has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def smallest(share: float) -> str:
    """The smallest difference that a set shows, in points; a set of a few questions shows none."""
    return f"{100 * share:.1f}" if share <= 1 else "none"
