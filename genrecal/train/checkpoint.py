"""Checkpoints within a stage, for resuming: shards first, the manifest last.

    RUN/checkpoints/<stage>/step-000100/
        shard-000-00000.safetensors    round and rank; NAME.fp32, NAME.exp_avg, NAME.exp_avg_sq of its share
        manifest.json                  kind "checkpoint": steps done, each parameter's shard, every SHA-256

A parameter's state is written whole, by one rank: any number of ranks and any ZeRO stage can go on with it. A
folder without a manifest is a save that was cut off; it is never loaded, nor is one that was altered.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from genrecal.core.console import console
from genrecal.core.errors import GenrecalError, TrainError
from genrecal.core.files import sync_file, sync_folder
from genrecal.core.manifest import NAME, file_entry, read_manifest, verify_file, write_manifest
from genrecal.train.state import (
    PARTS,
    before_put,
    place_of,
    put,
    refresh,
    shape_of,
    step_count,
    trained,
    whole,
)
from genrecal.train.writing import from_leader, gather_objects, writing_together

# Of one shard, and so what a rank holds in CPU memory while it saves.
SHARD_BYTES = 2 << 30
INCOMPLETE = f"its save was cut off, it has no {NAME}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files were verified."""

    folder: Path
    manifest: dict[str, Any]


def shard_rounds(sizes: dict[str, int], *, ranks: int, limit: int = SHARD_BYTES) -> list[dict[str, int]]:
    """Who writes what: in each round a rank writes one shard, all ranks at the same time.

    Args:
        sizes: bytes to write by name.
        ranks: that write.
        limit: bytes of a shard; one that is larger stands alone.

    Returns:
        For each round the names and the rank that writes each: the one that has least so far.
    """
    rounds: list[dict[str, int]] = [{}]
    load = [0] * ranks
    for name, size in sizes.items():
        owner = load.index(min(load))
        if load[owner] and load[owner] + size > limit:
            rounds.append({})
            load, owner = [0] * ranks, 0
        rounds[-1][name] = owner
        load[owner] += size
    return rounds


def save_checkpoint(engine: Any, folder: Path, *, step: int, keep: int) -> None:
    """Save the state after `step` optimizer steps, then drop all but the newest `keep`. Called by every rank.

    Raises:
        TrainError: a rank cannot write; on every rank alike.
    """
    leader = dist.get_rank() == 0
    target = folder / f"step-{step:06d}"
    try:
        with writing_together(target):
            if leader:
                _drop(target)
                target.mkdir(parents=True)
        parameters, files = _write_shards(engine, target)
        with writing_together(target):
            if leader:
                sync_folder(target)
                write_manifest(
                    target,
                    kind="checkpoint",
                    files=files,
                    step=step,
                    ranks=dist.get_world_size(),
                    parameters=parameters,
                )
                sync_folder(folder)
    except TrainError:
        if leader:  # what was written of it takes the space that is lacking
            shutil.rmtree(target, ignore_errors=True)
        raise
    if leader:
        _keep(folder, step, keep)
    dist.barrier()


def _write_shards(engine: Any, target: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write this rank's shards; returns, on every rank, where each parameter is and what the files are."""
    weights, rank = trained(engine), dist.get_rank()
    sizes = {name: 4 * len(PARTS) * math.prod(shape_of(weight)) for name, weight in weights.items()}
    parameters: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for number, owners in enumerate(shard_rounds(sizes, ranks=dist.get_world_size())):
        tensors: dict[str, torch.Tensor] = {}
        entries: dict[str, Any] = {}
        name_of_file = f"shard-{number:03d}-{rank:05d}.safetensors"
        for name, owner in owners.items():
            weight = weights[name]
            for part in PARTS:
                tensor = whole(engine, weight, part, owner=owner)
                if tensor is not None:
                    tensors[f"{name}.{part}"] = tensor
            if owner == rank:
                entries[name] = {
                    "file": name_of_file,
                    "shape": list(shape_of(weight)),
                    "steps": step_count(engine, place_of(engine, weight)),
                }
        written: dict[str, Any] = {}
        with writing_together(target):
            if tensors:
                target.mkdir(parents=True, exist_ok=True)  # another node may not see it yet
                save_file(tensors, target / name_of_file)
                (target / name_of_file).chmod(0o644)  # safetensors lets nobody else read it
                sync_file(target / name_of_file)
                written[name_of_file] = file_entry(target / name_of_file)
        for theirs_entries, theirs_written in gather_objects((entries, written)):
            parameters |= theirs_entries
            files |= theirs_written
    return parameters, files


def _drop(checkpoint: Path) -> None:
    """Remove a checkpoint, the manifest first: a kill in between leaves an incomplete one."""
    (checkpoint / NAME).unlink(missing_ok=True)
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)


