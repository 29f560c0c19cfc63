"""KL rises where micro-batches are of one sample: the one before takes the place of another one beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from genrecal.models.recalibrator import RecalibratorConfig
from genrecal.train.objective import Objective
from genrecal.train.reading import ReadingProbe, reading_metrics
from genrecal.train.recalibrated import Source
from tests.tiny import TinyData, TinyPair
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.option_parts import objective, recalibrators


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Parts:
    return make_parts(tiny_pair, tiny_data)


@pytest.mark.parametrize("layers", [(1.0,), (0.5, 1.0)])
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_one_before_is_as_good_as_one_beside(
    parts: Parts, layers: tuple[float, ...], teachers: int
) -> None:
    """Two samples one after the other come to what they come to side by side, for every Recalibrator."""
    config = RecalibratorConfig(layers=layers)
    sources = [
        Source(parts.teacher, recalibrators(parts, config, seed=5 + 4 * place), config=config)
        for place in range(teachers)
    ]
    model = Objective(student=parts.student, sources=sources, losses=("align",)).eval()
    one, other = (parts.rows[place : place + 1] for place in range(2))
    sums = []
    for micro_batches in ([one + other], [one, other, one]):
        probe = ReadingProbe()
        for rows in micro_batches:
            batch = parts.batch(rows)
            with torch.no_grad():
                model(replace(batch, teachers=batch.teachers * teachers), {}, probe)
        sums.append(probe.sums)
    together, alone = sums
    assert alone == pytest.approx(together, rel=1e-4)
    assert abs(together["rise_first"]) > 1e-3 and abs(together["rise_later"]) > 1e-3
    assert together["first_tokens"] == 2 * teachers * len(layers)


@pytest.mark.parametrize("place", [0, 1])
def test_an_aligned_answer_fits_one_of_another_length(parts: Parts, place: int) -> None:
    """The longest answer after the shortest one, and the other way; beside them a sample that is left out."""
    by_length = sorted(parts.rows, key=lambda row: len(row.teachers[0].answer_ids))
    ends = by_length[0], by_length[-1]
    first, second = ends[place], ends[1 - place]
    tokens = len(second.teachers[0].answer_ids)
    assert tokens != len(first.teachers[0].answer_ids)
    made = recalibrators(parts, RecalibratorConfig(answer_input="aligned"))
    model = objective(parts, made, losses=("align",), answer_input="aligned")
    for before in (first, parts.reader.absent):
        probe = ReadingProbe()
        with torch.no_grad():
            for row in (before, second, parts.reader.absent):
                model(parts.batch((row,)), {}, probe)
        assert (probe.sums["first_tokens"], probe.sums["later_tokens"]) == (1, tokens - 1)
        assert abs(probe.sums["rise_first"]) > 1e-3 and math.isfinite(probe.sums["rise_later"])


def test_a_step_of_one_sample_has_no_kl_rise_to_tell(parts: Parts) -> None:
    probe = ReadingProbe()
    with torch.no_grad():
        parts.objective("align")(parts.batch(parts.rows[:1]), {}, probe)
    found = reading_metrics(probe.sums, ranks=1, distils=True)
    assert found["kl_rise_first"] is found["kl_rise_later"] is None
