"""One micro-step of a stage without a number: the code that trains, on shapes.

    the stage's models as shapes ─┐
    a micro-batch's ids, masks ───┴─> Objective.forward ─> backward, every operation recorded (recorder.py)

Nothing here knows a family or a loss. FLOPs are those that torch executes: with recomputation, the vision
encoders and attention's quadratic term, which is counted whole where a causal mask hides half of it. Bytes
are those of one GPU; what ZeRO adds is not in them (memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import nn

from genrecal.data.batch import PairedBatch
from genrecal.models.families import family_of
from genrecal.plan.recorder import ATTENTION, Operation, Recorder
from genrecal.train.objective import Objective, term_name
from genrecal.train.reading import ReadingProbe
from genrecal.train.stages import Stage

# What is neither in a VLM nor in a Recalibrator: heads on chunks of tokens, softmax, CE and divergences.
LOSSES = "losses"
BACKWARD = "backward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one micro-step of one rank takes."""

    flops: dict[str, float]
    """By the part that runs; `backward` is everything behind the loss, with what is computed again."""
    phases: dict[str, dict[str, int]]
    """Bytes that live at most while a part runs, by the part that made them; no weights, no gradients."""
    operations: list[Operation] = field(repr=False)
    """In order; empty where a deep model was put together of shallow ones (depth.py)."""

    @property
    def peak_parts(self) -> dict[str, int]:
        """What lives at the largest moment of all, by the part that made it."""
        return max(self.phases.values(), key=lambda parts: sum(parts.values()))

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak_parts.values())


def trace(
    objective: Objective, stage: Stage, batch: PairedBatch, *, zero_stage: int, probed: bool = False
) -> Trace:
    """Run one micro-step.

    Args:
        objective: the stage's models as shapes (shapes.py).
        stage: whose terms are trained on.
        batch: real ids and masks; pixels of the right shape.
        zero_stage: of the engine.
        probed: as in the steps that also measure whether the Recalibrator reads the student.
    """
    objective.train()
    recorder = Recorder(LOSSES)
    names = [term_name(term, place) for term in stage.terms for place in range(len(objective.sources) or 1)]
    scales = dict.fromkeys([*names, *(["sft"] if probed else [])], 1.0)
    hooks = [*_parts(objective, recorder), *_taken_gradients(objective)]
    try:
        with recorder, as_trained(zero_stage):
            total = objective(batch, scales, ReadingProbe() if probed else None).total
            with recorder.part(BACKWARD):
                total.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(
        flops={part: float(flops) for part, flops in recorder.flops.items() if flops},
        phases=recorder.phases,
        operations=recorder.operations,
    )


@contextmanager
def as_trained(zero_stage: int) -> Iterator[None]:
    """Within, two functions are the ones that the engine runs, whatever torch would choose for shapes.

    Attention is the fused kernel. Under ZeRO-3 DeepSpeed puts a linear layer of its own in torch's place, and
    so does this: it keeps its input for the backward pass even where the weight is frozen.
    """
    place: Any = nn.functional
    before = place.scaled_dot_product_attention, place.linear
    place.scaled_dot_product_attention = _attention
    place.linear = zero3_linear_wrap if zero_stage == 3 else torch._C._nn.linear
    try:
        yield
    finally:
        place.scaled_dot_product_attention, place.linear = before


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # torch makes numbers of it for the fused kernels.
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    return ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _parts(objective: Objective, recorder: Recorder) -> Iterator[Any]:
    """Hooks that book what a model's segments do under their names."""
    named: list[tuple[str, nn.Module]] = []
    models = [("student", objective.student), *(("teacher", source.teacher) for source in objective.sources)]
    for side, model in models:
        family = family_of(model.config)
        # A model below LoRA is the same model: PEFT changes its layers in place.
        named.append((f"{side} body", model.get_submodule("model")))
        named.append((f"{side} vision encoder", model.get_submodule(family.vision_encoder.rstrip("."))))
        named.append((f"{side} head", model.get_output_embeddings()))
    for source in objective.sources:
        named += [("Recalibrator", recalibrator) for recalibrator in source.recalibrators]
    for name, module in named:
        yield module.register_forward_pre_hook(recorder.enter(name))
        yield module.register_forward_hook(recorder.leave)


def _taken_gradients(objective: Objective) -> Iterator[Any]:
    """DeepSpeed takes a gradient as soon as it is there; memory.py counts where it puts it."""

    def take(parameter: nn.Parameter) -> None:
        parameter.grad = None

    for parameter in objective.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(take)
