"""A stage under its engine, step by step, as training drives it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.plan.cases import ACCUMULATION
from genrecal.data.batch import PairedBatch
from genrecal.data.mixture import read_mixture
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.train.comparison import Comparison
from genrecal.train.engine import DTYPES, engine_config, start
from genrecal.train.feed import padding
from genrecal.train.objective import term_name
from genrecal.train.reading import ReadingProbe
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage


class Driver:
    """A stage under its engine, step by step; every other step is probed, as in training."""

    def __init__(
        self, config: RunConfig, name: str, *, batch: PairedBatch | None = None, heads_only: bool = False
    ) -> None:
        """Start the engine.

        Args:
            config: the run.
            name: its stage.
            batch: what every micro-step reads; default: the first samples.
            heads_only: the batch has the teachers' features, so that their bodies are not loaded.
        """
        self.config, self.name = config, name
        stage, settings = config.plan(name), config.stage(name)
        self.batch = _batch(config, name) if batch is None else batch
        deepspeed_settings = engine_config(config.engine, config.optimizer, settings)
        models = build_stage(
            config,
            stage,
            student_folder=config.student,
            recalibrator_folder=None,
            engine_settings=deepspeed_settings,
            comparison=Comparison(),
            heads_only=heads_only,
        )
        self.engine = start(models.objective, deepspeed_settings)
        self.engine.train()
        places = range(len(models.objective.sources) or 1)
        self.scales = {term_name(term, place): 1.0 for term in stage.terms for place in places}

    def step(self, *, probed: bool, before: Callable[[], Any] = lambda: None) -> float:
        """One optimizer step; returns its processor seconds. `before` runs ahead of each micro-step."""
        probe = ReadingProbe() if probed else None
        scales = self.scales | ({"sft": 1.0} if probed else {})
        seconds = 0.0
        for _ in range(ACCUMULATION):
            before()
            started = time.process_time()
            self.engine.backward(self.engine(self.batch, scales, probe).total)
            self.engine.step()
            seconds += time.process_time() - started
        return seconds


def _batch(config: RunConfig, name: str) -> PairedBatch:
    reads = config.sources if config.plan(name).reads_teacher else ()
    reader = PairReader(
        read_mixture(config.data),
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in reads],
        max_tokens=config.data.max_tokens,
    )
    rows = [reader[index] for index in range(config.stage(name).micro_batch)]
    return padding(reader)(rows).to(torch.device("cpu"), DTYPES[config.engine.precision])
