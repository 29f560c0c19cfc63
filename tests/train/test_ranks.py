"""A run goes on with other ranks: same steps, same samples, or a clear error."""

from __future__ import annotations

import pytest

from genrecal.core.errors import ConfigError
from genrecal.data.order import Part, step_count, step_indices
from genrecal.train.ranks import expected_ranks, on_ranks
from genrecal.train.settings import RunConfig

SAMPLES = [Part(samples=101), Part(samples=57, weight=1.5)]
STEPS = 10


def config(**accumulation: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "student": "student",
            "teacher": "teacher",
            "output": "run",
            "data": {"sources": [{"path": "data.json"}]},
            "stages": {
                name: {"micro_batch": 3, "accumulation": count} for name, count in accumulation.items()
            },
        }
    )


def read(settings: RunConfig, stage: str, step: int, ranks: int) -> list[list[int]]:
    """The micro-batches of a step over all ranks, in order."""
    size = {"micro_batch": 3, "accumulation": settings.stage(stage).accumulation}
    steps = step_count(samples=SAMPLES, epochs=2, ranks=ranks, **size)
    assert steps == STEPS
    dealt = [
        step_indices(samples=SAMPLES, seed=4, step=step, rank=rank, ranks=ranks, **size)
        for rank in range(ranks)
    ]
    return [micro for place in zip(*dealt, strict=True) for micro in place]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6, 12])
def test_every_step_reads_the_same_micro_batches(ranks: int) -> None:
    started = config(recalibrate=3, distill=3, finetune=6)
    now = on_ranks(started, started=4, ranks=ranks)
    for step in range(STEPS):
        assert read(now, "distill", step, ranks) == read(started, "distill", step, 4)
    assert now.stage("finetune").accumulation == 24 // ranks
    assert on_ranks(now, started=ranks, ranks=4) == started


def test_a_stage_that_the_config_does_not_name_is_scaled_too() -> None:
    assert on_ranks(config(), started=2, ranks=8).stage("distill").accumulation == 4  # of 16


def test_batches_that_cannot_be_dealt_name_the_counts_that_can() -> None:
    with pytest.raises(
        ConfigError, match=r"started on 4 ranks.* dealt to 5\. Possible are 1, 2, 3, 4, 6, 12$"
    ):
        on_ranks(config(recalibrate=3, distill=3, finetune=6), started=4, ranks=5)


def test_a_launcher_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert expected_ranks(settings) == 1
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert expected_ranks(settings) == 16
