"""What stages take from a cache of teacher features, and what they leave in it (docs/cache.md).

a stage that the cache serves     what is missing is computed first (teacher_fill.py), then samples come
                                  with their features and the teacher is its head alone
one that needs the live teacher   its features are recorded while it trains, for the stages behind it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch.distributed as dist

from genrecal.core.console import console
from genrecal.core.errors import ConfigError, Requeue
from genrecal.core.types import Sample
from genrecal.models.head_only import load_model_config
from genrecal.train.recording import Recorder, Stamped, Stored
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS, Stage
from genrecal.train.teacher_fill import filled, opened, shard_writer, writing_alone
from genrecal.train.teacher_fingerprint import (
    FINGERPRINT,
    cache_config,
    cache_folder,
    fingerprint,
    require_same,
    stored_depths,
)
from genrecal.train.teacher_store import TeacherStore, sample_key


def serves(config: RunConfig, stage: Stage) -> bool:
    """Whether `stage` can take all that it reads of its teachers from the cache."""
    if config.teacher_cache is None or not stage.recalibrates:
        return False
    return config.teacher_cache.question_features or "regularize" not in stage.losses


def check_caches(config: RunConfig) -> None:
    """Compare the fingerprints of caches that are there, but for the teachers' weights; before ranks start.

    Raises:
        ConfigError: no stage can use a cache, one was made for something else, or its folder holds
            something else.
    """
    if config.teacher_cache is None:
        return
    if not any(serves(config, config.plan(name)) for name in METHODS[config.method].stages):
        raise ConfigError(
            "serves no stage of this run: all regularize, which reads question features",
            where="teacher_cache",
            fix="Set teacher_cache.question_features, or leave teacher_cache out",
        )
    for place in range(len(config.sources)):
        folder = cache_folder(config, place)
        if (folder / FINGERPRINT).is_file():
            require_same(folder, fingerprint(config, place))
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                "is not empty and holds no teacher features",
                where=folder,
                fix="Name another folder in teacher_cache.path",
            )


def stored_teachers(config: RunConfig, stage: Stage, samples: Any) -> list[Stored]:
    """How each teacher's samples are read in a stage that the cache serves; first computes what is missing.

    Args:
        config: the run.
        stage: the stage, as the config has it.
        samples: those of the stage.
    """
    found = []
    for place, source in enumerate(config.sources):
        questions = "regularize" in stage.losses
        probes = _probe_keys(config, samples, place)
        store, depths = filled(config, place, samples, questions=questions, probes=probes)
        found.append(
            Stored(
                store=store,
                stored=depths,
                depths=stored_depths(config),
                domains=source.domains,
                questions=questions or frozenset(probes),
                kind=cache_config(config).dtype,
                width=_width(config, place),
            )
        )
    return found


def recorded_teachers(config: RunConfig, stage: Stage) -> Sequence[Stamped]:
    """How each teacher's samples are read in a stage that runs it live; with what `recording` needs."""
    records = config.teacher_cache is not None and stage.recalibrates
    return [Stamped()] * len(config.sources) if records else ()


@contextmanager
def recording(
    config: RunConfig, stage: Stage, sources: Iterable[Any], later: Callable[[], Sequence[Any]]
) -> Iterator[None]:
    """While this is open, what a live teacher computes goes to its cache, for the stages that read it.

    Args:
        config: the run.
        stage: the one that runs.
        sources: of its objective.
        later: gives the samples of the stages that the cache serves.
    """
    if not recorded_teachers(config, stage) or serves(config, stage):
        yield
        return
    if dist.get_rank() == 0:
        console.print(
            "the cache holds no question features, which regularization reads: the teacher runs live"
        )
    with ExitStack() as stack:
        found = later()
        for place, source in enumerate(sources):
            source.recorder = stack.enter_context(_recorder(config, place, found))
        yield


@contextmanager
def _recorder(config: RunConfig, place: int, later: Sequence[Any]) -> Iterator[Recorder | None]:
    """One teacher's; None where another run is writing to its cache, or where that holds more depths."""
    folder = cache_folder(config, place)
    with writing_alone(folder, wait=False) as alone:
        depths = opened(config, place) if alone else ()
        if depths != stored_depths(config):
            if dist.get_rank() == 0:
                console.print(f"{folder}: not recorded now; what is missing is computed afterwards")
            yield None
            return
        keys = frozenset(key for samples in later for key in _probe_keys(config, samples, place))
        recorder = Recorder(TeacherStore(folder), shard_writer(config, place), depths=depths, questions=keys)
        try:
            yield recorder
        except Requeue:  # what was computed so far is not lost
            recorder.close()
            raise
        recorder.close()
        dist.barrier()


def _probe_keys(config: RunConfig, samples: Sequence[Sample], place: int) -> list[int]:
    """Samples whose features a stage leaves for the figures: of the first teacher, questions too."""
    count = config.engine.feature_samples if place == 0 else 0
    return [sample_key(sample) for sample in islice((samples[index] for index in range(len(samples))), count)]


def _width(config: RunConfig, place: int) -> int:
    path = config.sources[place].path
    return int(load_model_config(path, code=config.code(path)).get_text_config().hidden_size)
