"""A student's answers to the three test sets, in batches that are encoded once for all cells.

    test sets -> queries -> batches of prompts of like length --(greedy)--> replies -> the official scores

The prompts and the rules are those of `bench`; only the batching differs from `genrecal bench`, which opens
and encodes everything anew for each subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import mmbench, mmmu, mmvet
from bench.judge import OfflineJudge
from bench.run import BENCHMARKS, digest
from bench.types import Query, Score
from genrecal.demo.datasets import TestSets
from genrecal.models.processors import load_model, load_processor

BATCH = 64
# The first words of a reply say the answer, or lead to it: "star", or "Of these options the answer is star."
GROUPS = ("at once", "led to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A batch of prompts."""

    names: tuple[tuple[str, str], ...]  # (set, query) of each row
    inputs: Any  # what the model takes


class Examination:
    """The test sets, and their encodings by model (equal processors share one)."""

    def __init__(self, sets: TestSets) -> None:
        paths = {"mmb": sets.mmb, "mmmu": sets.mmmu, "mmvet": sets.mmvet}
        self.questions: dict[str, Any] = {name: BENCHMARKS[name].load(path) for name, path in paths.items()}
        self.sha256 = {name: digest(of_set) for name, of_set in self.questions.items()}
        self._encoded: dict[str, tuple[Any, list[Encoded]]] = {}

    def scores(self, folder: Path, *, like: str) -> dict[str, Score]:
        """Answer every question with the checkpoint in `folder` and score the replies, by set.

        Args:
            folder: a checkpoint.
            like: names its processor: checkpoints of the same name are given the same batches.
        """
        if like not in self._encoded:
            processor = load_processor(folder)
            processor.tokenizer.padding_side = "left"
            self._encoded[like] = (processor, self._encode(processor))
        processor, batches = self._encoded[like]
        model = load_model(folder, dtype=torch.float32)
        replies: dict[str, dict[str, str]] = {name: {} for name in self.questions}
        for batch in batches:
            with torch.inference_mode():
                ids_BS = model.generate(**batch.inputs, do_sample=False)
            texts = processor.batch_decode(
                ids_BS[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for (name, query), text in zip(batch.names, texts, strict=True):
                replies[name][query] = text.strip()
        return {
            "mmb": mmbench.score(self.questions["mmb"], replies["mmb"]),
            "mmmu": mmmu.score(self.questions["mmmu"], replies["mmmu"]),
            "mmvet": mmvet.score(self.questions["mmvet"], replies["mmvet"], OfflineJudge()),
        }

    def ids(self, scores: dict[str, Score]) -> dict[str, list[str]]:
        """The questions of each set, in the order in which their grades are written down."""
        return {name: sorted(score.hits) for name, score in scores.items()}

    def groups(self, scores: dict[str, Score]) -> dict[str, str]:
        """For each set a digit for each question, in the order of `ids`: the place in GROUPS."""
        led_to = {question.id for question in self.questions["mmmu"] if question.options}
        led_to |= {question.id for question in self.questions["mmvet"]}
        return {
            name: "".join(str(int(question in led_to)) for question in questions)
            for name, questions in self.ids(scores).items()
        }

    def _encode(self, processor: Any) -> list[Encoded]:
        rows: list[tuple[int, str, Query]] = []
        for name, of_set in self.questions.items():
            for question in of_set:
                query = BENCHMARKS[name].as_query(question)
                text = "".join(part for part in query.parts if isinstance(part, str))
                rows.append((len(processor.tokenizer(text)["input_ids"]), name, query))
        # Like lengths together; sets apart, as their replies are of different lengths.
        rows.sort(key=lambda row: (row[1], row[0], row[2].id))
        return [
            Encoded(
                names=tuple((name, query.id) for _, name, query in part),
                inputs=processor.apply_chat_template(
                    [[{"role": "user", "content": _content(query)}] for _, _, query in part],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    padding=True,
                ),
            )
            for part in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
        ]


def _content(query: Query) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in query.parts
    ]
