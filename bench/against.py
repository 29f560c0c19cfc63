"""A build beside its baseline: both scored on the same sets, their difference shown, the gate's exit code.

baseline: a bench folder, or a subject (its SUBJECT-bench is read, or made)
build + baseline -> paired differences, gate.json -> 0 no worse, 1 worse, 2 cannot tell
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from bench.command import bench_command
from bench.differences import compare, difference_lines
from bench.gate import Gate, Limits, gate_json, gate_lines, judge_drop, read_limits
from bench.page import PAGE, open_benches, told_apart, write_page
from bench.report import Report, read_report
from bench.run import NAME
from bench.samples import Opened
from bench.subject import default_output, spec_of
from bench.types import Remote
from genrecal.core.console import console
from genrecal.core.errors import BenchError
from genrecal.core.files import write_json

GATE = "gate.json"


def bench_against(
    subject: str | Path,
    *,
    baseline: Path | None,
    max_drop: Sequence[str],
    sets: Mapping[str, Path],
    output: Path | None = None,
    device: str = "cpu",
    adapter: Path | None = None,
    processes: int = 1,
    model: str | None = None,
    remote: Remote | None = None,
    manifest_sha256: str | None = None,
    trusted_keys: tuple[str, ...] = (),
    **options: Any,
) -> int:
    """What `genrecal bench` does, with a baseline or without.

    Args:
        subject: a build's folder, or any subject.
        baseline: a bench folder, or a subject: where it has no SUBJECT-bench, it is scored first. None: the
            subject is scored alone.
        max_drop: "1.0" in points, "NAME=3" for one benchmark; empty: no gate.
        sets: name of a benchmark -> its files.
        output: the subject's result folder, where gate.json goes too; None: beside the subject.
        device: of the subject; a baseline that must be scored runs on it too.
        adapter, processes, model, remote, manifest_sha256, trusted_keys: of the subject alone.
        options: as `bench_command`, for both.

    Returns: the exit code: the gate's, or 0 without a limit.

    Raises:
        BenchError: the two cannot be compared, or something that is needed for it failed.
        GenrecalError: as `bench_command`.
    """
    own: dict[str, Any] = {
        "device": device,
        "adapter": adapter,
        "processes": processes,
        "model": model,
        "remote": remote,
        "manifest_sha256": manifest_sha256,
        "trusted_keys": trusted_keys,
    }
    limits = read_limits(max_drop)
    output = output or default_output(spec_of(subject, **own))
    if baseline is None:
        if limits is not None:
            raise BenchError("a limit without a baseline", where="--max-drop", fix="Give --baseline too")
        bench_command(subject, sets=sets, output=output, **own, **options)
        return 0
    # A verdict that is there after a crash must not be an earlier one.
    (output / GATE).unlink(missing_ok=True)
    # What is known to fail does so before hours of answering.
    other = _saved(baseline)
    if other is not None:
        _require_sets(other, sets)
    else:
        other = _scored(baseline, sets=sets, device=device, **options)
    build = bench_command(subject, sets=sets, output=output, **own, **options)
    gate = show_against(build, other, limits, output=output)
    both = [Opened(folder=_folder_of(baseline), report=other), Opened(folder=output, report=build)]
    write_page(told_apart(both), output, gate=gate)
    console.print(f"report: {output / PAGE}")
    return gate.exit_code if gate else 0


def show_against(build: Report, baseline: Report, limits: Limits | None, *, output: Path) -> Gate | None:
    """Print the paired differences and the gate's verdict, and write gate.json.

    Raises:
        BenchError: the two cannot be compared.
    """
    lines = difference_lines(compare(build, baseline), names=(build.name, baseline.name))
    gate = None
    if limits is not None:
        gate = judge_drop(build, baseline, limits)
        write_json(output / GATE, gate_json(gate))
        lines += gate_lines(gate)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    return gate


def report_command(folders: Sequence[Path], output: Path, *, as_json: bool = False) -> None:
    """What `genrecal report` does: one page of several bench folders, the first of which is the baseline.

    Raises:
        BenchError: a folder holds no bench, or two cannot be compared.
    """
    data = write_page(open_benches(folders), output)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        console.print(f"report: {output / PAGE}")


def _folder_of(baseline: Path) -> Path:
    """The bench folder that a baseline is or has."""
    return baseline if (baseline / NAME).is_file() else baseline.parent / f"{baseline.name}-bench"


def _saved(baseline: Path) -> Report | None:
    folder = _folder_of(baseline)
    return read_report(folder) if (folder / NAME).is_file() else None


def _require_sets(report: Report, sets: Mapping[str, Path]) -> None:
    missing = [name for name in sets if name not in report.results]
    if missing:
        raise BenchError(
            f"its bench has no score in '{missing[0]}'",
            where=report.name,
            fix="Bench the baseline on the same test sets first",
        )


def _scored(baseline: Path, *, device: str, **options: Any) -> Report:
    if device == "jetson":
        raise BenchError(
            "has no bench results, and the device that answers is no place to make them",
            where=baseline,
            fix="Bench it on the machine that trained it, and give --baseline that folder",
        )
    return bench_command(baseline, output=_folder_of(baseline), device=device, **options)
