"""One subject through the benchmarks: read this first.

    sets -> questions -> queries -> Subject -> answers/<set>.jsonl -> scores + intervals + speed -> bench.json

Answers are appended as they come and resumed by their id, if the subject, the prompts and the questions are
the same; scoring always starts anew from the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import mmbench, mmmu, mmvet
from bench.journal import append_lines, read_lines
from bench.judge import Judge, OfflineJudge
from bench.llm_judge import PROMPT, LLMJudge, endpoint_from, read_prompt
from bench.part import part_of
from bench.perf import Perf, measure
from bench.report import Report, Result, print_reports, write_markdown
from bench.stats import bootstrap_interval
from bench.subject import open_subject, spec_to_json
from bench.types import Answer, Query, Score, Subject, SubjectSpec
from genrecal.core.console import console, progress
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes, write_json
from genrecal.core.manifest import installed_versions

BENCHMARKS: dict[str, ModuleType] = {"mmb": mmbench, "mmmu": mmmu, "mmvet": mmvet}
NAME = "bench.json"
TABLE = "bench.md"
TIMED_QUERIES = 12


def run_bench(
    subject: Subject,
    sets: Mapping[str, Path],
    output: Path,
    *,
    judge: Judge | None = None,
    judge_runs: int = 1,
    official_random: bool = False,
    timed_queries: int = TIMED_QUERIES,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Answer every question of `sets`, score, time, and write `output`/bench.md and, last, bench.json.

    Args:
        subject: what `open_subject` gave.
        sets: "mmb" (a TSV), "mmmu" (a parquet file or a folder of them), "mmvet" (mm-vet.json or its folder).
        output: the folder of this subject's answers and results.
        judge: grades MM-Vet's answers; None: the offline judge.
        judge_runs: gradings of MM-Vet that are averaged.
        official_random: draw MMMU's answers that cannot be parsed, as the official script does.
        timed_queries: of the queries with the longest answers, for latency and speed; 0 leaves them out.
        limit: questions of each set at the most, evenly spaced; None: all.
        seed: of the bootstrap.
        quiet: print neither progress nor the table.

    Raises:
        BenchError, DataError: a set cannot be used, or `output` holds answers of another run.
    """
    _check_sets(sets)
    if judge_runs < 1:
        raise BenchError(f"{judge_runs} judge runs", where="bench", fix="Ask for one or more")
    judge = judge or OfflineJudge()
    # Every set is read before the first answer, so that a bad file shows at once.
    questions: dict[str, Sequence[Any]] = {
        name: part_of(name, BENCHMARKS[name].load(sets[name]), limit) for name in BENCHMARKS if name in sets
    }
    versions = installed_versions()
    results: dict[str, Result] = {}
    timed: list[tuple[int, str, Any]] = []
    for name, of_set in questions.items():
        prompt_sha256 = sha256_bytes(BENCHMARKS[name].PROMPT_TEMPLATE.encode())
        data_sha256 = digest(of_set)
        answers = _answer_all(
            subject,
            name,
            of_set,
            journal_of(output, name),
            header={"subject": subject.fingerprint, "prompt": prompt_sha256, "data": data_sha256},
            quiet=quiet,
        )
        score = _score(name, of_set, answers, judge, judge_runs, official_random)
        results[name] = Result(
            score=score,
            interval=bootstrap_interval(list(score.hits.values()), seed=seed) if score.hits else None,
            source=sets[name].name,
            data_sha256=data_sha256,
            prompt_sha256=prompt_sha256,
            generation=subject.facts.generation,
            versions=versions,
            answer_tokens=sum(answer.tokens for answer in answers.values()) / len(answers),
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
    timed_queries: int = TIMED_QUERIES,
    limit: int | None = None,
    manifest_sha256: str | None = None,
    trusted_keys: tuple[str, ...] = (),
) -> Report:
    """What `genrecal bench` does: open the subject and the judge, run, print.

    Raises:
        GenrecalError: the subject, a set, the judge or the device cannot be used.
    """
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
    _check_sets(sets)
    return run_bench(
        open_subject(spec),
        sets,
        output,
        judge=judge,
        judge_runs=judge_runs,
        official_random=official_random,
        timed_queries=timed_queries,
        limit=limit,
    )


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
    return {line["id"]: Answer(**line["answer"]) for line in lines[1:]}


def digest(value: Any) -> str:
    """SHA-256 of loaded questions: every field, images by their bytes."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _check_sets(sets: Mapping[str, Path]) -> None:
    unknown = sorted(sets.keys() - BENCHMARKS.keys())
    if unknown:
        raise BenchError(f"unknown set '{unknown[0]}'", where="bench", fix=f"Known: {', '.join(BENCHMARKS)}")
    if not sets:
        raise BenchError("no test set is named", where="bench", fix="Give --mmb, --mmmu or --mm-vet")


def _answer_all(
    subject: Subject,
    name: str,
    questions: Sequence[Any],
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
    answers = {line["id"]: Answer(**line["answer"]) for line in lines[1:]}
    # Chunks are cut from the whole list, so that a resumed run batches, and samples, as it would have.
    chunks = [questions[start : start + subject.chunk] for start in range(0, len(questions), subject.chunk)]
    label = f"{subject.spec.name}: {name}"
    with progress(disable=quiet) as display:
        task = display.add_task(label, total=len(questions), completed=len(answers), note="")
        for chunk in chunks:
            if all(question.id in answers for question in chunk):
                continue
            queries: list[Query] = [BENCHMARKS[name].as_query(question) for question in chunk]
            new = {query.id: one for query, one in zip(queries, subject.answer(queries), strict=True)}
            new = {name: one for name, one in new.items() if name not in answers}
            append_lines(journal, [{"id": name, "answer": asdict(one)} for name, one in new.items()])
            answers |= new
            display.update(task, completed=len(answers))
    return {question.id: answers[question.id] for question in questions}


def _score(
    name: str,
    questions: Sequence[Any],
    answers: Mapping[str, Answer],
    judge: Judge,
    judge_runs: int,
    official_random: bool,
) -> Score:
    replies = {question: answer.text for question, answer in answers.items()}
    if name == "mmvet":
        return mmvet.score(questions, replies, judge, runs=judge_runs)
    if name == "mmmu":
        return mmmu.score(questions, replies, official_random=official_random)
    return mmbench.score(questions, replies)


def _time(subject: Subject, candidates: Sequence[tuple[int, str, Any]], count: int) -> Perf | None:
    """Time the questions with the longest answers: short ones say nothing about tokens per second."""
    if count <= 0:
        return None
    longest = sorted(candidates, key=lambda one: (-one[0], one[1], one[2].id))[:count]
    return measure(subject.spec, [BENCHMARKS[name].as_query(question) for _, name, question in longest])


def _feed(state: Any, value: Any) -> None:
    """Hash a value with the lengths of its parts, so that different values give different streams."""
    if isinstance(value, Path):
        value = value.read_bytes()
    if isinstance(value, bytes):
        state.update(b"b%d:" % len(value) + value)
    elif is_dataclass(value):
        _feed(state, [getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Mapping):
        _feed(state, [[key, value[key]] for key in value])
    elif isinstance(value, list | tuple):
        state.update(b"l%d:" % len(value))
        for part in value:
            _feed(state, part)
    else:
        text = repr(value).encode()
        state.update(b"s%d:" % len(text) + text)