def _keep(folder: Path, step: int, keep: int) -> None:
    """Drop all but the newest `keep` finished checkpoints, those that a resume passed over included."""
    finished = [path.parent for path in sorted(folder.glob(f"step-*/{NAME}")) if _step(path.parent) <= step]
    for checkpoint in folder.glob("step-*"):
        if checkpoint not in finished[-keep:]:
            _drop(checkpoint)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is complete and unaltered; every rank calls it and gets the same.

    The ranks share the hashing. What is passed over is named in a warning.

    Raises:
        TrainError: there are finished ones, but none can be loaded.
    """
    leader = dist.get_rank() == 0
    there = [path.name for path in sorted(folder.glob("step-*"), key=_step)] if leader else []
    was_finished = False
    for checkpoint in (folder / name for name in reversed(from_leader(there))):
        manifest, why = from_leader(_manifest(checkpoint) if leader else None)
        was_finished |= why != INCOMPLETE
        if manifest is not None:
            why = next((flaw for flaw in gather_objects(_flaw(checkpoint, manifest)) if flaw), None)
            if why is None:
                return Checkpoint(folder=checkpoint, manifest=manifest)
        if leader:
            line = f"warning: {checkpoint} is passed over: {why}"
            console.print(line, style="yellow", markup=False, soft_wrap=True)
    if was_finished:
        raise TrainError(
            "holds no checkpoint that can be loaded", where=folder, fix="Delete it to start the stage again"
        )
    return None


def _manifest(checkpoint: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The manifest, or why there is none."""
    if not (checkpoint / NAME).is_file():
        return None, INCOMPLETE
    try:
        manifest = read_manifest(checkpoint, kind="checkpoint")
    except GenrecalError as error:
        return None, error.what
    return manifest, None


def _flaw(checkpoint: Path, manifest: dict[str, Any]) -> str | None:
    """What is wrong with this rank's share of the files."""
    if "parameters" not in manifest:
        return "it was written by an earlier genrecal"
    try:
        for name in sorted(manifest["files"])[dist.get_rank() :: dist.get_world_size()]:
            verify_file(checkpoint, name, manifest)
    except GenrecalError as error:
        return error.what
    except OSError as error:
        return str(error)
    return None


def load_checkpoint(engine: Any, checkpoint: Checkpoint) -> int:
    """Give the engine the saved state; returns the number of steps done. Called by every rank.

    Raises:
        TrainError: the checkpoint is of other parameters than this stage trains.
    """
    weights, entries = trained(engine), checkpoint.manifest["parameters"]
    shapes = {name: list(shape_of(weight)) for name, weight in weights.items()}
    saved = {name: entry["shape"] for name, entry in entries.items()}
    if shapes != saved:
        other = sorted(name for name in shapes | saved if shapes.get(name) != saved.get(name))
        raise TrainError(
            f"is of other parameters than this stage trains ({', '.join(other[:3])})",
            where=checkpoint.folder,
            fix="Delete it to start the stage again",
        )
    before_put(engine)
    most = max(entry["steps"] for entry in entries.values())
    for name, weight in weights.items():
        entry = entries[name]
        with safe_open(checkpoint.folder / entry["file"], "pt") as shard:
            read = partial(_elements, shard, name, entry["shape"])
            put(engine, weight, read, steps=entry["steps"], most_steps=most)
    refresh(engine)
    return int(checkpoint.manifest["step"])


def _elements(shard: Any, name: str, shape: list[int], part: str, start: int, count: int) -> torch.Tensor:
    """Elements of a part of a parameter, flat; no more rows are read than hold them."""
    tensor = f"{name}.{part}"
    width = math.prod(shape[1:])
    first = start // width
    rows = shard.get_slice(tensor)[first : math.ceil((start + count) / width)]
    return rows.reshape(-1)[start - first * width :][:count]
