"""How good a student is: its answers to the three test sets, and its guesses token by token.

    test sets -> queries -> batches of prompts of like length --(greedy)--> replies -> the official scores
    held-out samples -> right answers, each token guessed from the right ones before it -> right or wrong

The prompts and the rules are those of `bench`; only the batching differs from `genrecal bench`, which opens
and encodes everything anew for each subject. All batches are encoded once for all cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.run import digest
from bench.scoring import score
from bench.task import Choices
from bench.tasks import TASKS
from bench.types import Query
from genrecal.core.types import Sample
from genrecal.data.batch import Batch, collate_one
from genrecal.data.pair import PairReader
from genrecal.demo.datasets import TestSets
from genrecal.models.processors import load_model, load_processor
from genrecal.models.vlm import body_features, predicting_features
from genrecal.train.losses import answer_cross_entropy

BATCH = 64
MAX_TOKENS = 512
# Of the held-out answers: the token predicted at the question's last position, and the rest with the end.
TOKENS = ("first", "later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A batch of prompts."""

    names: tuple[tuple[str, str], ...]  # (set, query) of each row
    inputs: Any  # what the model takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One kind of model's view of everything that is asked."""

    processor: Any
    prompts: list[Encoded]
    held_out: list[Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a student earned."""

    scores: dict[str, float]  # set -> official score
    grades: dict[str, list[float]]  # set, "first", "later" -> 0 to 1 for each question or held-out sample
    nats: dict[str, float]  # "first", "later" -> mean loss of a held-out token


def asked(query: Query) -> list[Any]:
    """What a model is shown, for a digest: the same whatever classes the questions are read into."""
    return [
        query.id,
        *(part if isinstance(part, str) else [part.mode, *part.size, part.tobytes()] for part in query.parts),
    ]


class Examination:
    """The test sets and the held-out samples, and their encodings by model (equal processors share one)."""

    def __init__(self, sets: TestSets, held_out: Sequence[Sample]) -> None:
        paths = {"mmb": sets.mmb, "mmmu": sets.mmmu, "mmvet": sets.mmvet}
        self.questions: dict[str, Any] = {name: TASKS[name].load(path) for name, path in paths.items()}
        self.held_out = held_out
        self.sha256 = {
            name: digest([asked(TASKS[name].prompt(question)) for question in of_set])
            for name, of_set in self.questions.items()
        }
        self.sha256["held_out"] = digest([[sample.id, sample.answer] for sample in held_out])
        self._lessons: dict[str, Lesson] = {}

    def marks(self, folder: Path, *, like: str) -> Marks:
        """Ask the checkpoint in `folder` everything.

        Args:
            folder: a checkpoint.
            like: names its processor: checkpoints of the same name are given the same batches.
        """
        if like not in self._lessons:
            self._lessons[like] = self._lesson(folder)
        lesson = self._lessons[like]
        model = load_model(folder, dtype=torch.float32)
        replies: dict[str, dict[str, str]] = {name: {} for name in self.questions}
        for batch in lesson.prompts:
            with torch.inference_mode():
                ids_BS = model.generate(**batch.inputs, do_sample=False)
            texts = lesson.processor.batch_decode(
                ids_BS[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for (name, query), text in zip(batch.names, texts, strict=True):
                replies[name][query] = text.strip()
        scores = {
            name: score(TASKS[name], rows, replies[name], Choices(), generation="greedy")
            for name, rows in self.questions.items()
        }
        right, nats = _guesses(model, lesson.held_out)
        return Marks(
            scores={name: float(one.score or 0.0) for name, one in scores.items()},
            grades={name: [of.hits[one] for one in sorted(of.hits)] for name, of in scores.items()} | right,
            nats=nats,
        )

    def _lesson(self, folder: Path) -> Lesson:
        processor = load_processor(folder)
        reader = PairReader(self.held_out, student=processor, max_tokens=MAX_TOKENS)
        rows = [reader[index].student for index in range(len(reader))]
        held_out = [
            collate_one(rows[start : start + BATCH], padding=processor.tokenizer.pad_token_id)
            for start in range(0, len(rows), BATCH)
        ]
        processor.tokenizer.padding_side = "left"
        return Lesson(processor=processor, prompts=self._prompts(processor), held_out=held_out)

    def _prompts(self, processor: Any) -> list[Encoded]:
        rows: list[tuple[int, str, Query]] = []
        for name, of_set in self.questions.items():
            for question in of_set:
                query = TASKS[name].prompt(question)
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


@torch.inference_mode()
def _guesses(model: Any, batches: Sequence[Batch]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """For each sample the share of its first and of its later tokens that are guessed; and mean losses."""
    right: dict[str, list[float]] = {name: [] for name in TOKENS}
    nats, counts = dict.fromkeys(TOKENS, 0.0), dict.fromkeys(TOKENS, 0)
    for batch in batches:
        logits_BAV = model.get_output_embeddings()(predicting_features(body_features(model, batch), batch))
        ids_BA, mask_BA = batch.answer_ids_BA, batch.answer_mask_BA
        losses_BA = answer_cross_entropy(logits_BAV.flatten(0, 1), ids_BA.flatten()).view_as(ids_BA)
        guessed_BA = (logits_BAV.argmax(-1) == ids_BA) & mask_BA
        first_BA = torch.zeros_like(mask_BA)
        first_BA[:, 0] = True
        for name, part_BA in zip(TOKENS, (first_BA, mask_BA & ~first_BA), strict=True):
            right[name] += (((guessed_BA & part_BA).sum(1)) / part_BA.sum(1)).tolist()
            nats[name] += float(losses_BA[part_BA].sum())
            counts[name] += int(part_BA.sum())
    return right, {name: nats[name] / counts[name] for name in TOKENS}


def _content(query: Query) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in query.parts
    ]
