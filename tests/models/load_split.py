"""`python -m tests.models.load_split FOLDER...`: weights and buffers that ZeRO-3 loads otherwise, as JSON.

Run with RANK and its companions in the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from genrecal.models.processors import load_model
from genrecal.train.engine import engine_config, join_ranks, leave, loading_for
from genrecal.train.settings import EngineConfig, OptimizerConfig
from genrecal.train.stages import StageConfig


def differences(plain: Any, split: Any) -> list[str]:
    """Names of parameters and buffers that are not bit for bit the same, dtype included."""
    found = []
    for name, value in split.named_parameters():
        with deepspeed.zero.GatheredParameters([value]):
            if not torch.equal(value.data, plain.get_parameter(name).data):
                found.append(name)
    for name, value in split.named_buffers():
        own = plain.get_buffer(name)
        # A bf16 scalar that only scales bf16 embeddings is the same number there.
        if not torch.equal(value.float(), own.to(value.dtype).float()) or (
            value.ndim and value.dtype != own.dtype
        ):
            found.append(name)
    return found


def main() -> None:
    join_ranks()
    config = engine_config(EngineConfig(zero_stage=3, precision="bf16"), OptimizerConfig(), StageConfig())
    found = {}
    for folder in map(Path, sys.argv[1:]):
        plain = load_model(folder, dtype=torch.bfloat16)
        with loading_for(config):
            split = load_model(folder, dtype=torch.bfloat16)
        assert all(hasattr(value, "ds_id") for value in split.parameters())
        found[folder.name] = differences(plain, split)
    print(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
