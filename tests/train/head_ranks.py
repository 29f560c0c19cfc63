"""One rank of two with a frozen and a tied, trained head: `python -m tests.train.head_ranks FILE`.

Every weight is split, also the small ones that ZeRO-3 would keep whole. Rank 1 has no token in the first
batch. Rank 0 writes what every ZeRO stage makes of the batches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import nn

from genrecal.train import engine as engines
from genrecal.train import head as head_module
from genrecal.train.head import Branch, Head
from genrecal.train.head_pair import HeadPair
from genrecal.train.losses import Losses, reverse_divergence
from genrecal.train.settings import EngineConfig, OptimizerConfig
from genrecal.train.stages import StageConfig

WIDTH, ENTRIES = 16, 50
TOKENS = ((5, 0), (7, 3))  # of each batch, by rank
SCALES = {"ar": 0.7, "kl": 1.3, "sft": 0.9, "reverse_kl": 0.6}
TRAINED = ("student.embedding.weight", "student.layer.weight", "student.layer.bias")


class Body(nn.Module):
    """Embeddings, a layer, and a head that is tied to them: what is asked of a student."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(ENTRIES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, ENTRIES, bias=False)
        self.lm_head.weight = self.embedding.weight

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head


class Both(nn.Module):
    """The student, and a teacher's frozen head that its features go through too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = Body(), Body().requires_grad_(False)
        self.own, self.other = Head(self.student), Head(self.teacher)
        self.heads = HeadPair(self.other, self.own)
        self.frozen = (self.teacher.lm_head.weight,)
        self.frozen_numbers: list[int] = []  # of the frozen head on this rank, when z has its gradient

    def forward(self, ids_T: torch.Tensor, labels_T: torch.Tensor, scales: dict[str, float]) -> Losses:
        z_TD = self.student.layer(self.student.embedding(ids_T))
        z_TD.register_hook(lambda _: self.frozen_numbers.append(self.frozen[0].numel()))
        with torch.no_grad():
            teacher_TD = self.teacher.layer(self.teacher.embedding(ids_T))
        main = self.other.losses([Branch(z_TD=z_TD, ce=scales["ar"], kl=scales["kl"])], labels_T, teacher_TD)
        sft = self.own.losses([Branch(z_TD=z_TD, ce=scales["sft"])], labels_T)
        reverse = self.heads(reverse_divergence, teacher_TD, z_TD).sum()
        return Losses(
            total=main.total + sft.total + scales["reverse_kl"] * reverse,
            terms={
                "ar": main.ce_NT.sum(),
                "kl": main.kl_NT.sum(),
                "sft": sft.ce_NT.sum(),
                "reverse_kl": reverse.detach(),
            },
        )


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids_T, labels_T = torch.randint(0, ENTRIES, (2, TOKENS[step][rank]), generator=generator)
    return ids_T, labels_T


def main(path: Path) -> None:
    engines.join_ranks()
    head_module.CHUNK_BYTES = 4 * ENTRIES * 2 * 2  # two tokens of two branches
    found: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        config = engines.engine_config(
            EngineConfig(zero_stage=stage, precision="fp32"),
            OptimizerConfig(clip=1e9),
            StageConfig(accumulation=1, lr_start=1e-15),
        )
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        engine = engines.start(Both(), config)
        found[str(stage)] = [_step(engine, step) for step in range(len(TOKENS))]
        engine.destroy()
    if dist.get_rank() == 0:
        path.write_text(json.dumps(found))
    engines.leave()


def _step(engine: Any, step: int) -> dict[str, Any]:
    total, terms = engine(*batch(step, dist.get_rank()), SCALES)
    engine.backward(total)
    gradients = {name: safe_get_full_grad(engine.module.get_parameter(name)).tolist() for name in TRAINED}
    engine.step()  # of a rate at which nothing moves
    return {
        "gradients": gradients,
        "terms": engines.sum_over_ranks({name: float(value) for name, value in terms.items()}),
        "frozen_numbers": engine.module.frozen_numbers[-1],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
