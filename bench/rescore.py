"""`genrecal score`: saved answers scored again, without the model.

    a bench folder     its journals name subject, set and settings; the rows must be the very same
    a JSON file        id -> reply of one set, as MM-Vet's own tools write it

Of a file nobody knows who replied, nor by which settings: its scores say "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.answering import read_answers
from bench.command import require_complete
from bench.extraction import Reader
from bench.judge import Judge, OfflineJudge
from bench.part import part_details, part_of
from bench.report import Report, Result, read_report
from bench.run import NAME, digest, journal_of, result_of, tasks_of, write_report
from bench.scoring import require_answers, template_sha256
from bench.task import OFFICIAL, Choices
from bench.tasks import TASKS, task_named
from bench.types import Answer, Facts
from genrecal.core.errors import BenchError
from genrecal.core.files import read_json, sha256_file

UNKNOWN = "unknown"


def score_command(
    saved: Path,
    *,
    sets: Mapping[str, Path],
    output: Path | None = None,
    judge: Judge | None = None,
    judge_runs: int = 1,
    reader: Reader | None = None,
    official_random: bool = False,
    compat: str = OFFICIAL,
    quiet: bool = False,
) -> Report:
    """Score saved answers and write bench.md and bench.json.

    Args:
        saved: the folder of a bench run, or a JSON file of replies to one set.
        sets: as in `run_bench`; of a folder, none: those that it has answers to, where they lay then.
        output: None: the folder itself, whose bench.json is replaced; of a file, a folder beside it.
        judge: as in `run_bench`, like the rest.

    Raises:
        BenchError: there are no answers, or they are to other questions or prompts; or a score is incomplete.
    """
    if not saved.exists():
        raise BenchError("no such folder or file", where=saved, fix="Name what genrecal bench wrote")
    choices = Choices(
        compat=compat,
        judge=judge or OfflineJudge(),
        judge_runs=judge_runs,
        reader=reader,
        official_random=official_random,
    )
    if saved.is_dir():
        output = output or saved
        report = _of_folder(saved, sets, choices, output)
    else:
        output = output or saved.parent / f"{saved.stem}-bench"
        report = _of_file(saved, sets, choices, output)
    write_report(report, output, quiet=quiet)
    require_complete(report, output)
    return report


def _of_folder(folder: Path, sets: Mapping[str, Path], choices: Choices, output: Path) -> Report:
    names = [name for name in TASKS if journal_of(folder, name).is_file()]
    if missing := sorted(sets.keys() - set(names)):
        raise BenchError(f"holds no answers to '{missing[0]}'", where=folder)
    if not names:
        raise BenchError("holds no answers", where=folder, fix="Name the folder that genrecal bench wrote")
    before = read_report(folder) if (folder / NAME).is_file() else None
    results: dict[str, Result] = {}
    first: dict[str, Any] = {}
    for name in names:
        task = task_named(name)
        journal = journal_of(folder, name)
        header, answers = read_answers(journal)
        first = first or header
        if header["subject"] != first["subject"]:
            raise BenchError("holds answers of several subjects", where=folder)
        if header["prompt"] != template_sha256(task):
            raise BenchError("was asked in other words than this version asks", where=journal)
        path = sets.get(name) or Path(header["source"])
        whole = tasks_of({name: path}, choices.compat)[name].load(path)
        rows = part_of(whole, header["limit"])
        data_sha256 = digest(rows)
        if header["data"] != data_sha256:
            raise BenchError(
                f"its answers are to other questions than those of {path}",
                where=journal,
                fix="Name the files that were used then",
            )
        require_answers(rows, {key: one.text for key, one in answers.items()}, where=str(journal))
        results[name] = result_of(
            task,
            rows,
            answers,
            choices,
            generation="greedy" if header["spec"]["greedy"] else "model",
            settings=header["facts"]["generation"],
            path=path,
            data_sha256=data_sha256,
            output=output,
            more={**part_details(rows, whole), **_kept(before, name)},
        )
    return Report(
        name=first["name"],
        spec=first["spec"],
        facts=Facts(**first["facts"]),
        fingerprint=first["subject"],
        results=results,
        # What was measured then holds still.
        perf=before.perf if before and before.fingerprint == first["subject"] else None,
    )


def _kept(before: Report | None, name: str) -> dict[str, Any]:
    """What scoring does not find out anew: the overlap with the training data."""
    if before is None or name not in before.results:
        return {}
    details = before.results[name].score.details
    return {"overlap": details["overlap"]} if "overlap" in details else {}


def _of_file(file: Path, sets: Mapping[str, Path], choices: Choices, output: Path) -> Report:
    if len(sets) != 1:
        raise BenchError("a file of replies is to one set", where=file, fix="Name it, such as --mmmu PATH")
    ((name, path),) = sets.items()
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(reply, str) for reply in content.values()):
        raise BenchError("maps no ids to replies", where=file, fix="Name a bench folder or such a JSON file")
    task = tasks_of(sets, choices.compat)[name]
    rows = task.load(path)
    require_answers(rows, content, where=str(file))
    answers = {
        key: Answer(text=reply, tokens=0, prompt_tokens=0, first_token_s=None, total_s=0.0)
        for key, reply in content.items()
    }
    result = result_of(
        task,
        rows,
        answers,
        choices,
        generation=UNKNOWN,
        settings={},
        path=path,
        data_sha256=digest(rows),
        output=output,
    )
    return Report(
        name=file.stem,
        spec={"answers": file.name},
        facts=Facts(kind="answers", weights_bytes=None, precision=UNKNOWN, device=UNKNOWN, generation={}),
        fingerprint=sha256_file(file),
        results={name: result},
        perf=None,
    )
