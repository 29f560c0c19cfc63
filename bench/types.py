"""The values that flow through the bench: Query -> Answer -> Score -> Report.

Shares and scores are fractions from 0 to 1; only what a person reads is in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

Part = str | Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One prompt: texts and images in the order in which the model reads them."""

    id: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a subject replied, without special tokens and without white space round it."""

    text: str
    tokens: int  # generated ones, the end-of-turn token included
    prompt_tokens: int  # image tokens included, padding not
    first_token_s: float | None  # None where the query was answered in a batch with others
    total_s: float  # in a batch: its even share of the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A device that ssh reaches, and what is there."""

    host: str  # as ssh takes it: user@jetson.local
    ssh: tuple[str, ...] = ("ssh",)  # the command, with options such as a port or a key
    command: str = "genrecal"  # there; genrecal[edge] is enough
    folder: str = ".cache/genrecal/builds"  # there, for copies of builds, each under its manifest's SHA-256
    watch: bool = False  # measure what the board takes


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """How to open a subject; what may change its answers is in its fingerprint."""

    name: str
    path: Path | None = None  # a checkpoint or a build
    url: str | None = None  # else an endpoint
    model: str | None = None  # endpoints only: its model's name
    adapter: Path | None = None  # checkpoints only: a LoRA adapter in PEFT's layout
    processes: int = 1  # checkpoints only: they share the questions; on cuda, each has a GPU of its own
    remote: Remote | None = None  # builds only: answered there
    device: str = "cpu"  # cpu | cuda | jetson
    threads: int | None = None  # None: what the runtime chooses
    batch_size: int = 16  # of an endpoint: requests at a time; a build answers one query at a time
    greedy: bool = False  # False: the model's own generation settings, as the paper scores its models
    max_new_tokens: int | None = None  # None: the model's own, or `subject.MAX_NEW_TOKENS` where it has none
    seed: int = 0  # of sampling, where the settings sample
    manifest_sha256: str | None = None  # builds only: the manifest that must be there
    trusted_keys: tuple[str, ...] = ()  # builds only: public keys, one of which must have signed it


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a score says about the subject that earned it."""

    kind: str  # checkpoint | build | endpoint
    weights_bytes: int | None  # None: behind an endpoint, unknown
    precision: str
    device: str
    generation: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)  # where it ran, where that is not here


class Subject(Protocol):
    """A checkpoint or a build; one protocol, so that both are asked the same questions."""

    @property
    def spec(self) -> SubjectSpec: ...

    @property
    def facts(self) -> Facts: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the subject's files and over the settings that shape its answers."""
        ...

    @property
    def chunk(self) -> int:
        """How many queries to hand over at once."""
        ...

    @property
    def lanes(self) -> int:
        """How many calls of `answer` may run at the same time, each in a thread of its own."""
        ...

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer for each query, in their order."""
        ...

    def forget(self) -> None:
        """Drop what is kept of earlier queries, so that the next one takes as long as a first one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a benchmark: a category, subject, domain or capability."""

    n: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A benchmark's result and what was chosen about it: scores that differ in a choice do not compare."""

    title: str  # the column's name
    benchmark: str  # its key in bench/tasks.py
    version: str
    split: str
    language: str
    compat: str  # whose rule: official | vlmevalkit | lmms
    prompt_sha256: str  # of the template
    generation: str  # model (its own settings) | greedy
    judge: Mapping[str, Any] | None  # None: rules alone
    score: float | None  # None: incomplete, no honest figure can be given
    n: int
    groups: Mapping[str, Mapping[str, Group]]  # kind of group -> name -> group
    hits: Mapping[str, float]  # question (a CircularEval group is one question) -> 0..1
    details: Mapping[str, Any] = field(default_factory=dict)  # counts reported apart, other readings
