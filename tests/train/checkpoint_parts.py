"""`python -m tests.train.checkpoint_parts TASKS RANKS MODES FOLDER`: engines saved and loaded on ranks.

    save        six steps with a checkpoint after the third, then the second three again, from the checkpoint
    load        the second three steps from all checkpoints that others saved
    choose      which checkpoint is taken when the newest is damaged
    unwritten   one of the ranks cannot write

Tasks are joined by commas; MODES are as "0fp32,3bf16". What they find lies in FOLDER/TASK-RANKS.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from safetensors.torch import load_file
from torch import nn

from genrecal.core.errors import TrainError
from genrecal.core.manifest import NAME
from genrecal.train.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from genrecal.train.engine import DTYPES, engine_config, gather, join_ranks, leave, start
from genrecal.train.settings import EngineConfig, OptimizerConfig
from genrecal.train.stages import StageConfig
from genrecal.train.state import PARTS, trained, whole
from genrecal.train.writing import gather_objects

WIDTH, BATCH, STEPS, SAVED = 13, 12, 6, 3
Modes = list[tuple[int, str]]
"""ZeRO stages and precisions; without ZeRO there is no bf16."""


class Net(nn.Module):
    """Parameters that no number of ranks divides, one that never gets a gradient, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(WIDTH, 17)
        self.scale = nn.Parameter(torch.ones(1))
        self.unused = nn.Parameter(torch.tensor([[-0.0, 1.0, -0.0], [0.5, -0.0, 2.0]]))
        self.frozen = nn.Linear(17, 17).requires_grad_(False)
        self.last = nn.Linear(17, 5)

    def forward(self, x_BW: torch.Tensor, y_BC: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.frozen(torch.tanh(self.first(x_BW)))) * self.scale
        return ((self.last(hidden) - y_BC) ** 2).float().mean()


def build(zero: int, precision: str) -> Any:
    micro_batch = BATCH // dist.get_world_size()
    config = engine_config(
        EngineConfig(zero_stage=zero, precision=precision),
        OptimizerConfig(weight_decay=0.1),
        StageConfig(micro_batch=micro_batch, accumulation=1, lr_start=1e-2),
    )
    return start(Net().to(DTYPES[precision]), config)


def train(engine: Any, precision: str, first: int, last: int) -> list[float]:
    """The losses of the steps, over the whole batch."""
    losses = []
    for step in range(first, last):
        numbers = torch.Generator().manual_seed(step)
        x, y = (torch.randn(BATCH, width, generator=numbers) for width in (WIDTH, 5))
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        loss = engine(x[mine].to(DTYPES[precision]), y[mine].to(DTYPES[precision]))
        engine.backward(loss)
        engine.step()
        total = loss.detach().double()
        dist.all_reduce(total)
        losses.append(float(total) / dist.get_world_size())
    return losses


def digest(engine: Any) -> str:
    """Of every bit of the state and of the weights that the model computes with; on rank 0."""
    found = hashlib.sha256()
    for weight in trained(engine).values():
        for part in PARTS:
            tensor = whole(engine, weight, part, owner=0)
            found.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    for tensor in gather(dict(engine.module.named_parameters())).values():
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(folder: Path, modes: Modes) -> dict[str, Any]:
    found = {}
    for zero, precision in modes:
        here = folder / f"{dist.get_world_size()}-zero{zero}-{precision}"
        engine = build(zero, precision)
        train(engine, precision, 0, SAVED)
        save_checkpoint(engine, here, step=SAVED, keep=2)
        after = train(engine, precision, SAVED, STEPS)
        whole_run = digest(engine)
        engine.destroy()
        again = build(zero, precision)
        train(again, precision, 10, 11)  # what it computed before must not show
        checkpoint = newest_checkpoint(here)
        assert checkpoint is not None
        assert load_checkpoint(again, checkpoint) == SAVED
        resumed = train(again, precision, SAVED, STEPS)
        found[here.name] = {"after": after, "resumed": resumed, "same": whole_run == digest(again)}
        again.destroy()
    return found


