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

from bench.images import questions_of
from bench.journal import append_lines, read_lines
from bench.judge import Judge, OfflineJudge
from bench.llm_judge import PROMPT, LLMJudge, endpoint_from, read_prompt
from bench.part import part_of
from bench.perf import Perf, measure
from bench.readings import write_readings
from bench.report import Report, Result, print_reports, write_markdown
from bench.scoring import require_unique, score_and_outcome, template_sha256
from bench.subject import open_subject, spec_to_json
from bench.task import OFFICIAL, Choices, Row, Task
from bench.tasks import TASKS, task_named
from bench.types import Answer, Query, Subject, SubjectSpec
from bench.units import clusters_of, score_interval, weights_of
from genrecal.core.console import console, errors, progress
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
    tasks = _tasks_of(sets, compat)
    if judge_runs < 1:
        raise BenchError(f"{judge_runs} judge runs", where="bench", fix="Ask for one or more")
    choices = Choices(
        compat=compat,
        judge=judge or OfflineJudge(),
        judge_runs=judge_runs,
        official_random=official_random,
    )
    # Every set is read before the first answer, so that a bad file shows at once.
    questions = {name: part_of(task.load(sets[name]), limit) for name, task in tasks.items()}
    found = _overlap(subject, questions, overlap)
    versions = installed_versions()
    results: dict[str, Result] = {}
    timed: list[tuple[int, str, Row]] = []
    for name, of_set in questions.items():
        task = tasks[name]
        prompt_sha256 = template_sha256(task)
        data_sha256 = digest(of_set)
        answers = _answer_all(
            subject,
            task,
            of_set,
            journal_of(output, name),
            header={"subject": subject.fingerprint, "prompt": prompt_sha256, "data": data_sha256},
            quiet=quiet,
        )
        replies = {row: answer.text for row, answer in answers.items()}
        generation = "greedy" if subject.spec.greedy else "model"
        scored, outcome = score_and_outcome(task, of_set, replies, choices, generation=generation)
        if found:
            scored = replace(scored, details={**scored.details, "overlap": found.get(name, found)})
        write_readings(output, name, outcome)
        clusters, weights = clusters_of(of_set), weights_of(of_set, scored)
        results[name] = Result(
            score=scored,
            interval=score_interval(scored, clusters, weights, seed=seed),
            source=sets[name].name,
            data_sha256=data_sha256,
            prompt_sha256=prompt_sha256,
            generation=subject.facts.generation,
            versions=versions,
            answer_tokens=sum(answer.tokens for answer in answers.values()) / len(answers),
            clusters=clusters,
            path=str(sets[name].resolve()),
            weights=weights,
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
    write_markdown(output / TABLE, [report])
    write_json(output / NAME, asdict(report))
    if not quiet:
        print_reports([report])
        console.print(f"report: {output / TABLE}")
    return report


def bench_command(
    path: Path,
    *,
    sets: Mapping[str, Path],
    output: Path,
    device: str = "cpu",
    greedy: bool = False,
    batch_size: int = 16,
    judge_url: str | None = None,
    judge_model: str = "gpt-4-0613",
    judge_prompt: Path | None = None,
    judge_runs: int = 1,
    official_random: bool = False,
    compat: str = OFFICIAL,
    timed_queries: int = TIMED_QUERIES,
    limit: int | None = None,
    overlap: FindOverlap | None = None,
    manifest_sha256: str | None = None,
    trusted_keys: tuple[str, ...] = (),
) -> Report:
    """What `genrecal bench` does: open the subject and the judge, run, print.

    Raises:
        GenrecalError: the subject, a set, the judge or the device cannot be used.
    """
    _tasks_of(sets, compat)  # before a model is opened
    endpoint = endpoint_from(judge_model, judge_url)
    judge: Judge = OfflineJudge()
    if endpoint is not None:
        prompt = read_prompt(judge_prompt) if judge_prompt else PROMPT
        judge = LLMJudge(endpoint, output / "judge.jsonl", prompt=prompt)
    elif judge_prompt is not None or judge_runs > 1:
        raise BenchError("judge options without a judge", where="bench", fix="Give --judge-url too")
    name = f"{path.resolve().parent.name}/{path.resolve().name}"
    spec = SubjectSpec(
        path=path,
        name=name,
        device=device,
        greedy=greedy,
        batch_size=batch_size,
        manifest_sha256=manifest_sha256,
        trusted_keys=trusted_keys,
    )
    return run_bench(
        open_subject(spec),
        sets,
        output,
        judge=judge,
        judge_runs=judge_runs,
        official_random=official_random,
        compat=compat,
        timed_queries=timed_queries,
        limit=limit,
        overlap=overlap,
    )


def _overlap(
    subject: Subject, questions: Mapping[str, Sequence[Row]], find: FindOverlap | None
) -> Mapping[str, Any]:
    """What a benchmark and the training data have in common; a warning for each that has something."""
    if find is None:
        return {}
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


def named_sets(given: Mapping[str, Path | None], more: Sequence[str]) -> dict[str, Path]:
    """Benchmarks and their files, from options of their own and from NAME=PATH.

    Raises:
        BenchError: a text is not NAME=PATH, or names a benchmark that is named already.
    """
    sets = {name: path for name, path in given.items() if path is not None}
    for text in more:
        name, mark, path = text.partition("=")
        if not mark or not path:
            raise BenchError(f"'{text}' is not NAME=PATH", where="--test", fix=f"Names: {', '.join(TASKS)}")
        if name in sets:
            raise BenchError(f"'{name}' is named twice", where="--test")
        sets[name] = Path(path)
    return sets


def journal_of(output: Path, name: str) -> Path:
    """Where the answers to a set are kept."""
    return output / "answers" / f"{name}.jsonl"


def read_answers(output: Path, name: str) -> dict[str, Answer]:
    """The answers that a run has kept, by the id of the question or row.

    Raises:
        BenchError: there are none.
    """
    lines = read_lines(journal_of(output, name))
    if not lines:
        raise BenchError(f"holds no answers to '{name}'", where=output)
    return _answers(lines, journal_of(output, name))


def digest(value: Any) -> str:
    """SHA-256 of loaded questions: every field, images by their bytes."""
    state = hashlib.sha256()
    _feed(state, value, {})
    return state.hexdigest()


def _tasks_of(sets: Mapping[str, Path], compat: str) -> dict[str, Task]:
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


def _answers(lines: Sequence[Mapping[str, Any]], journal: Path) -> dict[str, Answer]:
    """The answers in a journal's lines, without its header."""
    require_unique((line["id"] for line in lines[1:]), where=str(journal))
    return {line["id"]: Answer(**line["answer"]) for line in lines[1:]}


def _answer_all(
    subject: Subject,
    task: Task,
    questions: Sequence[Row],
    journal: Path,
    *,
    header: dict[str, str],
    quiet: bool,
) -> dict[str, Answer]:
    lines = read_lines(journal)
    if not lines:
        append_lines(journal, [header])
    else:
        for key, what in (("subject", "subject or settings"), ("prompt", "prompts"), ("data", "test set")):
            if lines[0].get(key) != header[key]:
                raise BenchError(
                    f"holds answers with other {what}",
                    where=journal,
                    fix="Name another folder or delete the file",
                )
    answers = _answers(lines, journal)
    # Chunks are cut from the whole list, so that a resumed run batches, and samples, as it would have.
    chunks = [questions[start : start + subject.chunk] for start in range(0, len(questions), subject.chunk)]
    label = f"{subject.spec.name}: {task.name}"
    with progress(disable=quiet) as display:
        bar = display.add_task(label, total=len(questions), completed=len(answers), note="")
        for chunk in chunks:
            if all(question.id in answers for question in chunk):
                continue
            queries: list[Query] = [task.prompt(question) for question in chunk]
            new = {query.id: one for query, one in zip(queries, subject.answer(queries), strict=True)}
            new = {name: one for name, one in new.items() if name not in answers}
            append_lines(journal, [{"id": name, "answer": asdict(one)} for name, one in new.items()])
            answers |= new
            display.update(bar, completed=len(answers))
    return {question.id: answers[question.id] for question in questions}


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
