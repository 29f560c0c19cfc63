"""One subject through the benchmarks: read this first.

    sets -> questions -> queries -> Subject -> answers/<set>.jsonl -> scores + intervals + speed -> bench.json

Answers are appended as they come and resumed by their id, if the subject, the prompts and the questions are
the same; scoring always starts anew from the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import answering
from bench.answering import answer_all
from bench.extraction import Reader
from bench.images import questions_of
from bench.judge import Judge, OfflineJudge
from bench.part import part_details, part_of
from bench.perf import Perf, measure
from bench.readings import write_readings
from bench.report import Report, Result, print_reports, write_markdown
from bench.scoring import score_and_outcome, template_sha256
from bench.subject import spec_to_json
from bench.task import OFFICIAL, Choices, Row, Task
from bench.tasks import TASKS, task_named
from bench.types import Answer, Subject
from bench.units import clusters_of, score_interval, weights_of
from genrecal.core.console import console, errors
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_file, write_json
from genrecal.core.manifest import installed_versions

NAME = "bench.json"
TABLE = "bench.md"
TIMED_QUERIES = 12
# Subject and readers of each benchmark's questions -> a record of each (genrecal/data/subject_overlap.py).
FindOverlap = Callable[[Path, Mapping[str, Callable[[], Any]]], Mapping[str, Any]]


def run_bench(
    subject: Subject,
    sets: Mapping[str, Path],
    output: Path,
    *,
    judge: Judge | None = None,
    judge_runs: int = 1,
    reader: Reader | None = None,
    official_random: bool = False,
    compat: str = OFFICIAL,
    timed_queries: int = TIMED_QUERIES,
    limit: int | None = None,
    overlap: FindOverlap | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Answer every question of `sets`, score, time, and write `output`/bench.md and, last, bench.json.

    Args:
        subject: what `open_subject` gave.
        sets: name of a benchmark (bench/tasks.py) -> its files.
        output: the folder of this subject's answers and results.
        judge: grades MM-Vet's answers; None: the offline judge.
        judge_runs: gradings of MM-Vet that are averaged.
        reader: reads replies where MathVista's and BLINK's own code asks an LLM; None: code alone.
        official_random: draw MMMU's answers that cannot be parsed, as the official script does.
        compat: whose rule scores: official, vlmevalkit or lmms.
        timed_queries: of the queries with the longest answers, for latency and speed; 0 leaves them out.
        limit: questions of each set at the most, evenly spaced; None: all.
        overlap: looks for the questions in what the subject learnt from; None: nobody looks.
        seed: of the bootstrap.
        quiet: print neither progress nor the table.

    Raises:
        BenchError, DataError: a set cannot be used, or `output` holds answers of another run.
    """
    tasks = tasks_of(sets, compat)
    if judge_runs < 1:
        raise BenchError(f"{judge_runs} judge runs", where="bench", fix="Ask for one or more")
    choices = Choices(
        compat=compat,
        judge=judge or OfflineJudge(),
        judge_runs=judge_runs,
        reader=reader,
        official_random=official_random,
    )
    # Every set is read before the first answer, so that a bad file shows at once.
    whole = {name: task.load(sets[name]) for name, task in tasks.items()}
    questions = {name: part_of(rows, limit) for name, rows in whole.items()}
    found = _overlap(subject, questions, overlap)
    results: dict[str, Result] = {}
    timed: list[tuple[int, str, Row]] = []
    for name, of_set in questions.items():
        task = tasks[name]
        data_sha256 = digest(of_set)
        header = {
            "subject": subject.fingerprint,
            "prompt": template_sha256(task),
            "data": data_sha256,
            "set": name,
            "source": str(sets[name].resolve()),
            "limit": limit,
            "name": subject.spec.name,
            "spec": spec_to_json(subject.spec),
            "facts": asdict(subject.facts),
        }
        answers = answer_all(subject, task, of_set, journal_of(output, name), header=header, quiet=quiet)
        results[name] = result_of(
            task,
            of_set,
            answers,
            choices,
            generation="greedy" if subject.spec.greedy else "model",
            settings=subject.facts.generation,
            more={
                **part_details(of_set, whole[name]),
                **({"overlap": found.get(name, found)} if found else {}),
            },
            path=sets[name],
            data_sha256=data_sha256,
            output=output,
            seed=seed,
        )
        timed += [(answers[question.id].tokens, name, question) for question in of_set]
    report = Report(
        name=subject.spec.name,
        spec=spec_to_json(subject.spec),
        facts=subject.facts,
        fingerprint=subject.fingerprint,
        results=results,
        perf=_time(subject, timed, timed_queries),
    )
    write_report(report, output, quiet=quiet)
    return report


