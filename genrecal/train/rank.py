"""One rank of a run: this process, told by RANK and its companions which one it is."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable

from genrecal.core.console import console, errors
from genrecal.core.errors import GenrecalError, Requeue, TrainError
from genrecal.train.heartbeat import is_echo, start_heartbeat
from genrecal.train.run import check_run, is_finished, run_method
from genrecal.train.settings import RunConfig

FINISHED = "finished before, nothing to do"


class RankFailed(TrainError):
    """A rank ended early; unless a signal killed it, it has said why on stderr."""

    def __init__(self, rank: int, exit_code: int) -> None:
        """`exit_code` as Python gives it: negative for a signal."""
        if exit_code > 0:
            super().__init__(f"rank {rank} left with exit code {exit_code}")
        else:
            super().__init__(
                f"rank {rank} was killed by signal {-exit_code}",
                fix="Out of memory? Lower micro_batch; the same command resumes",
            )
        self.reported = exit_code > 0
        self.exit_code = exit_code if exit_code > 0 else TrainError.exit_code


def run_rank(config: RunConfig, *, check: bool, job: Callable[[RunConfig], None] = run_method) -> None:
    """Train as this rank, or do another job; on an error say why, tell the other ranks and leave at once.

    They wait in a collective, and a clean exit would wait for them.

    Args:
        config: the run.
        check: whether nobody has checked the run yet.
        job: what all ranks do.
    """
    # torch's own distributed code calls functions that torch has deprecated, once a rank and stage.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    heart = None
    try:
        heart = start_heartbeat(
            dead_after_s=config.engine.dead_after_seconds,
            arrive_within_s=60 * config.engine.timeout_minutes,
        )
        if check:
            check_run(config)
        if check and job is run_method and is_finished(config.output):
            if os.environ["RANK"] == "0":
                console.print(f"{config.output}: {FINISHED}")
        else:
            job(config)
    except Exception as error:
        if heart and is_echo(error):
            heart.wait_for_verdict()  # which names the rank that is gone, and ends this process
        code = error.exit_code if isinstance(error, GenrecalError) else TrainError.exit_code
        line = _line(error, config)
        if heart and isinstance(error, Requeue):
            heart.done()
        elif heart and not heart.fail(line, code):
            heart.linger()
            os._exit(code)  # another rank says the same
        _say(error, line)
        if heart and not isinstance(error, Requeue):
            heart.linger()
        os._exit(code)
    if heart:
        heart.done()


def _line(error: Exception, config: RunConfig) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or config.output}: {error.strerror}"
    return str(error) if isinstance(error, GenrecalError) else f"{type(error).__name__}: {error}"


def _say(error: Exception, line: str) -> None:
    if isinstance(error, GenrecalError) and error.reported:
        return
    if not isinstance(error, GenrecalError | OSError):
        traceback.print_exception(error)  # nobody foresaw it
    else:
        errors.print(f"error: {line}", soft_wrap=True, markup=False)
    sys.stderr.flush()
