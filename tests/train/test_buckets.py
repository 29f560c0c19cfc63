"""Padding and order change how fast a step is, not what it is: micro-batches against samples one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pytest
import torch

from genrecal.core.config import load_config
from genrecal.data.mixture import SourceConfig, read_mixture
from genrecal.data.order import step_indices
from genrecal.models.families import family_of, is_vision_encoder
from genrecal.train.objective import Objective
from genrecal.train.settings import RunConfig
from genrecal.train.stages import STAGES
from tests.tiny import TinyData, TinyPair
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.conftest import Run, WriteConfig, as_one_rank, drive

MICRO_BATCH, STEP = 5, 30  # the whole of the tiny data in one step


@pytest.fixture(scope="module")
def parts(tiny_pair: TinyPair, tiny_data: TinyData) -> Iterator[Parts]:
    """The student as stage 3 trains it: all but the vision encoder."""
    made = make_parts(tiny_pair, tiny_data)
    family = family_of(made.student.config)
    for name, parameter in made.student.named_parameters():
        parameter.requires_grad = not is_vision_encoder(name, family)
    yield made
    made.student.requires_grad_(False)


@pytest.fixture(scope="module")
def lengths(parts: Parts, tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    mixture = read_mixture([SourceConfig(path=tiny_data.path)], cache=tmp_path_factory.mktemp("tables"))
    return mixture.token_lengths([parts.reader.student])


def step_of(window: int, lengths: np.ndarray, *, micro_batch: int = MICRO_BATCH) -> list[list[int]]:
    """The micro-batches of one optimizer step."""
    return step_indices(
        samples=STEP,
        seed=0,
        step=0,
        rank=0,
        ranks=1,
        micro_batch=micro_batch,
        accumulation=STEP // micro_batch,
        window=window,
        steps=1,
        lengths=lengths,
    )


def loss_and_gradients(
    parts: Parts, micro_batches: Sequence[Sequence[int]]
) -> tuple[float, dict[str, torch.Tensor], float]:
    """Of a step of stage 3, and the share of its positions that hold no token."""
    objective = Objective(student=parts.student, losses=STAGES["finetune"].losses).eval()
    batches = [parts.batch(tuple(parts.reader[index] for index in row)) for row in micro_batches]
    tokens = sum(objective.counts(batch)["student_tokens"] for batch in batches)
    parts.student.zero_grad()
    loss, held, positions = 0.0, 0, 0
    for batch in batches:
        total, _ = objective(batch, {"sft": 1 / tokens})
        total.backward()
        loss += float(total.detach())
        held += int(batch.student.attention_mask_BS.sum())
        positions += batch.student.attention_mask_BS.numel()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in parts.student.named_parameters()
        if parameter.grad is not None
    }
    return loss, gradients, 1 - held / positions


@pytest.mark.parametrize("window", [0, 1])
def test_a_micro_batch_is_the_sum_of_its_samples(parts: Parts, lengths: np.ndarray, window: int) -> None:
    """Of mixed lengths, padded, against every sample alone, unpadded; bucketed against unbucketed, so."""
    loss, gradients, _ = loss_and_gradients(parts, step_of(window, lengths))
    alone_loss, alone_gradients, _ = loss_and_gradients(parts, step_of(0, lengths, micro_batch=1))
    assert loss == pytest.approx(alone_loss, rel=1e-5) and loss > 1
    assert gradients.keys() == alone_gradients.keys()
    for name, gradient in gradients.items():
        largest = float(alone_gradients[name].abs().max())
        assert torch.allclose(gradient, alone_gradients[name], atol=1e-4 * largest + 1e-8), name


def test_a_window_of_one_step_keeps_its_samples_and_pads_less(parts: Parts, lengths: np.ndarray) -> None:
    plain, sorted_by_length = step_of(0, lengths), step_of(1, lengths)
    assert sorted(chain(*plain)) == sorted(chain(*sorted_by_length))
    padded = [loss_and_gradients(parts, rows)[2] for rows in (plain, sorted_by_length)]
    assert padded[1] < 0.75 * padded[0]


def test_a_run_with_buckets_takes_the_same_steps(write_config: WriteConfig) -> None:
    """Through tables, headers and the feed; 15 samples a step, so that two steps are an epoch."""
    shape = {"method": "sft", "micro_batch": 3, "accumulation": 5}
    runs = {
        buckets: write_config(f"buckets_{buckets}", changes={"data": {"buckets": buckets}}, **shape)
        for buckets in (0, 1)
    }
    done = drive(list(runs.values()), as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_config(runs[1], RunConfig).data.buckets == 1
    plain, bucketed = (
        Run(folder=path.with_suffix(""), printed=done.stdout).metrics for path in runs.values()
    )
    assert len(plain) == len(bucketed) >= 3
    for mine, theirs in zip(bucketed, plain, strict=True):
        assert (mine["stage"], mine["step"], mine["counts"]) == (
            theirs["stage"],
            theirs["step"],
            theirs["counts"],
        )
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