def result_of(
    task: Task,
    rows: Sequence[Row],
    answers: Mapping[str, Answer],
    choices: Choices,
    *,
    generation: str,
    settings: Mapping[str, Any],
    path: Path,
    data_sha256: str,
    output: Path,
    more: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Result:
    """Score answers, label the score and write what the rule read in each reply.

    The same for answers that just came and for saved ones.

    Args:
        answers: row id -> answer.
        generation: model or greedy.
        settings: of generation, as they were.
        path: the set's file or folder.
        data_sha256: `digest` of the rows.
        output: the result folder.
        more: further details of the score.
        seed: of the bootstrap.
    """
    replies = {row: answer.text for row, answer in answers.items()}
    scored, outcome = score_and_outcome(task, rows, replies, choices, generation=generation)
    scored = replace(scored, details={**scored.details, **(more or {})})
    write_readings(output, scored.benchmark, outcome)
    clusters, weights = clusters_of(rows), weights_of(rows, scored)
    return Result(
        score=scored,
        interval=score_interval(scored, clusters, weights, seed=seed),
        source=path.name,
        data_sha256=data_sha256,
        prompt_sha256=template_sha256(task),
        generation=settings,
        versions=installed_versions(),
        answer_tokens=sum(answer.tokens for answer in answers.values()) / len(answers),
        clusters=clusters,
        path=str(path.resolve()),
        weights=weights,
    )


def write_report(report: Report, output: Path, *, quiet: bool = False) -> None:
    """Write bench.md and, last, bench.json; print the table unless `quiet`."""
    write_markdown(output / TABLE, [report])
    write_json(output / NAME, asdict(report))
    if not quiet:
        print_reports([report])
        console.print(f"report: {output / TABLE}")


def _overlap(
    subject: Subject, questions: Mapping[str, Sequence[Row]], find: FindOverlap | None
) -> Mapping[str, Any]:
    """What a benchmark and the training data have in common; a warning for each that has something."""
    if find is None:
        return {}
    if subject.spec.path is None:
        return {"not known": "an endpoint does not name its training data"}
    readers = {name: partial(questions_of, rows, where=name) for name, rows in questions.items()}
    found = find(subject.spec.path, readers)
    for line in overlap_lines(found):
        errors.print(f"warning: {line}", markup=False, soft_wrap=True)
    return found


def overlap_lines(found: Mapping[str, Any]) -> list[str]:
    """What a person is told of overlap with the training data; nothing where none was found."""
    lines = []
    for name, record in found.items():
        if isinstance(record, str):
            lines.append(f"overlap with the training data: {name} ({record})")
        elif record["samples"]:
            by = ", ".join(f"{count} by {why}" for why, count in sorted(record["by"].items()))
            lines.append(
                f"{name}: {record['samples']} of {record['compared']} training samples overlap with "
                f"{record['questions']} of its images and questions ({by}): its score measures memory too"
            )
    return lines


def journal_of(output: Path, name: str) -> Path:
    """Where the answers to a set are kept."""
    return output / "answers" / f"{name}.jsonl"


def read_answers(output: Path, name: str) -> dict[str, Answer]:
    """The answers that a run has kept, by the id of the question or row.

    Raises:
        BenchError: there are none.
    """
    return answering.read_answers(journal_of(output, name))[1]


def digest(value: Any) -> str:
    """SHA-256 of loaded questions: every field, images by their bytes."""
    state = hashlib.sha256()
    _feed(state, value, {})
    return state.hexdigest()


def tasks_of(sets: Mapping[str, Path], compat: str) -> dict[str, Task]:
    """The tasks of `sets` in the order of TASKS; all have the rule that is asked for."""
    for name in sets:
        task = task_named(name)
        if compat not in task.compats:
            raise BenchError(
                f"'{name}' has no rule '{compat}'", where="bench", fix=f"It has: {', '.join(task.compats)}"
            )
    if not sets:
        raise BenchError("no test set is named", where="bench", fix="Give --mmb, --mmmu, --mm-vet or --test")
    return {name: task for name, task in TASKS.items() if name in sets}


def _time(subject: Subject, candidates: Sequence[tuple[int, str, Row]], count: int) -> Perf | None:
    """Time the questions with the longest answers: short ones say nothing about tokens per second."""
    if count <= 0:
        return None
    longest = sorted(candidates, key=lambda one: (-one[0], one[1], one[2].id))[:count]
    return measure(subject.spec, [TASKS[name].prompt(question) for _, name, question in longest])


def _feed(state: Any, value: Any, files: dict[Path, bytes]) -> None:
    """Hash a value with the lengths of its parts, so that different values give different streams.

    Args:
        state: takes the stream.
        value: what is hashed.
        files: digests of files that came before: thousands of questions may share an image.
    """
    if isinstance(value, Path):
        if value not in files:
            files[value] = bytes.fromhex(sha256_file(value))
        value = files[value]
    if isinstance(value, bytes):
        state.update(b"b%d:" % len(value) + value)
    elif is_dataclass(value):
        _feed(state, [getattr(value, field.name) for field in fields(value)], files)
    elif isinstance(value, Mapping):
        _feed(state, [[key, value[key]] for key in value], files)
    elif isinstance(value, list | tuple):
        state.update(b"l%d:" % len(value))
        for part in value:
            _feed(state, part, files)
    else:
        text = repr(value).encode()
        state.update(b"s%d:" % len(text) + text)
