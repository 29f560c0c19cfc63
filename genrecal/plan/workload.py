"""What a stage reads: how many samples, and micro-batches that stand for all of them.

    the plan names samples    -> equal samples of the plan's lengths (batches.py)
    the data is on disk       -> counted; with processors beside the models, some are read as in training

Of samples that were read, micro-batches drawn at random say what is computed, the longest what must fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrecal.core.errors import ConfigError
from genrecal.data.batch import PairedBatch
from genrecal.data.mixture import Mixture, read_mixture, without_domains
from genrecal.data.order import epoch_size
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.plan.batches import SampleSizes, batch_of, paired_batch
from genrecal.plan.settings import WorkloadConfig
from genrecal.train.engine import DTYPES
from genrecal.train.feed import padding
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS

DRAWN = 3  # micro-batches that stand for all, of samples on disk
PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Micro-batches of one rank."""

    typical: tuple[PairedBatch, ...]
    longest: PairedBatch

    def tokens(self) -> tuple[float, float, float]:
        """Means for a sample: the student's tokens, the first teacher's, the answer's."""
        rows = sum(len(batch.student.input_ids_BS) for batch in self.typical)
        student = sum(int(batch.student.attention_mask_BS.sum()) for batch in self.typical)
        teacher = sum(
            int(one.attention_mask_BS.sum()) for batch in self.typical for one in batch.teachers[:1]
        )
        answer = sum(batch.student.answer_tokens for batch in self.typical)
        return student / rows, teacher / rows, answer / rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The data of a run."""

    samples: dict[str, int]
    """Samples in an epoch of each stage."""
    batches: Callable[[str, int], Batches]
    """Micro-batches by stage and size."""
    source: str
    """Where lengths come from, in words."""


def workload_of(
    config: RunConfig, given: WorkloadConfig, models: Sequence[Any], *, tiles: int | None = None
) -> Workload:
    """The workload of a run.

    Args:
        config: the run.
        given: what the plan says of the data.
        models: transformers configs: the student's, then the teachers'.
        tiles: of each image, in place of the plan's first number; None: that one.

    Raises:
        ConfigError: the plan names no samples, and there are none on disk.
        DataError: those on disk cannot be used.
    """
    mixture = None if given.samples else _on_disk(config)
    samples = _counts(config, given, mixture)
    folders = [config.student, *(source.path for source in config.sources)]
    if tiles is None and mixture is not None and all((folder / PROCESSOR).is_file() for folder in folders):
        return Workload(
            samples=samples,
            batches=_Read(config, mixture, given.read),
            source=f"{min(given.read, len(mixture)):,} samples, read as training reads them",
        )
    sizes = SampleSizes(
        question_tokens=given.question_tokens,
        answer_tokens=given.answer_tokens,
        tiles=given.tiles[0] if tiles is None else tiles,
        pixels=given.pixels,
    )
    return Workload(
        samples=samples,
        batches=_Given(config, models, sizes),
        source=f"given: {sizes.question_tokens} question and {sizes.answer_tokens} answer tokens,"
        f" {sizes.tiles} tiles",
    )


def _on_disk(config: RunConfig) -> Mixture:
    missing = [source.path for source in config.data.sources if not Path(source.path).exists()]
    if missing:
        raise ConfigError(
            "is not there, and the plan names no number of samples",
            where=str(missing[0]),
            fix="Give --samples, and lengths by --question-tokens, --answer-tokens and --tiles",
        )
    return read_mixture(config.data)


def _counts(config: RunConfig, given: WorkloadConfig, mixture: Mixture | None) -> dict[str, int]:
    counts = {}
    for name in METHODS[config.method].stages:
        if name in given.stage_samples:
            counts[name] = given.stage_samples[name]
        elif mixture is not None:
            kept = without_domains(mixture, config.stage(name).exclude_domains or ())
            counts[name] = epoch_size(kept.parts)
        else:
            counts[name] = given.samples or 0
    return counts


@dataclass(frozen=True, slots=True)
class _Given:
    """Equal samples."""

    config: RunConfig
    models: Sequence[Any]
    sizes: SampleSizes

    def __call__(self, name: str, micro_batch: int) -> Batches:
        reads = self.models if self.config.plan(name).reads_teacher else self.models[:1]
        student, *teachers = (batch_of(model, self.sizes, samples=micro_batch) for model in reads)
        routes = [source.domains for source in self.config.sources if source.domains]
        domain = routes[0][0] if routes else "knowledge"
        batch = _moved(paired_batch(student, teachers, domain=domain), self.config)
        return Batches(typical=(batch,), longest=batch)


@dataclass(frozen=True, slots=True)
class _Read:
    """Samples on disk."""

    config: RunConfig
    mixture: Mixture
    count: int

    def __call__(self, name: str, micro_batch: int) -> Batches:
        config = self.config
        kept = without_domains(self.mixture, config.stage(name).exclude_domains or ())
        limits = {"max_tiles": config.data.max_tiles, "max_pixels": config.data.max_pixels}
        reader = PairReader(
            kept,
            student=load_processor(config.student, **limits, code=config.code(config.student)),
            teachers=[
                load_processor(source.path, **limits, code=config.code(source.path))
                for source in config.sources
                if config.plan(name).reads_teacher
            ],
            max_tokens=config.data.max_tokens,
        )
        places = np.unique(np.linspace(0, len(kept) - 1, min(self.count, len(kept))).astype(int))
        rows = sorted((reader[int(place)] for place in places), key=_length)
        pad = padding(reader)
        draw = np.random.default_rng(0)

        def typical() -> PairedBatch:
            if config.data.buckets:  # neighbours in length
                first = int(draw.integers(max(1, len(rows) - micro_batch + 1)))
                chosen = [rows[min(first + place, len(rows) - 1)] for place in range(micro_batch)]
            else:
                chosen = [rows[int(place)] for place in draw.integers(len(rows), size=micro_batch)]
            return _moved(pad(chosen), config)

        longest = [rows[max(0, len(rows) - 1 - place)] for place in range(micro_batch)]
        return Batches(typical=tuple(typical() for _ in range(DRAWN)), longest=_moved(pad(longest), config))


def _length(row: Any) -> int:
    return sum(len(one.question_ids) + len(one.answer_ids) for one in (row.student, *row.teachers))


def _moved(batch: PairedBatch, config: RunConfig) -> PairedBatch:
    return batch.to(torch.device("cpu"), DTYPES[config.engine.precision])
