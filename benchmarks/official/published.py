"""Hold our reading of replies against what MathVista and BLINK publish: real replies and extractions.

    python -m benchmarks.official.published CHECKOUTS    folders OWNER+NAME at the commits of COMMITS

Their files stay where they are; what is printed is in docs/scoring.md. It needs the package `Levenshtein`.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.rules.mathvista_answers import normalise
from bench.sets import blink
from benchmarks.official.checkouts import LLM, Official


def mathvista(official: Official) -> tuple[int, int]:
    """Stored extractions, and those that the current official code scores otherwise than ours."""
    from Levenshtein import distance

    names = ("normalize_extracted_answer", "get_most_similar", "safe_equal")
    own = official.take("lupantech+MathVista/evaluation/calculate_score.py", names, distance=distance)
    count = different = 0
    for content in _files(official.checkouts / "lupantech+MathVista/results", "output_*.json"):
        for row in content.values():
            if "extraction" not in row:
                continue
            facts = {key: row[key] for key in ("question_type", "answer_type", "precision")}
            theirs = own.normalize_extracted_answer(row["extraction"], row["choices"], **facts)
            ours = normalise(str(row["extraction"]), facts, row["choices"] or [])
            count += 1
            different += own.safe_equal(theirs, row["answer"]) != (ours == row["answer"])
    return count, different


def blinks(official: Official) -> tuple[int, int, int]:
    """Stored replies, those that the official code has its LLM read, and those that we read otherwise."""
    # The files do not name the options: all replies are read as if there were four.
    letters = string.ascii_uppercase[:4]
    read = official.take(
        "zeyofu+BLINK_Benchmark/eval/test_benchmark.py",
        ("analyze_answer",),
        match_multiple_choice=lambda *_: LLM,
    ).analyze_answer
    count = asked = different = 0
    for content in _files(official.checkouts / "zeyofu+BLINK_Benchmark/eval/saved_outputs", "*.json"):
        for row in content.get("val", []):
            reply = row.get("full_prediction")
            if not isinstance(reply, str):
                continue
            theirs = read({"question": "?", "choices": letters}, reply, [f"({letter})" for letter in letters])
            letter = blink.own_letter(reply, dict.fromkeys(letters, ""))
            count += 1
            asked += theirs == LLM
            different += theirs != (LLM if letter is None else f"({letter})")
    return count, asked, different


def _files(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob(pattern)):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            yield content


if __name__ == "__main__":
    scorers = Official(Path(sys.argv[1]))
    print("MathVista: extractions, scored otherwise:", *mathvista(scorers))
    print("BLINK: replies, left to the LLM, read otherwise:", *blinks(scorers))
