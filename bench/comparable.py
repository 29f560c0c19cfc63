"""Two scores are compared only where they differ in nothing but the subject."""

from __future__ import annotations

from bench.types import Score
from genrecal.core.errors import BenchError

# What a difference is called, for each label of a score.
LABELS = {
    "benchmark": "are of different benchmarks",
    "version": "are of different versions",
    "split": "are of different splits",
    "language": "are of different languages",
    "compat": "were scored by different rules",
    "prompt_sha256": "were asked in different words",
    "generation": "were generated with different settings",
    "judge": "had different judges",
}


def differences(one: Score, other: Score) -> dict[str, tuple[object, object]]:
    """The labels in which two scores differ, with both values."""
    return {
        label: (getattr(one, label), getattr(other, label))
        for label in LABELS
        if getattr(one, label) != getattr(other, label)
    }


def require_comparable(one: Score, other: Score, *, names: tuple[str, str] = ("one", "other")) -> None:
    """Refuse to compare scores that differ in more than the subject.

    Args:
        one: a score.
        other: another.
        names: of their subjects, for the error.

    Raises:
        BenchError: names every label that differs.
    """
    found = differences(one, other)
    if found:
        what = "; ".join(f"{LABELS[label]} ({left} / {right})" for label, (left, right) in found.items())
        raise BenchError(
            f"the scores of '{names[0]}' and '{names[1]}' {what}",
            where=one.title,
            fix="Score both with the same set, prompt, settings, judge and rule",
        )
