"""Cached and live give the same losses and the same gradients, in every form of the Recalibrator's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.data.batch import PairedBatch
from genrecal.data.pair import PairReader
from genrecal.models.head_only import HeadOnly
from genrecal.models.processors import load_processor
from genrecal.train.comparison import Comparison
from genrecal.train.engine import engine_config
from genrecal.train.feed import padding
from genrecal.train.objective import Objective
from genrecal.train.recording import Recorder, Stamped
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage
from genrecal.train.stages import TERMS
from genrecal.train.teacher_cache import stored_teachers
from genrecal.train.teacher_store import ShardWriter, TeacherStore, question_key, sample_key, write_index
from tests.tiny import TinyData, TinyPair, write_data
from tests.train.cache_parts import cached_config, mixture_of

pytestmark = pytest.mark.usefixtures("one_rank")

ROWS = (0, 4, 1, 7, 2)  # one, two and no images; two turns; answers of different lengths


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("losses") / "data", samples=8)


def read_batch(config: RunConfig, reads: Any, *, absent: bool = False) -> PairedBatch:
    reader = PairReader(
        mixture_of(config),
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in config.sources],
        max_tokens=4096,
        reads=reads,
    )
    return padding(reader)([reader[row] for row in ROWS] + [reader.absent] * absent)


def objective_of(config: RunConfig, name: str, *, heads_only: bool) -> Objective:
    stage = config.plan(name)
    return build_stage(
        config,
        stage,
        student_folder=config.student,
        recalibrator_folder=None,
        engine_settings=engine_config(config.engine, config.optimizer, config.stage(name)),
        comparison=Comparison(),
        heads_only=heads_only,
    ).objective


def losses(objective: Objective, batch: PairedBatch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The terms, and the gradient of all of them together."""
    torch.manual_seed(3)  # answer dropout draws
    scales = {name: 0.1 for name in (*TERMS, *(f"{name}@1" for name in TERMS))}
    total, terms = objective.train()(batch, scales)
    total.backward()
    gradients = {
        name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None
    }
    return {name: float(value) for name, value in terms.items()}, gradients


OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "several depths": {"recalibrator": {"layers": [1.0, 0.5]}},
    "an inner depth": {"recalibrator": {"layers": [0.5]}},
    "embeddings": {"recalibrator": {"answer_input": "embeddings"}},
    "aligned": {"recalibrator": {"answer_input": "aligned", "question_projector": "separate"}},
    "dropout and delay": {"recalibrator": {"answer_dropout": 0.5, "answer_delay": 1}},
    "no first token": {"objective": {"first_token": False}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["recalibrate", "distill"])
def test_cached_and_live_give_the_same_losses_and_gradients(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path, options: dict[str, Any], name: str
) -> None:
    config = cached_config(
        tmp_path, tiny_pair, data.path, **options | {"teacher_cache": {"question_features": True}}
    )
    stored = stored_teachers(config, config.plan(name), mixture_of(config))
    cached_batch = read_batch(config, stored)
    assert not cached_batch.teachers[0].vision
    live, cached = (objective_of(config, name, heads_only=heads) for heads in (False, True))
    assert isinstance(cached.sources[0].teacher, HeadOnly)
    terms, gradients = losses(live, read_batch(config, ()))
    same_terms, same_gradients = losses(cached, cached_batch)
    assert terms == pytest.approx(same_terms, rel=1e-5, abs=1e-5)
    assert gradients.keys() == same_gradients.keys() and len(gradients) > 5
    # The sums' gradients are far larger than one: relative to the largest of each.
    for key, gradient in gradients.items():
        assert torch.allclose(
            gradient, same_gradients[key], atol=1e-4 * float(gradient.abs().max()) + 1e-6
        ), key
    assert live.counts(read_batch(config, ())) == cached.counts(cached_batch)


def test_the_last_answer_position_reaches_no_loss(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    """It is not stored: whatever the live teacher has there, losses and gradients are the same to the bit."""
    config = cached_config(tmp_path, tiny_pair, data.path)
    objective, batch = objective_of(config, "distill", heads_only=False), read_batch(config, ())
    source = objective.sources[0]
    inputs = source._answer_inputs

    def last(value: float) -> Any:
        def changed(z_a_BAD: Any, batch: Any) -> Any:
            made = [part.clone() for part in inputs(z_a_BAD, batch)]
            for part in made:
                for row, length in enumerate(batch.answer_mask_BA.sum(1).tolist()):
                    part[row, length - 1] = value
            return made

        return changed

    found = []
    for value in (0.0, 50.0):
        source._answer_inputs = last(value)  # type: ignore[method-assign]
        objective.zero_grad()
        found.append(losses(objective, batch))
    (terms, gradients), (same, same_gradients) = found
    assert terms == same
    assert all(torch.equal(gradient, same_gradients[key]) for key, gradient in gradients.items())


def test_untaught_and_absent_samples_change_nothing(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    """Two teachers with their domains, and a row for a sample that is left out."""
    teachers = [
        {"path": str(tiny_pair.teacher), "domains": ["knowledge", "general_vqa"]},
        {"path": str(tiny_pair.student), "domains": ["science_math"]},
    ]
    config = cached_config(
        tmp_path,
        tiny_pair,
        data.path,
        teachers=teachers,
        teacher_cache={"question_features": True},
        engine={"feature_samples": 0},
    )
    stored = stored_teachers(config, config.plan("recalibrate"), mixture_of(config))
    live, cached = (objective_of(config, "recalibrate", heads_only=heads) for heads in (False, True))
    terms, gradients = losses(live, read_batch(config, (), absent=True))
    same_terms, same_gradients = losses(cached, read_batch(config, stored, absent=True))
    assert {"ar", "reg_kl@1"} <= terms.keys() and min(terms.values()) > 0
    assert terms == pytest.approx(same_terms, rel=1e-5, abs=1e-5)
    for key, gradient in gradients.items():
        assert torch.allclose(
            gradient, same_gradients[key], atol=1e-4 * float(gradient.abs().max()) + 1e-6
        ), key


def test_what_a_stage_records_is_what_a_fill_computes(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    config = cached_config(tmp_path, tiny_pair, data.path)
    samples = mixture_of(config)
    filled = stored_teachers(config, config.plan("distill"), samples)[0].store
    (tmp_path / "recorded").mkdir()
    write_index(tmp_path / "recorded")
    objective, batch = (
        objective_of(config, "distill", heads_only=False),
        read_batch(config, [Stamped()], absent=True),
    )
    asked = sample_key(samples[ROWS[1]])
    writer = ShardWriter(tmp_path / "recorded", kind="fp32", rank=0, shard_bytes=10**6)
    recorder = Recorder(TeacherStore(tmp_path / "recorded"), writer, depths=[1.0], questions={asked})
    objective.sources[0].recorder = recorder
    for _ in range(2):  # the second time they are known
        objective(batch)
    recorder.close()
    write_index(tmp_path / "recorded")
    store = TeacherStore(tmp_path / "recorded")
    assert len(store) == len(ROWS) + 1
    for row in ROWS:
        key = sample_key(samples[row])
        assert store.record(key) == filled.record(key)
        assert torch.allclose(store.read(key).values, filled.read(key).values, atol=1e-5)
    assert len(store.read(question_key(asked)).values) == store.record(asked).question_length
