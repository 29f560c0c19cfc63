"""What a benchmark is: files -> rows -> prompts, and replies -> a score by a named rule.

    Task: load(path) -> Rows      prompt(Row) -> Query      score(rows, replies, Choices) -> Outcome

bench/tasks.py has them all; each is one file in bench/sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.extraction import Reader
from bench.judge import Judge
from bench.types import Group, Query

OFFICIAL = "official"
VLMEVALKIT = "vlmevalkit"
LMMS = "lmms"
COMPATS = (OFFICIAL, VLMEVALKIT, LMMS)

ImageSource = Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question as it is asked; a CircularEval question has one row for each rotation."""

    id: str
    question: str
    images: Mapping[int, ImageSource]  # by the number that a prompt calls them, from 1
    gold: str | tuple[str, ...]  # a letter or an answer; several where each is right or annotators differ
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text; empty: an open question
    split: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kind of group -> its groups
    unit: str | None = None  # the question that the row is a rotation of; None: itself
    facts: Mapping[str, Any] = field(default_factory=dict)  # what this benchmark alone has

    @property
    def question_id(self) -> str:
        """What a score counts once."""
        return self.unit or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a benchmark's files come from."""

    files: str  # what lies on disk, for a person
    licence: str
    repository: str | None = None  # of the Hugging Face hub, a data set
    revision: str | None = None  # the commit of it that is fetched; None: the newest
    patterns: tuple[str, ...] = ()  # its files; empty: all
    urls: tuple[str, ...] = ()  # files that no hub has
    md5: Mapping[str, str] = field(default_factory=dict)  # of such a file, where its owners publish one


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What is chosen about a scoring, and stays with its score."""

    compat: str = OFFICIAL
    judge: Judge | None = None  # None: the offline judge, where a benchmark needs one
    judge_runs: int = 1
    reader: Reader | None = None  # None: code alone reads replies, where the official code asks an LLM too
    official_random: bool = False  # MMMU: draw what cannot be parsed, as the official script does


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What replies earned, before it is labelled."""

    score: float | None  # None: incomplete, no honest figure can be given
    hits: Mapping[str, float]  # question -> 0..1
    groups: Mapping[str, Mapping[str, Group]]
    details: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] | None = None
    title: str | None = None  # where it is not the task's
    read: Mapping[str, str] = field(default_factory=dict)  # row -> what the rule took for the answer
    words: Mapping[str, str] = field(default_factory=dict)  # row -> what the judge said


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark."""

    name: str  # its key in TASKS
    title: str  # the column's name
    version: str
    language: str  # en | zh
    template: str  # the prompt with its gaps; hashed into every score
    rule: str  # whose rule "official" is
    source: Source
    compats: tuple[str, ...]  # the rules that there are
    load: Callable[[Path], list[Row]]
    prompt: Callable[[Row], Query]
    score: Callable[[Sequence[Row], Mapping[str, str], Choices], Outcome]
