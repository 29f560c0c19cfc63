"""Start the ranks of a run: processes on this machine, or this process as a rank of torchrun."""

from __future__ import annotations

import os
import socket
import sys
import traceback
import warnings

import torch
import torch.multiprocessing as processes

from genrecal.core.console import console, errors
from genrecal.core.errors import GenrecalError, TrainError
from genrecal.train.run import check_run, is_finished, run_method
from genrecal.train.settings import RunConfig


def distill(config: RunConfig) -> None:
    """Run `config` to its end, resuming what is there.

    Raises:
        GenrecalError: the config, the data or a rank failed; ranks have printed their own line.
    """
    check_run(config)
    if is_finished(config.output):
        console.print(f"{config.output}: finished before, nothing to do")
        return
    if "RANK" in os.environ:
        _run_or_exit(config)
        return
    ranks = config.engine.ranks
    if not torch.cuda.is_available() and ranks > 1:
        from genrecal.train.comm_operator import check_build

        check_build()
    port = _free_port()
    try:
        processes.spawn(_rank, args=(config, port), nprocs=ranks)
    except processes.ProcessExitedException as error:
        raise RankFailed(error.exit_code) from None


class RankFailed(TrainError):
    """A rank ended early; unless a signal killed it, it has said why on stderr."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(
            f"a rank was killed by signal {-exit_code}",
            fix="Out of memory? Lower micro_batch; the same command resumes",
        )
        self.reported = exit_code > 0
        self.exit_code = exit_code if exit_code > 0 else TrainError.exit_code


def _rank(rank: int, config: RunConfig, port: int) -> None:
    ranks = config.engine.ranks
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    # torch's own distributed code calls functions that torch has deprecated, once a rank and stage.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    _run_or_exit(config)


def _run_or_exit(config: RunConfig) -> None:
    """Run this rank; on an error say why and leave at once.

    Other ranks wait in a collective, and a clean exit would wait for them.
    """
    try:
        run_method(config)
    except GenrecalError as error:
        errors.print(f"error: {error}", soft_wrap=True, markup=False)
        code = error.exit_code
    except OSError as error:
        errors.print(
            f"error: {error.filename or config.output}: {error.strerror}", soft_wrap=True, markup=False
        )
        code = TrainError.exit_code
    except Exception:
        traceback.print_exc()
        code = TrainError.exit_code
    else:
        return
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
