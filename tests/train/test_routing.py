"""Several teachers: each teaches the samples of its domains through a Recalibrator of its own."""

from __future__ import annotations

import pytest
import torch

from genrecal.data.batch import PairedBatch
from genrecal.models.recalibrator import RecalibratorConfig
from genrecal.train.objective import Objective
from genrecal.train.reading import ReadingProbe
from genrecal.train.recalibrated import Source
from tests.tiny import TinyData, TinyPair
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.option_parts import TERMS, expected, objective, recalibrators
from tests.train.reference_options import Options


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    return make_parts(tiny_pair, tiny_data)


def twice(batch: PairedBatch) -> PairedBatch:
    """The same teacher in two places."""
    return PairedBatch(
        ids=batch.ids,
        domains=batch.domains,
        student=batch.student,
        teachers=(*batch.teachers, *batch.teachers),
    )


def test_several_teachers_teach_what_is_routed_to_them(parts: Parts) -> None:
    first, second = (recalibrators(parts, RecalibratorConfig(), seed=seed) for seed in (5, 9))
    domains = [row.domain for row in parts.rows]
    routes = (("knowledge", "science_math"), ("chart_document",))
    assert {domain for route in routes for domain in route} & set(domains) and "general_vqa" not in routes[0]
    routed = Objective(
        student=parts.student,
        sources=[Source(parts.teacher, first), Source(parts.teacher, second)],
        losses=("align", "regularize", "sft"),
        routes=routes,
    ).eval()
    batch = twice(parts.batch())
    with torch.no_grad():
        found = routed(batch).terms
        alone = objective(parts, first)(parts.batch()).terms
    counts = routed.counts(batch)
    for place, (made, route) in enumerate(zip((first, second), routes, strict=True)):
        mark = "" if place == 0 else "@1"
        taught = [row for row in parts.rows if row.domain in route]
        assert 0 < len(taught) < len(parts.rows)
        rows = [expected(parts, made, row, Options()) for row in taught]
        for name in TERMS:
            total = sum(float(row[name]) for row in rows)
            assert float(found[name + mark]) == pytest.approx(total, rel=1e-5), name + mark
        assert counts["aligned_tokens" + mark] == sum(len(row.teachers[0].answer_ids) for row in taught)
    assert float(found["sft"]) == pytest.approx(float(alone["sft"]))  # the student's own loss takes all


def test_a_batch_that_no_teacher_teaches_has_terms_of_nothing(parts: Parts) -> None:
    """Zeros with a gradient path, through the same modules as on a rank that has some."""
    made = recalibrators(parts, RecalibratorConfig())
    routed = Objective(
        student=parts.student,
        sources=[Source(parts.teacher, made)],
        losses=("align", "regularize", "sft"),
        routes=[()],
    ).eval()
    for probe in (None, ReadingProbe()):
        total, terms = routed(parts.batch(), dict.fromkeys(TERMS, 1.0), probe)
        assert all(float(terms[name]) == 0.0 for name in (*TERMS, "teacher_ar"))
        weights = list(routed.sources[0].recalibrators.parameters())
        gradients = torch.autograd.grad(total, weights)
        assert all(not gradient.any() for gradient in gradients)
    assert routed.counts(parts.batch())["aligned_tokens"] == 0.0
    assert probe is not None and probe.sums["first_tokens"] == probe.sums["rise_first"] == 0.0
