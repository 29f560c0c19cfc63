"""torchrun's agent of this node, in this process: it starts the ranks here and ends as they end.

torchrun on its own ends with exit code 1 whatever its ranks ended with, so that nobody could tell a run that
wants to be put back into the queue from one that failed. It also passes a SIGTERM on to the ranks' whole
process groups, readers included, and kills what is left after 30 s. Here torchrun's own code starts and
watches the ranks, SIGTERM and SIGUSR1 go to the ranks alone, and they have as long as the scheduler gives.
What is left: when the first rank of a node has ended, the node's others have 30 s.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import psutil
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from genrecal.core.console import console
from genrecal.core.errors import ConfigError, Requeue, TrainError
from genrecal.train.cluster import LaunchConfig
from genrecal.train.rank import RankFailed
from genrecal.train.settings import RunConfig
from genrecal.train.stopping import forwarding

# Those that stay with torchrun; the others are `forwarding`'s.
TORCHRUNS_SIGNALS = "SIGHUP,SIGQUIT"


def run_agent(config: RunConfig, arguments: Sequence[str]) -> None:
    """Start this node's ranks and wait for them.

    Args:
        config: the run.
        arguments: of `genrecal distill`, for the ranks.

    Raises:
        RankFailed: a rank of this node ended early; with the exit code of the ranks.
        TrainError: the agents of the other nodes did not come.
    """
    ranks = config.launch.gpus_per_node or torch.cuda.device_count() or config.engine.ranks
    if not torch.cuda.is_available() and ranks > 1:
        from genrecal.train.comm_operator import check_build

        check_build()
    words = torchrun_arguments(config.launch, ranks, arguments)
    console.print(f"torchrun {shlex.join(words)}", soft_wrap=True, markup=False)
    with forwarding(_ranks_here) as signals:
        try:
            run(parse_args(words))
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            first, _ = error.get_first_failure()
            raise RankFailed(*what_ended(codes, first, asked=bool(signals))) from None
        except RendezvousError as error:
            raise TrainError(
                f"the {config.launch.nodes} nodes did not meet, or the one that they meet at is gone"
                f" ({' '.join(str(error).split())})",
                where=config.launch.rendezvous,
                fix="Does the same command run on every node, is HOST one of them, and is it up?",
            ) from None


def torchrun_arguments(launch: LaunchConfig, ranks: int, arguments: Sequence[str]) -> list[str]:
    """What torchrun is called with on this node, to run `genrecal distill` with `arguments` in each rank.

    Raises:
        ConfigError: several nodes, and no place where they meet.
    """
    if launch.nodes == 1:
        meeting = ["--standalone"]
    elif launch.rendezvous is None:
        raise ConfigError(
            f"is missing: {launch.nodes} nodes must know where to meet",
            where="launch.rendezvous",
            fix="Give HOST:PORT, with HOST one of the nodes, the same on all",
        )
    else:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={launch.job}"]
    return [
        f"--nnodes={launch.nodes}",
        f"--nproc-per-node={ranks}",
        *meeting,
        "--max-restarts=0",
        f"--signals-to-handle={TORCHRUNS_SIGNALS}",
        *("-m", "cli", "distill"),
        *arguments,
    ]


def what_ended(codes: dict[int, int], first: int, *, asked: bool) -> tuple[int, int]:
    """The rank that the others of this node ended with, and its exit code.

    A rank that is told to end because another failed may leave with the code for requeueing; that counts only
    if all did, or if this agent was `asked` to end.

    Args:
        codes: of the ranks that ended early, by rank; negative for a signal.
        first: the rank that torchrun saw first.
        asked: whether a signal came to this process.
    """
    requeued = [rank for rank, code in codes.items() if code == Requeue.exit_code]
    if requeued and (asked or len(requeued) == len(codes)):
        return requeued[0], Requeue.exit_code
    if codes[first] == Requeue.exit_code:
        first = next(rank for rank, code in codes.items() if code != Requeue.exit_code)
    return first, codes[first]


def _ranks_here() -> list[int]:
    """The processes that torchrun's code has started in this one: the ranks, and nothing else."""
    return [child.pid for child in psutil.Process().children()]
