"""Both tiny VLMs with lively weights, a Recalibrator and a mixed batch, as Algorithms 1 to 3 need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genrecal.data.batch import PairedBatch, collate
from genrecal.data.llava import read_llava
from genrecal.data.pair import PairedSample, PairReader
from genrecal.models.processors import load_model, load_processor
from genrecal.models.recalibrator import Recalibrator, RecalibratorConfig
from genrecal.models.vlm import text_body
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from tests.tiny import TinyData, TinyPair
from tests.train import reference

# Answers of different lengths, no, one and two images, one and two turns.
SAMPLES = (0, 2, 4, 7, 8)
TEXT_ALONE = (1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    student: Any
    teacher: Any
    recalibrator: Recalibrator
    student64: Any
    teacher64: Any
    reader: PairReader
    rows: tuple[PairedSample, ...]
    text_rows: tuple[PairedSample, ...]

    def batch(self, rows: tuple[PairedSample, ...] | None = None) -> PairedBatch:
        return collate(
            self.rows if rows is None else rows,
            student_padding=self.reader.student.tokenizer.pad_token_id,
            teacher_paddings=[teacher.tokenizer.pad_token_id for teacher in self.reader.teachers],
            student_blank=self.reader.student_blank,
            teacher_blanks=self.reader.teacher_blanks,
        )

    def objective(self, *losses: str, recalibrator: Any = None, **config: Any) -> Objective:
        """`config` are keys of RecalibratorConfig."""
        recalibrators = [self.recalibrator if recalibrator is None else recalibrator]
        source = Source(self.teacher, recalibrators, config=RecalibratorConfig(**config))
        return Objective(student=self.student, sources=[source], losses=losses).eval()

    def reference(self, row: PairedSample, **options: Any) -> reference.Terms:
        return reference.algorithms(
            student64=self.student64,
            teacher64=self.teacher64,
            recalibrator=self.recalibrator,
            student=sides(row.student),
            teacher=sides(row.teachers[0]),
            **options,
        )


def sides(tokens: Any) -> reference.Sides:
    return reference.Sides(
        question=tokens.question_ids.tolist(), answer=tokens.answer_ids.tolist(), vision=tokens.vision
    )


@torch.no_grad()
def enliven(module: torch.nn.Module, seed: int) -> None:
    """Fresh models predict nearly uniformly, and then no mistake would show: make every weight matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(noise * 0.3)


def make_parts(pair: TinyPair, data: TinyData) -> Parts:
    student, teacher = load_model(pair.student), load_model(pair.teacher)
    enliven(student, 1)
    enliven(teacher, 2)
    torch.manual_seed(0)
    recalibrator = Recalibrator(
        RecalibratorConfig(),
        student_body=text_body(student),
        teacher_width=teacher.config.get_text_config().hidden_size,
    )
    enliven(recalibrator, 3)
    for model in (student, teacher):
        model.requires_grad_(False)
    reader = PairReader(
        tuple(read_llava(data.path)),
        student=load_processor(pair.student),
        teachers=[load_processor(pair.teacher)],
        max_tokens=512,
    )
    return Parts(
        student=student,
        teacher=teacher,
        recalibrator=recalibrator,
        student64=reference.in_float64(student),
        teacher64=reference.in_float64(teacher),
        reader=reader,
        rows=tuple(reader[index] for index in SAMPLES),
        text_rows=tuple(reader[index] for index in TEXT_ALONE),
    )
