"""Checkpoints within a stage, for resuming: DeepSpeed's files first, our manifest last.

    RUN/checkpoints/<stage>/step-000100/   DeepSpeed's folder, manifest.json (kind "checkpoint")

A folder without a manifest is a save that was cut off; it is never loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from genrecal.core.errors import GenrecalError, TrainError
from genrecal.core.files import sync_tree
from genrecal.core.manifest import NAME, verify_manifest, write_manifest


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise when they cannot write into a TrainError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise TrainError(
            f"cannot be written ({line})",
            where=folder,
            fix="Is the disk full? The same command resumes from what was saved before",
        ) from error


def save_checkpoint(engine: Any, folder: Path, *, step: int) -> None:
    """Save the state after `step` optimizer steps and drop the older ones. Called by every rank."""
    target = folder / f"step-{step:06d}"
    if dist.get_rank() == 0 and target.exists():
        shutil.rmtree(target)
    dist.barrier()
    with writing(target):
        engine.save_checkpoint(
            str(folder),
            tag=target.name,
            client_state={"step": step},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
    dist.barrier()
    if dist.get_rank() == 0:
        sync_tree(target)
        write_manifest(target, kind="checkpoint", step=step, ranks=dist.get_world_size())
        for other in folder.glob("step-*"):
            if other != target:
                shutil.rmtree(other)
    dist.barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose save was finished.

    Raises:
        TrainError: it is altered, or was written by another number of ranks.
    """
    finished = sorted(path.parent for path in folder.glob(f"step-*/{NAME}"))
    if not finished:
        return None
    try:
        manifest = verify_manifest(finished[-1], kind="checkpoint")
    except GenrecalError as error:
        raise TrainError(error.what, where=error.where, fix="Delete this checkpoint and run again") from None
    if manifest["ranks"] != dist.get_world_size():
        raise TrainError(
            f"was written by {manifest['ranks']} ranks, this run has {dist.get_world_size()}",
            where=finished[-1],
            fix="Run with as many ranks, or delete it to start the stage again",
        )
    return finished[-1]


def load_checkpoint(engine: Any, checkpoint: Path) -> int:
    """Load engine and optimizer; returns the number of steps done."""
    _, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_module_strict=False)
    return int(state["step"])
