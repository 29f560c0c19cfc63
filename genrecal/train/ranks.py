"""The same run on another number of ranks: the global batch stays, the accumulation makes up for it.

What a step reads follows from the size of the global batch alone (genrecal/data/order.py), so no sample is
repeated or skipped, and steps and learning rates are as before.
"""

from __future__ import annotations

import math
import os

from genrecal.core.errors import ConfigError
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS, StageConfig


def expected_ranks(config: RunConfig) -> int:
    """The ranks that this start will have: a launcher's, or those that `distill` starts itself."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else config.engine.ranks


def on_ranks(config: RunConfig, *, started: int, ranks: int) -> RunConfig:
    """`config` with the accumulation of every stage scaled from `started` to `ranks` ranks.

    Args:
        config: the run as it was started.
        started: ranks of the run's first start.
        ranks: ranks now.

    Raises:
        ConfigError: a stage's accumulation would not be whole.
    """
    if ranks == started:
        return config
    names = METHODS[config.method].stages
    stages = dict(config.stages)
    shared = math.gcd(*(started * _stage(config, name).accumulation for name in names))
    if shared % ranks:
        possible = ", ".join(str(count) for count in range(1, shared + 1) if shared % count == 0)
        raise ConfigError(
            f"the run was started on {started} ranks; its batches cannot be dealt to {ranks}",
            where="engine.ranks",
            fix=f"Possible are {possible}",
        )
    for name in names:
        settings = _stage(config, name)
        stages[name] = settings.model_copy(update={"accumulation": settings.accumulation * started // ranks})
    return config.model_copy(update={"stages": stages})


def _stage(config: RunConfig, name: str) -> StageConfig:
    return config.stages.get(name, StageConfig())
