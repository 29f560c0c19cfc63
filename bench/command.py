"""`genrecal bench`: from what a command line says to a subject, a judge and a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.chat import endpoint_from
from bench.extraction import ExtractionPrompt, Reader
from bench.judge import Judge, OfflineJudge
from bench.judge_prompt import JudgePrompt, read_prompt
from bench.kept_replies import KeptReplies
from bench.llm_judge import LLMJudge
from bench.llm_reader import LLMReader
from bench.report import Report
from bench.run import TIMED_QUERIES, FindOverlap, run_bench, tasks_of
from bench.subject import default_output, open_subject, spec_of
from bench.task import OFFICIAL
from bench.tasks import TASKS
from bench.types import Remote
from genrecal.core.errors import BenchError


def bench_command(
    subject: str | Path,
    *,
    sets: Mapping[str, Path],
    output: Path | None = None,
    device: str = "cpu",
    greedy: bool = False,
    batch_size: int = 16,
    adapter: Path | None = None,
    processes: int = 1,
    model: str | None = None,
    remote: Remote | None = None,
    judge_url: str | None = None,
    judge_model: str = "gpt-4-0613",
    judge_prompts: Sequence[Path] = (),
    judge_runs: int = 1,
    judge_cache: Path | None = None,
    judge_replay: bool = False,
    judge_control: bool = True,
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
        GenrecalError: the subject, a set, the judge or the device cannot be used, or a score is incomplete.
    """
    tasks_of(sets, compat)  # before a model is opened
    spec = spec_of(
        subject,
        device=device,
        greedy=greedy,
        batch_size=batch_size,
        adapter=adapter,
        processes=processes,
        model=model,
        remote=remote,
        manifest_sha256=manifest_sha256,
        trusted_keys=trusted_keys,
    )
    output = output or default_output(spec)
    judges = open_judges(
        judge_model,
        judge_url,
        judge_cache or output / "judge.jsonl",
        prompts=judge_prompts,
        runs=judge_runs,
        replay_only=judge_replay,
        control=judge_control,
    )
    report = run_bench(
        open_subject(spec),
        sets,
        output,
        judge=judges.judge,
        reader=judges.reader,
        judge_runs=judge_runs,
        official_random=official_random,
        compat=compat,
        timed_queries=timed_queries,
        limit=limit,
        overlap=overlap,
    )
    require_complete(report, output)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who grades replies, and who reads them."""

    judge: Judge
    reader: Reader | None  # None: code alone


def open_judges(
    model: str,
    url: str | None,
    cache: Path,
    *,
    prompts: Sequence[Path] = (),
    runs: int = 1,
    replay_only: bool = False,
    control: bool = True,
) -> Judges:
    """What the judge's options name: a model where an address is given, else rules.

    Raises:
        BenchError: options of a model's without one, or a prompt that cannot be read.
    """
    endpoint = endpoint_from(model, url, needs_key=not replay_only)
    if endpoint is None:
        if prompts or runs > 1 or replay_only:
            raise BenchError("judge options without a judge", where="bench", fix="Give --judge-url too")
        return Judges(judge=OfflineJudge(), reader=None)
    read = [read_prompt(path) for path in prompts]
    grading = [prompt for prompt in read if isinstance(prompt, JudgePrompt)]
    reading = [prompt for prompt in read if isinstance(prompt, ExtractionPrompt)]
    uses = [*(prompt.bordered for prompt in grading), *(prompt.benchmark for prompt in reading)]
    if len(set(uses)) < len(uses):
        raise BenchError(
            "two prompts for one use",
            where="--judge-prompt",
            fix="Give one each of MM-Vet, MM-Vet v2, MathVista and BLINK",
        )
    kept = KeptReplies(endpoint, cache, replay_only=replay_only)
    return Judges(
        judge=LLMJudge(kept, prompts=grading, control=control), reader=LLMReader(kept, prompts=reading)
    )


def require_complete(report: Report, output: Path) -> None:
    """Raise where a score has too many ungraded replies to be given: the files are written, the run failed.

    Raises:
        BenchError: names the sets.
    """
    missing = [
        f"{name} ({result.score.details['ungraded']} replies unscored)"
        for name, result in report.results.items()
        if result.score.score is None
    ]
    if missing:
        raise BenchError(
            f"the report is incomplete: {', '.join(missing)}",
            where=output,
            fix="The same command asks the judge again for what is missing alone",
        )


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
