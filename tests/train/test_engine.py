"""What DeepSpeed leaves outside of this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from genrecal.core.config import parse_config
from genrecal.core.errors import ConfigError
from genrecal.train.engine import engine_config
from genrecal.train.settings import EngineConfig, OptimizerConfig
from genrecal.train.stages import StageConfig
from tests.train.conftest import as_one_rank, environment, free_port

JOIN = """
from genrecal.train.engine import join_ranks, sum_over_ranks
join_ranks()
print(sum_over_ranks({'a': 2.0}))
"""

# When rank 0 is done, its process group still hands the result to a function that takes a second.
BUSY_GROUP = """
import os, time, torch, torch.distributed as dist
from genrecal.train.engine import join_ranks, leave
join_ranks()
first = os.environ["RANK"] == "0"
time.sleep(0 if first else 2)
work = dist.all_reduce(torch.ones(3), async_op=True)
work.get_future().then(lambda _: time.sleep(1 if first else 0))
if not first:
    work.wait()
    time.sleep(2)
leave()
"""


def test_a_rank_leaves_whatever_its_process_group_does() -> None:
    """The interpreter's own end would abort it: a finished run that counts as failed."""
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY_GROUP], env=environment(RANK=rank, LOCAL_RANK=rank, **shared)
        )
        for rank in ("0", "1")
    ]
    assert ranks[0].wait(timeout=120) == 0
    ranks[1].kill()  # its peer is gone
    ranks[1].wait()


def test_no_shared_memory_stays_behind() -> None:
    env = as_one_rank()
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "{'a': 2.0}"
    assert not list(Path("/dev/shm").glob(f"*_{env['MASTER_PORT']}_*"))


def test_where_weights_lie_is_told_to_deepspeed() -> None:
    """DeepSpeed's own config reads what we write; one rank, so micro-batch and accumulation are the batch."""

    def zero(**settings: object) -> object:
        made = engine_config(EngineConfig.model_validate(settings), OptimizerConfig(), StageConfig())
        return DeepSpeedConfig(made).zero_config

    plain = zero()
    assert plain.offload_param is None and plain.zero_hpz_partition_size == 1
    moved = zero(offload_params="cpu", hpz_partition=8)
    assert moved.offload_param.device == "cpu" and moved.zero_hpz_partition_size == 8


@pytest.mark.parametrize("setting", [{"offload_params": "cpu"}, {"hpz_partition": 8}])
def test_where_weights_lie_needs_zero_3(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="offload_params and hpz_partition need zero_stage 3"):
        parse_config({"zero_stage": 2, **setting}, EngineConfig, where="here")
