"""Filling a cache of teacher features; every rank calls these functions together.

fingerprint compared -> shards verified, each rank its share -> index
  -> samples that are not in it: computed by the teacher alone, the longest first -> shards -> index
  -> some samples tokenized anew and compared with what was recorded
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from genrecal.core.console import console
from genrecal.core.errors import GenrecalError, TrainError
from genrecal.core.eta import with_eta
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions
from genrecal.core.types import Sample
from genrecal.data.pair import name_of
from genrecal.models.processors import load_model
from genrecal.models.vlm import layer_features
from genrecal.train.engine import DTYPES, device, engine_config, generating, loading_for
from genrecal.train.recording import Recorder
from genrecal.train.settings import RunConfig
from genrecal.train.stages import StageConfig
from genrecal.train.stopping import leave_to_parent
from genrecal.train.teacher_fingerprint import (
    FINGERPRINT,
    cache_config,
    cache_folder,
    fingerprint,
    require_same,
    weight_hashes,
)
from genrecal.train.teacher_rows import compare_live, teacher_rows
from genrecal.train.teacher_store import (
    ShardWriter,
    TeacherStore,
    drop_unfinished,
    finished_shards,
    note_verified,
    question_key,
    sample_key,
    verify_shards,
    write_index,
)
from genrecal.train.writing import from_leader, gather_objects

Result = TypeVar("Result")


def filled(
    config: RunConfig, place: int, samples: Any, *, questions: bool, probes: Collection[int]
) -> tuple[TeacherStore, tuple[float, ...]]:
    """The store of one teacher, holding all that is asked for, and its depths."""
    folder = cache_folder(config, place)
    keys, taught = _keys(samples, config.sources[place].domains)
    probed = np.isin(keys, np.array(sorted(probes), np.uint64))
    depths = opened(config, place)
    missing = _missing(TeacherStore(folder), keys, taught, probed, questions=questions)
    if len(missing):
        with writing_alone(folder, wait=True):
            depths = opened(config, place)  # nobody else writes from here on
            missing = _missing(TeacherStore(folder), keys, taught, probed, questions=questions)
            if dist.get_rank() == 0:
                console.print(f"{folder}: {len(missing):,} of {len(samples):,} samples to compute")
            recorder = Recorder(
                TeacherStore(folder),
                shard_writer(config, place),
                depths=depths,
                questions=questions or frozenset(probes),
            )
            _compute(config, place, samples, missing, recorder)
            recorder.close()
            dist.barrier()
            _index(folder)
    store = TeacherStore(folder)
    if dist.get_rank() == 0:
        compare_live(config, place, samples, keys, store)
    dist.barrier()
    return store, depths


def opened(config: RunConfig, place: int) -> tuple[float, ...]:
    """Compare or write the fingerprint, verify the shards, make the index; returns the stored depths."""
    folder = cache_folder(config, place)

    def compare() -> tuple[float, ...]:
        folder.mkdir(parents=True, exist_ok=True)
        now = fingerprint(config, place) | {"weights": weight_hashes(config.sources[place].path, folder)}
        if not (folder / FINGERPRINT).is_file():
            write_json(folder / FINGERPRINT, now | {"versions": installed_versions()})
        return tuple(require_same(folder, now))

    depths = _by_leader(compare)
    _index(folder)
    return depths


def _index(folder: Path) -> None:
    """Verify the shards, each rank its share, and make the index."""
    names = from_leader(finished_shards(folder))
    stamps = gather_objects(verify_shards(folder, names[dist.get_rank() :: dist.get_world_size()]))

    def write() -> None:
        note_verified(folder, {name: stamp for part in stamps for name, stamp in part.items()})
        write_index(folder)

    _by_leader(write)


def _missing(
    store: TeacherStore, keys: np.ndarray, taught: np.ndarray, probed: np.ndarray, *, questions: bool
) -> np.ndarray:
    """Places of samples with something that is not in the store, each key once."""
    lacking = (taught | probed) & ~store.holds(keys)
    lacking |= ((taught & questions) | probed) & ~store.holds(question_key(keys))
    places = np.flatnonzero(lacking)
    _, first = np.unique(keys[places], return_index=True)
    return places[np.sort(first)]


def _keys(samples: Sequence[Sample], domains: Collection[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """The key of every sample, uint64 [N], and whether it is taught, bool [N]; ranks share the work."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = np.zeros((-(-len(samples) // ranks), 2), np.uint64)
    for row, index in enumerate(range(rank, len(samples), ranks)):
        sample = samples[index]
        mine[row] = sample_key(sample), domains is None or sample.domain in domains
    local = torch.from_numpy(mine.view(np.int64)).to(device())
    parts = [torch.empty_like(local) for _ in range(ranks)]
    dist.all_gather(parts, local)
    whole = torch.stack(parts, dim=1).flatten(0, 1)[: len(samples)].cpu().numpy().view(np.uint64)
    return whole[:, 0].copy(), whole[:, 1].astype(bool)


