"""The student, our builds of it, and the same decoder for the other engines: everything that `run` reads.

What is there already stays; each step writes its target whole or not at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.export_memory import write_student
from benchmarks.speed.cases import CONFIG, INSTALL, take_packages
from benchmarks.speed.language import quantize_gguf, write_gguf, write_language
from genrecal.core.console import console
from genrecal.core.errors import BenchError


def prepare(work: Path, packages: Path | None, *, model: Path = CONFIG, threads: int) -> None:
    """Write everything that is not there yet.

    Args:
        work: about 25 GB at Qwen2-VL-2B's size.
        packages: the folder of cases.PACKAGES.
        model: a folder with the config.json of a Qwen2-VL.
        threads: of llama.cpp's quantizer.

    Raises:
        BenchError: a converter failed, or its package is missing.
    """
    take_packages(packages)
    work.mkdir(parents=True, exist_ok=True)
    student, language, gguf = work / "student", work / "language", work / "gguf"
    steps: dict[Path, Callable[[Path], object]] = {
        student: lambda target: write_student(model, target),
        language: lambda target: write_language(student, target),
        gguf / "f16.gguf": lambda target: write_gguf(language, target),
        gguf / "q8_0.gguf": lambda target: quantize_gguf(gguf / "f16.gguf", target, "Q8_0", threads),
        gguf / "q4_0.gguf": lambda target: quantize_gguf(gguf / "f16.gguf", target, "Q4_0", threads),
        work / "genai-int8": lambda target: write_genai(language, target, "int8", packages),
        work / "genai-int4": lambda target: write_genai(language, target, "int4", packages),
        work / "genai-int4-head8": lambda target: write_genai(
            language, target, "int4", packages, options=["algo_config=rtn_last"]
        ),
        work / "build-int8": lambda target: write_build(student, target, "int8"),
        work / "build-int4": lambda target: write_build(student, target, "int4"),
    }
    for target, write in steps.items():
        if not target.exists():
            console.print(f"writing {target}")
            # In the same place, as a student's tokenizer is made beside it.
            unfinished = target.with_name(f"unfinished-{target.name}")
            if unfinished.exists():
                raise BenchError("was left by a run that was stopped", where=unfinished, fix="Remove it")
            write(unfinished)
            unfinished.replace(target)


def write_build(student: Path, target: Path, precision: str) -> None:
    """Our own export, as a user calls it."""
    command = ["export", str(student), f"--{precision}", "--target", "cpu", "--output", str(target)]
    command += ["--min-agreement", "0"]  # of random weights nothing is asked
    _call(["-c", "from cli import app; app()", *command], {})


def write_genai(
    language: Path, target: Path, precision: str, packages: Path | None, *, options: Sequence[str] = ()
) -> None:
    """onnxruntime-genai's own model builder for the CPU: its defaults, but for `options`."""
    command = ["-i", str(language), "-o", str(target), "-p", precision, "-e", "cpu"]
    command += ["--extra_options", *options] if options else []
    cache = ["-c", str(target.with_name("cache"))]
    _call(["-m", "onnxruntime_genai.models.builder", *command, *cache], {"PYTHONPATH": str(packages)})


def _call(arguments: Sequence[str], more: dict[str, str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for name, value in more.items():
        environment[name] = os.pathsep.join(filter(None, (os.environ.get(name), value)))
    done = subprocess.run([sys.executable, *arguments], env=environment, check=False)
    if done.returncode:
        raise BenchError(f"'{' '.join(arguments)}' ended with {done.returncode}", fix=INSTALL)
