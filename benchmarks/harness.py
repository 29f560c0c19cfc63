"""What the bench itself costs: beside a subject that answers in 50 ms, and for 100,000 saved answers.

    python -m benchmarks.harness        writes RESULTS/harness.json; about two minutes on two idle cores

The first part answers MMBench rows, each question with a photo-sized JPEG of its own, by a subject that waits
50 ms and says a letter; what the whole run takes longer than those waits is the harness. The second part
scores 100,000 saved answers (25,000 questions with four rotations) by `genrecal score`, from the start of a
fresh process. Other programs lengthen wall times, so seconds of computing and the load stand beside.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.journal import append_lines
from bench.report import read_report
from bench.run import digest, journal_of, run_bench
from bench.scoring import template_sha256
from bench.subject import spec_to_json
from bench.tasks import TASKS
from bench.types import Answer, Facts, Query, SubjectSpec
from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions

RESULT = Path(__file__).parent / "results" / "harness.json"
MOST_SHARE, MOST_SCORE_S = 0.05, 20.0  # the goals
ANSWER_S = 0.05
QUESTIONS, SAVED_QUESTIONS = 150, 25_000
PHOTO = (500, 375)
ROOT = Path(__file__).parents[1]
FACTS = Facts(kind="answers", weights_bytes=None, precision="-", device="cpu", generation={})


class Waiting:
    """A subject that takes its time and nothing else."""

    spec, facts, fingerprint = SubjectSpec(name="waiting"), FACTS, "waiting"
    chunk = lanes = 1

    def __init__(self) -> None:
        self.answers, self.busy_s = 0, 0.0

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        started = time.perf_counter()
        time.sleep(ANSWER_S)
        total_s = time.perf_counter() - started
        self.answers, self.busy_s = self.answers + 1, self.busy_s + total_s
        return [Answer(text="A", tokens=2, prompt_tokens=300, first_token_s=None, total_s=total_s)]

    def forget(self) -> None:
        """Nothing is kept."""


def write_set(path: Path, questions: int, *, photo: tuple[int, int] | None) -> Path:
    """An MMBench TSV of main rows; `photo`: a noisy JPEG of that size for each, else a small PNG for each."""
    draw = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["index", "question", "A", "B", "C", "D", "answer", "category", "split", "image"])
        for number in range(questions):
            image = io.BytesIO()
            if photo is None:
                colour = tuple(int(part) for part in draw.integers(0, 256, 3))
                Image.new("RGB", (16, 16), colour).save(image, format="PNG")
            else:
                coarse = draw.integers(0, 256, (photo[1] // 8, photo[0] // 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize(photo).save(image, format="JPEG", quality=90)
            encoded = base64.b64encode(image.getvalue()).decode()
            question = [number, f"Which colour is it ({number})?", "red", "green", "blue", "grey"]
            writer.writerow([*question, "ABCD"[number % 4], "colour", "dev", encoded])
    return path


def beside_a_subject(folder: Path) -> dict[str, Any]:
    """Share of the harness in the wall time of answering and scoring a set."""
    path = write_set(folder / "photos.tsv", QUESTIONS, photo=PHOTO)
    started = time.perf_counter()
    rows = TASKS["mmb"].load(path)
    load_s = time.perf_counter() - started
    subject = Waiting()
    started, computed = time.perf_counter(), time.process_time()
    run_bench(subject, {"mmb": path}, folder / "out", timed_queries=0, quiet=True)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - computed
    return {
        "answers": len(rows),
        "photo_pixels": PHOTO,
        "wall_s": wall_s,
        "subject_s": subject.busy_s,
        "harness_s": wall_s - subject.busy_s,
        "of_which_reading_the_set_s": load_s,
        "harness_share": (wall_s - subject.busy_s) / wall_s,
        "harness_cpu_s": cpu_s,
        "harness_cpu_share": cpu_s / (subject.answers * ANSWER_S + cpu_s),
        "goal": MOST_SHARE,
    }


def saved_answers(folder: Path) -> dict[str, Any]:
    """Seconds of `genrecal score` on 100,000 saved answers, from the start of Python on."""
    path = write_set(folder / "small.tsv", SAVED_QUESTIONS, photo=None)
    rows = TASKS["mmb"].load(path)
    draw = random.Random(0)
    kinds = ("{}", "({})", "The answer is {}.", "{}. green", "I think it is {}", "no idea")
    journal = journal_of(folder / "saved", "mmb")
    header = {
        "subject": Waiting.fingerprint,
        "prompt": template_sha256(TASKS["mmb"]),
        "data": digest(rows),
        "set": "mmb",
        "source": str(path),
        "limit": None,
        "name": "saved",
        "spec": spec_to_json(Waiting.spec),
        "facts": asdict(FACTS),
    }
    lines: list[dict[str, Any]] = [header]
    for row in rows:
        text = draw.choice(kinds).format(draw.choice("ABCD"))
        one = Answer(text=text, tokens=4, prompt_tokens=300, first_token_s=None, total_s=0.05)
        lines.append({"answers": {row.id: asdict(one)}})
    append_lines(journal, lines)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "cli", "score", str(folder / "saved")],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "answers": len(rows),
        "questions": read_report(folder / "saved").results["mmb"].score.n,
        "seconds": seconds,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "goal_s": MOST_SCORE_S,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--result", type=Path, default=RESULT)
    result = parser.parse_args().result
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        beside, saved = beside_a_subject(Path(name)), saved_answers(Path(name))
    content = {
        "beside_a_subject": beside,
        "saved_answers": saved,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "versions": installed_versions(),
    }
    write_json(result, content)
    for part in (beside, saved):
        console.print(part)


if __name__ == "__main__":
    main()