def _compute(config: RunConfig, place: int, samples: Any, missing: np.ndarray, recorder: Recorder) -> None:
    """Run the teacher over the samples at `missing`, the longest first: what does not fit fails at once."""
    settings, source = cache_config(config), config.sources[place]
    order = missing[np.argsort(-samples.lengths[missing], kind="stable")]
    batches = [
        order[first : first + settings.batch].tolist() for first in range(0, len(order), settings.batch)
    ]
    ranks = dist.get_world_size()
    mine = batches[dist.get_rank() :: ranks]
    # Under ZeRO-3 a rank without samples left runs along: weights are gathered from all.
    idle = -(-len(batches) // ranks) - len(mine)
    loader = DataLoader(
        range(len(samples)),  # type: ignore[arg-type]
        batch_sampler=[*mine, *[batches[0][:1]] * idle],
        collate_fn=teacher_rows(config, place, samples),
        num_workers=config.data.workers,
        worker_init_fn=_start_worker,
    )
    engine = config.engine if settings.split else config.engine.model_copy(update={"zero_stage": 1})
    deepspeed = engine_config(
        engine, config.optimizer, StageConfig(micro_batch=settings.batch, accumulation=1)
    )
    dtype = DTYPES[config.engine.precision]
    with loading_for(deepspeed):
        model = load_model(source.path, dtype=dtype, code=config.code(source.path))
    with generating(model.requires_grad_(False), deepspeed) as teacher, torch.no_grad():
        for number, found in enumerate(_shown(loader, mine, samples.lengths)):
            if isinstance(found, GenrecalError):
                raise found
            batch = found.to(device(), dtype)
            features = dict(
                zip(recorder.depths, layer_features(teacher, batch, recorder.depths), strict=True)
            )
            if number < len(mine):
                refused = recorder.take(batch, features, torch.ones(len(batch.origins), dtype=torch.bool))
                if refused:
                    sample = samples[mine[number][refused[0]]]
                    raise TrainError(
                        "the teacher's features are not finite",
                        where=name_of(sample),
                        fix="Look at the sample, or leave it out (data.exclude_ids)",
                    )


def _start_worker(number: int) -> None:
    leave_to_parent()


def _shown(loader: Any, mine: list[list[int]], lengths: np.ndarray) -> Iterator[Any]:
    """The batches; rank 0 says how far it is, by the samples' lengths."""
    if dist.get_rank():
        yield from loader
        return
    done = np.cumsum([int(lengths[batch].sum()) for batch in mine])
    counted = ((found, int(done[min(number, len(done) - 1)])) for number, found in enumerate(loader))
    for found, _ in with_eta(counted, what="teacher features", total=int(done[-1]), done=lambda one: one[1]):
        yield found


@contextmanager
def writing_alone(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the cache's lock on rank 0, and delete what a killed writer left.

    Yields:
        Whether it is held; with `wait` it always is.

    Raises:
        TrainError: with `wait`, another run has it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")

    def acquire() -> bool:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                return False
            raise TrainError(
                "another run is filling it", where=folder, fix="Run this command again when it is done"
            ) from None
        drop_unfinished(folder)
        return True

    try:
        yield _by_leader(acquire)
    finally:
        lock.release()


def _by_leader(work: Callable[[], Result]) -> Result:
    """What rank 0 makes of `work`, on every rank; the others wait for it."""
    return from_leader(work() if dist.get_rank() == 0 else None)


def shard_writer(config: RunConfig, place: int) -> ShardWriter:
    settings = cache_config(config)
    return ShardWriter(
        cache_folder(config, place),
        kind=settings.dtype,
        rank=dist.get_rank(),
        shard_bytes=int(settings.shard_mib * 2**20),
    )
