"""Bench folders of subjects whose answers are given: the bench's own code answers, scores and writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.perf import Perf
from bench.run import run_bench
from bench.timed import summarise
from bench.types import Answer, Facts, Query, SubjectSpec
from tests.bench.tiny_sets import mmb_row, mmmu_row, mmvet_row, write_mmb, write_mmmu, write_mmvet

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


class Scripted:
    """A subject that says what it is told to, by the question's id."""

    chunk = 64
    lanes = 1

    def __init__(self, name: str, answers: Mapping[str, str]) -> None:
        self.spec = SubjectSpec(path=Path(name), name=name, greedy=True)
        self.facts = Facts(
            kind="build", weights_bytes=1_500_000, precision="int8", device="cpu", generation={}
        )
        self.fingerprint = name
        self._answers = answers

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        return [
            Answer(text=self._answers[query.id], tokens=3, prompt_tokens=9, first_token_s=None, total_s=0.01)
            for query in queries
        ]

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


def scripted_bench(
    folder: Path, sets: Mapping[str, Path], answers: Mapping[str, str], *, perf: Perf | None = None
) -> Path:
    """A bench folder; timings, which no script has, are put in as given."""
    run_bench(Scripted(folder.name, answers), sets, folder, timed_queries=0, quiet=True)
    if perf is not None:
        path = folder / "bench.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "perf": asdict(perf)}), encoding="utf-8")
    return folder


def timed(total_s: float, weights_bytes: int) -> Perf:
    """Figures of two runs of two answers."""
    runs = [
        [
            Answer(text="", tokens=5, prompt_tokens=1, first_token_s=first_s, total_s=first_s + 1.0)
            for first_s in firsts
        ]
        for firsts in ((1.0, 2.0), (1.2, 2.2))
    ]
    found = summarise(runs, memory=400_000_000, gpu=None, weights=weights_bytes, warm_up=2)
    return replace(found, total_s_p50=total_s, missing={"energy": "no monitor here"})


def three_benches(folder: Path) -> list[Path]:
    """A student and two builds: MMB with rotations, MMMU in two subjects, MM-Vet by the offline judge."""
    questions = [f"validation_{'Art' if number % 2 else 'Math'}_{number}" for number in range(12)]
    sets = {
        "mmb": write_mmb(folder / "mmb.tsv", [mmb_row(number, ["red", "green"], "A") for number in (1, 2)]),
        "mmmu": write_mmmu(folder / "mmmu" / "a.parquet", [mmmu_row(name) for name in questions]).parent,
        "mmvet": write_mmvet(
            folder / "mm-vet", {f"v1_{number}": mmvet_row(number, "blue", "rec") for number in range(2)}
        ),
    }
    rows = ["1", "2", "1000001", "1000002"]
    right = {"1": "A", "2": "A", "1000001": "B", "1000002": "B", "v1_0": "blue", "v1_1": "it is blue"}
    student = {**right, **{name: "A" for name in questions}, questions[5]: "B"}
    int8 = {**student, "1000001": "A", questions[0]: "B", questions[5]: "A", questions[7]: HOSTILE}
    int4 = {**int8, questions[1]: "no idea at all", "v1_1": "azure sky"}
    assert set(rows) < set(student)
    return [
        scripted_bench(folder / name, sets, answers, perf=timed(seconds, size))
        for name, answers, seconds, size in (
            ("student", student, 0.9, 8_000_000),
            ("int8", int8, 0.3, 2_000_000),
            ("int4", int4, 0.4, 1_000_000),
        )
    ]


def large_benches(folder: Path) -> list[Path]:
    """Two subjects with more text and pictures than a page may have: 1,200 questions, a photograph each."""
    rng = np.random.default_rng(0)
    names = [f"validation_{('Art', 'Math', 'Music')[number % 3]}_{number}" for number in range(1200)]
    rows = []
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)).resize((240, 180))
        grain = rng.integers(-40, 40, (180, 240, 1))
        picture = Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
        stream = io.BytesIO()
        picture.save(stream, format="JPEG")
        rows.append(mmmu_row(name, image_1={"bytes": stream.getvalue(), "path": "1.jpg"}))
    path = write_mmmu(folder / "mmmu" / "a.parquet", rows).parent
    student = {name: f"{'It is said that ' * 40} the answer is A" for name in names}
    build = {**student, **{name: "B" for name in names[::4]}}
    return [
        scripted_bench(folder / name, {"mmmu": path}, answers)
        for name, answers in (("student", student), ("int4", build))
    ]
