"""From questions to answers on disk: batches by length, images decoded ahead, resumed by id.

    rows -> batches, without what is answered -> prompts, made in threads -> Subject.answer -> the journal

A batch is one line there: whole or not at all, so a run that was killed at any moment asks again only what
nobody has recorded. A subject with several lanes answers several batches at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from threading import Semaphore
from typing import Any

from bench.batches import batches
from bench.journal import Journal, read_lines
from bench.task import Row, Task
from bench.types import Answer, Query, Subject
from genrecal.core.errors import BenchError
from genrecal.core.eta import with_eta

DECODERS = 2  # threads that make prompts while a subject answers
AHEAD = 4  # batches whose prompts are ready or being made

Batch = list[Row]
Done = tuple[Batch, list[Answer]]
# What must be the same for answers to be of this run, and what an error calls it.
SAME = (("subject", "subject or settings"), ("prompt", "prompts"), ("data", "test set"))


def answer_all(
    subject: Subject,
    task: Task,
    rows: Sequence[Row],
    path: Path,
    *,
    header: Mapping[str, Any],
    quiet: bool,
) -> dict[str, Answer]:
    """The answer to every row, asked for or read from the journal at `path`.

    Args:
        header: the journal's first line; `SAME` says what of it must agree with one that is there.
        quiet: print no progress.

    Raises:
        BenchError: the journal is of another subject, prompt or test set, or in use.
    """
    with Journal(path) as journal:
        if journal.lines:
            require_same(journal.lines[0], header, path)
        else:
            journal.append(header)
        answers = answers_in(journal.lines, path)
        left = [[row for row in batch if row.id not in answers] for batch in batches(rows, subject.chunk)]
        plan = [batch for batch in left if batch]
        coming = _in_turn(subject, task, plan) if subject.lanes == 1 else _side_by_side(subject, task, plan)
        if not quiet:
            before = len(answers)
            coming = with_eta(
                coming,
                what=f"{subject.spec.name}: {task.name}",
                total=sum(map(len, plan)),
                done=lambda done: len(answers) - before + len(done[0]),
            )
        for batch, new in coming:
            by_id = {row.id: one for row, one in zip(batch, new, strict=True)}
            journal.append({"answers": {name: asdict(one) for name, one in by_id.items()}})
            answers |= by_id
    return {row.id: answers[row.id] for row in rows}


def read_answers(path: Path) -> tuple[dict[str, Any], dict[str, Answer]]:
    """A journal's header and its answers by the row's id.

    Raises:
        BenchError: there are none.
    """
    lines = read_lines(path, mend=False)
    if not lines:
        raise BenchError("holds no answers", where=path)
    return lines[0], answers_in(lines, path)


def answers_in(lines: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Answer]:
    """The answers of a journal's lines behind its header.

    Raises:
        BenchError: an id stands there twice, or a line is none of a journal of answers.
    """
    found: dict[str, Answer] = {}
    for line in lines[1:]:
        try:
            new = {name: Answer(**fields) for name, fields in line["answers"].items()}
        except (KeyError, TypeError, AttributeError):
            raise BenchError("is no journal of answers", where=path, fix="Delete it to answer anew") from None
        if twice := found.keys() & new.keys():
            raise BenchError(f"'{min(twice)}' is answered twice", where=path)
        found |= new
    return found


def require_same(found: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> None:
    for key, what in SAME:
        if found.get(key) != header[key]:
            raise BenchError(
                f"holds answers with other {what}", where=path, fix="Name another folder or delete the file"
            )


def _in_turn(subject: Subject, task: Task, plan: Sequence[Batch]) -> Iterator[Done]:
    """One batch after the other, in this thread."""
    todo = iter(plan)
    ready: deque[tuple[Batch, Future[list[Query]]]] = deque()
    with ThreadPoolExecutor(DECODERS) as decoders:
        try:
            while True:
                while len(ready) < AHEAD and (batch := next(todo, None)) is not None:
                    ready.append((batch, decoders.submit(_prompts, task, batch)))
                if not ready:
                    return
                batch, prompts = ready.popleft()
                yield batch, subject.answer(prompts.result())
        finally:
            for _, waiting in ready:
                waiting.cancel()


def _side_by_side(subject: Subject, task: Task, plan: Sequence[Batch]) -> Iterator[Done]:
    """`subject.lanes` batches at a time; what was answered when another batch failed is given out first."""
    places = Semaphore(subject.lanes)

    def work(batch: Batch) -> Done:
        prompts = _prompts(task, batch)
        with places:
            return batch, subject.answer(prompts)

    todo, running = iter(plan), set[Future[Done]]()
    with ThreadPoolExecutor(subject.lanes + DECODERS) as workers:
        try:
            while True:
                while len(running) < subject.lanes + AHEAD and (batch := next(todo, None)) is not None:
                    running.add(workers.submit(work, batch))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _prompts(task: Task, batch: Batch) -> list[Query]:
    return [task.prompt(row) for row in batch]
