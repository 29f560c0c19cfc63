"""Start the ranks of a run: on this machine, as torchrun does on one of several nodes, or through Slurm.

local       processes of this one, `engine.ranks` of them; within torchrun, this process is a rank
torchrun    this process is torchrun's agent of this node; the same command runs on every node (agent.py)
slurm       a script that starts such an agent on each node, for sbatch (slurm.py)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
import torch.multiprocessing as processes
from torch.distributed import TCPStore

from genrecal.core.console import console
from genrecal.core.errors import ConfigError, Requeue
from genrecal.train.agent import run_agent
from genrecal.train.cache_command import fill_caches
from genrecal.train.engine import leave
from genrecal.train.heartbeat import BEAT_S, LINGER_S, Verdict, of_run, post
from genrecal.train.orphans import die_with_parent
from genrecal.train.rank import FINISHED, RankFailed, run_rank
from genrecal.train.run import check_run, is_finished, run_method
from genrecal.train.settings import RunConfig
from genrecal.train.slurm import run_slurm
from genrecal.train.stopping import forwarding

LAUNCHES = ("local", "torchrun", "slurm")
LOCALHOST = "127.0.0.1"
# When one rank has ended early, the others read in the store that they should, too; then they are killed.
LEAVE_S = 3 * BEAT_S + LINGER_S
# After a signal, the rank that tells the trackers is the last one.
LEAVE_FOR_REQUEUE_S = 90.0


def distill(
    config: RunConfig, *, launch: str = "local", arguments: Sequence[str] = (), submit: bool = False
) -> None:
    """Run `config` to its end, resuming what is there; with `slurm`, have it run.

    Args:
        config: the run.
        launch: one of LAUNCHES.
        arguments: with `torchrun`: those of `genrecal distill` that made `config`, for the ranks.
        submit: with `slurm`: hand the script to sbatch.

    Raises:
        GenrecalError: the config, the data or a rank failed; ranks have printed their own line.
    """
    if launch not in LAUNCHES:
        raise ConfigError(
            f"unknown launch '{launch}'; known are {', '.join(LAUNCHES)}", where="distill --launch"
        )
    if submit and launch != "slurm":
        raise ConfigError("goes with --launch slurm alone", where="distill --submit")
    if "RANK" in os.environ and launch != "local":
        raise ConfigError(
            f"'{launch}' starts ranks, but this process is one: RANK is set", where="distill --launch"
        )
    if launch == "slurm":
        run_slurm(config, submit=submit)
        return
    if "RANK" in os.environ:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            die_with_parent()
        run_rank(config, check=True)
        return
    if launch == "local":
        check_run(config)
    if is_finished(config.output):
        console.print(f"{config.output}: {FINISHED}")
    elif launch == "torchrun":
        run_agent(config, arguments)
    else:
        _run_local(config)


def fill_cache(config: RunConfig) -> None:
    """Fill the caches of teacher features that `config` names, without the run; within torchrun as a rank.

    Raises:
        GenrecalError: as `distill`.
    """
    if config.teacher_cache is None:
        raise ConfigError("names no folder for teacher features", where="teacher_cache", fix="Set its path")
    if "RANK" in os.environ:
        run_rank(config, check=True, job=fill_caches)
    else:
        check_run(config)
        _run_local(config, fill_caches)


def _run_local(config: RunConfig, job: Callable[[RunConfig], None] = run_method) -> None:
    ranks = config.engine.ranks
    if not torch.cuda.is_available() and ranks > 1:
        from genrecal.train.comm_operator import check_build

        check_build()
    # Not rank 0 but this process has the ranks' store, as torchrun's agent does: it outlives all of them.
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
    started = processes.spawn(_rank, args=(config, store.port, job), nprocs=ranks, join=False)
    with forwarding(started.pids) as signals:
        failed = _first_to_fail(started.processes)
        if failed is None:
            return
        rank, code = failed
        if code < 0:  # it could not tell the others itself
            post(of_run(store, 0), Verdict(rank=rank, by=None, said=""))
        _end(started.processes, LEAVE_FOR_REQUEUE_S if code == Requeue.exit_code else LEAVE_S)
    if signals and code == -signal.SIGTERM:  # it was still importing
        raise Requeue(f"ended by {signals[0]}", fix="The same command goes on")
    raise RankFailed(rank, code)


def _first_to_fail(started: Sequence[BaseProcess]) -> tuple[int, int] | None:
    """Wait until a rank ends early, or all have finished; which one, and its exit code."""
    running = {process.sentinel: rank for rank, process in enumerate(started)}
    while running:
        for sentinel in wait(list(running)):
            rank = running.pop(sentinel)  # type: ignore[arg-type]
            started[rank].join()
            if code := started[rank].exitcode:
                return rank, code
    return None


def _end(started: Sequence[BaseProcess], within_s: float) -> None:
    """Wait until all ranks have left; kill those that have not after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in started:
        process.kill()
        process.join()


def _rank(rank: int, config: RunConfig, port: int, job: Callable[[RunConfig], None]) -> None:
    die_with_parent()
    ranks = config.engine.ranks
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch: the store is there, no rank opens it
    }
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    run_rank(config, check=False, job=job)
    leave()
