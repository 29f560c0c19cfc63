"""DeepSpeed, and nothing between it and the loop: start it, gather what it has split, ask who we are."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups
from torch import nn
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from genrecal.core.errors import ConfigError
from genrecal.train.settings import EngineConfig, OptimizerConfig
from genrecal.train.stages import StageConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def join_ranks(timeout_minutes: float = 30.0) -> None:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name.

    Args:
        timeout_minutes: a collective that some rank does not come to fails after so long.
    """
    if not dist.is_initialized():
        with redirect_stdout(io.StringIO()):  # it prints a line for an operator that it has found
            deepspeed.init_distributed(
                "nccl" if torch.cuda.is_available() else "gloo",
                verbose=False,
                timeout=timedelta(minutes=timeout_minutes),
            )
        _unlink_buffers()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def _unlink_buffers() -> None:
    """Take the names of DeepSpeed's shared memory away, once all ranks have it open.

    Its operator for CPUs leaves 66 MiB a rank behind at every launch, and a later one at the same port could
    open what a dead rank left.
    """
    dist.barrier()
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{dist.get_rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def leave() -> NoReturn:
    """End this process, which has been a rank, once its work is done.

    The interpreter's own end is not waited for: a thread of the process group that still hands something back
    to Python then aborts the process (signal 6), and a finished run would count as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The sum of each value over all ranks, in float64."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


def engine_config(engine: EngineConfig, optimizer: OptimizerConfig, stage: StageConfig) -> dict[str, Any]:
    """DeepSpeed's own config for one stage."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # `gather` below writes what we need
        zero["zero_hpz_partition_size"] = engine.hpz_partition
        if engine.offload_params == "cpu":
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": stage.accumulation,
        "gradient_clipping": optimizer.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": engine.precision == "bf16"},
        # Sums of many micro-batches: bf16 would round the later ones away.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": stage.lr_start,
                "betas": list(optimizer.betas),
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
            },
        },
    }


@contextmanager
def loading_for(config: dict[str, Any]) -> Iterator[None]:
    """While this is open, `from_pretrained` splits ZeRO-3 weights over the ranks as it reads them.

    Raises:
        ConfigError: the ranks do not fall into groups of `engine.hpz_partition`.
    """
    size = config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if size > 1 and dist.get_world_size() % size:
        raise ConfigError(
            f"{dist.get_world_size()} ranks do not fall into groups of {size}", where="engine.hpz_partition"
        )
    held = HfDeepSpeedConfig(config)
    try:
        with _one_group_of_neighbours():
            yield
    finally:
        del held
        unset_hf_deepspeed_config()


@contextmanager
def _one_group_of_neighbours() -> Iterator[None]:
    """While this is open, models share hpZ's groups of ranks.

    DeepSpeed 0.19.8 makes them anew for every model that is loaded, and refuses to for the second one.
    """
    create = groups._create_zero_param_parallel_group

    def create_once(size: int) -> None:
        if groups._get_zero_param_intra_parallel_group() is None:
            create(size)

    groups._create_zero_param_parallel_group = create_once
    try:
        yield
    finally:
        groups._create_zero_param_parallel_group = create


def start(module: nn.Module, config: dict[str, Any]) -> Any:
    """The engine around `module`; it optimises the parameters that require a gradient."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trainable, config=config)
    return engine


@contextmanager
def generating(model: nn.Module, config: dict[str, Any]) -> Iterator[Any]:
    """`model` ready to generate: on the device, or under ZeRO-3 with its weights split over the ranks."""
    if config["zero_optimization"]["stage"] < 3:
        yield model.to(device())
        return
    settings = {name: value for name, value in config.items() if name != "optimizer"}
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()
    try:
        yield engine.module
    finally:
        engine.destroy()


@torch.no_grad()
def gather(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Whole copies on the CPU of rank 0, one parameter at a time; other ranks get an empty dict."""
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                whole[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return whole


def frozen_fingerprint(module: nn.Module) -> str:
    """SHA-256 of this rank's part of every frozen parameter, to show that training left it alone."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            part = getattr(parameter, "ds_tensor", parameter).detach().to("cpu").contiguous()
            digest.update(name.encode())
            digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
