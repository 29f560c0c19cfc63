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
from tests.train.conftest import as_one_rank

JOIN = """
from genrecal.train.engine import join_ranks, sum_over_ranks
join_ranks()
print(sum_over_ranks({'a': 2.0}))
"""


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