def load(folder: Path, modes: Modes) -> dict[str, Any]:
    found = {}
    for here in sorted(path for path in folder.iterdir() if "-zero" in path.name):
        precision = here.name.rpartition("-")[2]
        for zero in (zero for zero, other in modes if other == precision):
            engine = build(zero, precision)
            checkpoint = newest_checkpoint(here)
            assert checkpoint is not None
            load_checkpoint(engine, checkpoint)
            found[f"{here.name} in zero{zero}"] = {
                "same_state": same_state(engine, checkpoint),
                "losses": train(engine, precision, SAVED, STEPS),
            }
            engine.destroy()
    return found


def same_state(engine: Any, checkpoint: Checkpoint) -> bool:
    """Whether the engine holds every bit of the checkpoint; on rank 0."""
    same = True
    for name, weight in trained(engine).items():
        for part in PARTS:
            held = whole(engine, weight, part, owner=0)
            if held is not None:
                file = checkpoint.manifest["parameters"][name]["file"]
                saved = load_file(checkpoint.folder / file)[f"{name}.{part}"]
                same &= held.numpy().tobytes() == saved.numpy().tobytes()
    return same


def choose(folder: Path, modes: Modes) -> dict[str, Any]:
    (zero, precision), here = modes[-1], folder / "choose"
    engine = build(zero, precision)

    def take() -> list[str | None]:
        """What every rank takes."""
        try:
            checkpoint = newest_checkpoint(here)
        except TrainError as error:
            return gather_objects(f"error: {error.what}")
        return gather_objects(None if checkpoint is None else checkpoint.folder.name)

    def damaged(how: Callable[[], object]) -> list[str | None]:
        if dist.get_rank() == 0:
            how()
        dist.barrier()
        return take()

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))

    found: dict[str, Any] = {"none": take()}
    for step in (1, 2, 3, 4):
        train(engine, precision, step - 1, step)
        save_checkpoint(engine, here, step=step, keep=3)
    found["kept"] = sorted(path.name for path in here.iterdir())
    found["all well"] = take()
    shard = max((here / "step-000004").glob("*.safetensors"))
    found["a bit flipped"] = damaged(lambda: flip(shard))
    # It was passed over, and goes with the next save, though its number is larger.
    save_checkpoint(engine, here, step=3, keep=3)
    found["kept after a resume"] = sorted(path.name for path in here.iterdir())
    found["no manifest"] = damaged((here / "step-000003" / NAME).unlink)
    found["half a manifest"] = damaged(lambda: (here / "step-000002" / NAME).write_text('{"kind": "che'))
    engine.destroy()
    return found


def unwritten(folder: Path, modes: Modes) -> dict[str, Any]:
    """The last rank may not write as much as its shard has."""
    (zero, precision), here = modes[-1], folder / "unwritten"
    engine = build(zero, precision)
    train(engine, precision, 0, 1)
    save_checkpoint(engine, here, step=1, keep=1)
    train(engine, precision, 1, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == dist.get_world_size() - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))
    try:
        save_checkpoint(engine, here, step=2, keep=1)
        errors = gather_objects("none")
    except TrainError as error:
        errors = gather_objects(error.what)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found: dict[str, Any] = {"errors": errors, "left": sorted(path.name for path in here.iterdir())}
    checkpoint = newest_checkpoint(here)
    assert checkpoint is not None
    found["taken"] = checkpoint.folder.name
    save_checkpoint(engine, here, step=2, keep=1)
    found["left after it had space"] = sorted(path.name for path in here.iterdir())
    engine.destroy()
    return found


TASKS = {"save": save, "load": load, "choose": choose, "unwritten": unwritten}


def _rank(rank: int, tasks: str, ranks: int, modes: Modes, folder: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    join_ranks()
    for task in tasks.split(","):
        found = TASKS[task](folder, modes)
        if rank == 0:
            (folder / f"{task}-{ranks}.json").write_text(json.dumps(found))
    dist.barrier()
    leave()


def main() -> None:
    tasks, ranks, modes, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    parsed = [(int(mode[0]), mode[1:]) for mode in modes.split(",")]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    processes.spawn(_rank, args=(tasks, ranks, parsed, folder, port), nprocs=ranks)


if __name__ == "__main__":
    main()
