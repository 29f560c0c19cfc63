"""The locked environment does what everything else stands on: ZeRO-3 over two gloo ranks, on the CPU."""

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as processes

from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl


def _two_steps(rank: int, folder: Path, port: int, losses: list[float]) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": "2",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    import deepspeed

    from genrecal.models.processors import load_model

    deepspeed.init_distributed("gloo", verbose=False)
    engine, *_ = deepspeed.initialize(
        model=load_model(folder),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
            "zero_force_ds_cpu_optimizer": False,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        },
    )
    ids = torch.arange(10, 26)[None] + rank
    for _ in range(2):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())


def test_zero_3_trains_on_two_gloo_ranks(tmp_path: Path) -> None:
    shape = Qwen2VLShape(
        hidden=32, layers=1, intermediate=32, vision_hidden=32, vision_layers=1, vocabulary=300
    )
    write_qwen2_vl(tmp_path, ["what is in the picture?"] * 10, shape=shape, seed=0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with processes.Manager() as manager:
        losses = manager.list()
        processes.spawn(_two_steps, args=(tmp_path, port, losses), nprocs=2)
        assert len(losses) == 4
        assert sum(losses[2:]) < sum(losses[:2])
