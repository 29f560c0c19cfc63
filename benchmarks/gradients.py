"""Where the gradient goes when stage 2 begins: at which of the student's features, and which way.

    z_s of every position ──> Recalibrator, teacher's head ──> CE + KL  ──> d/dz_s
                          └─> student's head ────────────────> SFT      ──> d/dz_s

The student answers from the features of its last question position and of its answer. A gradient at the image
tokens or at the question's other words teaches it only by way of what its body makes of them.

    RESULTS/gradients.json    setting/variant -> position -> share of each gradient's squared norm,
                              and the mean cosine of the two gradients at that position
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cell, run_config
from benchmarks.pairs import model_folder
from benchmarks.settings import Plan
from genrecal.core.files import read_json, write_json
from genrecal.data.batch import Batch
from genrecal.data.llava import read_llava
from genrecal.data.order import step_indices
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_processor
from genrecal.train.engine import engine_config
from genrecal.train.feed import padding
from genrecal.train.pairing import comparison_settings
from genrecal.train.reading import ReadingProbe
from genrecal.train.run import check_run, run_method
from genrecal.train.setup import build_stage

NAME = "gradients.json"
BATCHES = 16
POSITIONS = ("image", "question", "last of the question", "answer")
LOSSES = ("distill", "sft")


class FeatureProbe(ReadingProbe):
    """Keeps the student's features of the pass, for each loss with a gradient of their own."""

    def watchable(self, z_BSD: torch.Tensor) -> torch.Tensor:
        self.of_distill_BSD = z_BSD.detach().requires_grad_(True)
        return self.of_distill_BSD

    def watch_sft(self, z_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.of_sft_BSD = z_BSD.detach().requires_grad_(True)
        return self.of_sft_BSD


def measure_rows(plan: Plan, rows: Sequence[str], output: Path, results: Path) -> None:
    """Train stage 1 of each row with seed 0 and measure; rows that are measured are left alone."""
    path = results / NAME
    measured: dict[str, Any] = read_json(path) if path.is_file() else {}
    for row in rows:
        if row not in measured:
            setting, _, variant = row.partition("/")
            measured[row] = _measure(plan, Cell(seed=0, setting=setting, variant=variant), output)
            write_json(path, measured)


def _measure(plan: Plan, cell: Cell, output: Path) -> dict[str, Any]:
    config = run_config(plan, cell, output)
    stages = {
        # An update each: what counts here ends with stage 1.
        name: stage.model_copy(update={"epochs": 1e-6, "warmup_steps": 0}) if place else stage
        for place, (name, stage) in enumerate(config.stages.items())
    }
    folder = output / "runs" / "gradients"
    shutil.rmtree(folder, ignore_errors=True)
    config = config.model_copy(update={"stages": stages, "output": folder})
    check_run(config)
    run_method(config)
    samples = read_llava(Path(config.data.sources[0].path))
    reader = PairReader(
        samples,
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in config.sources],
        max_tokens=config.data.max_tokens,
    )
    stage = config.plan("distill")
    first = next(iter(config.stages))
    models = build_stage(
        config,
        stage,
        student_folder=model_folder(plan, output, plan.settings[cell.setting].student),
        recalibrator_folder=folder / "stages" / f"1-{first}",
        engine_settings=engine_config(config.engine, config.optimizer, config.stage("distill")),
        comparison=comparison_settings(config, stage, reader.student, reader.teachers),
    )
    image_token_id = reader.student.tokenizer.convert_tokens_to_ids(reader.student.image_token)
    pad, objective = padding(reader), models.objective.train()
    squares = {loss: dict.fromkeys(POSITIONS, 0.0) for loss in LOSSES}
    cosines: dict[str, list[float]] = {name: [] for name in POSITIONS}
    for step in range(BATCHES):
        (indices,) = step_indices(
            samples=len(samples),
            seed=config.seed,
            step=step,
            rank=0,
            ranks=1,
            micro_batch=plan.batch,
            accumulation=1,
        )
        batch, probe = pad([reader[index] for index in indices]), FeatureProbe()
        counts = objective.counts(batch)
        scales = dict.fromkeys(("ar", "kl"), 1 / counts["aligned_tokens"])
        total, _ = objective(batch, scales | {"sft": 1 / counts["student_tokens"]}, probe)
        of_distill_BSD, of_sft_BSD = torch.autograd.grad(total, (probe.of_distill_BSD, probe.of_sft_BSD))
        for name, mask_BS in position_masks(batch.student, image_token_id).items():
            for loss, gradient_BSD in zip(LOSSES, (of_distill_BSD, of_sft_BSD), strict=True):
                squares[loss][name] += float(gradient_BSD[mask_BS].square().sum())
            cosine_T = torch.cosine_similarity(of_distill_BSD[mask_BS], of_sft_BSD[mask_BS], dim=-1)
            cosines[name] += cosine_T.tolist()
    shutil.rmtree(folder)
    return {
        name: {loss: squares[loss][name] / sum(squares[loss].values()) for loss in LOSSES}
        | {"cosine": sum(cosines[name]) / len(cosines[name])}
        for name in POSITIONS
    } | {"norms": {loss: (sum(squares[loss].values()) / BATCHES) ** 0.5 for loss in LOSSES}}


def position_masks(batch: Batch, image_token_id: int) -> dict[str, torch.Tensor]:
    """Bool, [B, S] each: every position that is not padding is in one of them."""
    positions_S = torch.arange(batch.input_ids_BS.shape[1])
    lengths_B1 = batch.question_lengths_B[:, None]
    whole_B1 = lengths_B1 + batch.answer_mask_BA.sum(1)[:, None]
    question_BS = positions_S[None] < lengths_B1 - 1
    image_BS = question_BS & (batch.input_ids_BS == image_token_id)
    return {
        "image": image_BS,
        "question": question_BS & ~image_BS,
        "last of the question": positions_S[None] == lengths_B1 - 1,
        "answer": (positions_S[None] >= lengths_B1) & (positions_S[None] < whole_B1),
    }
