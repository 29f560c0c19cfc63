"""What DeepSpeed knows of a trained parameter, as whole tensors, whatever the ZeRO stage and the ranks are.

    parameter -> Place: the flat tensor that AdamW updates here, and which elements of the parameter it holds
    whole()   the pieces of all ranks -> one tensor on the rank that will write it
    put()     any reader of whole tensors -> this rank's pieces; then `refresh` gives them to the model

A parameter's state is its fp32 master weight (the weight itself where DeepSpeed keeps no other), AdamW's two
moments and its step count. ZeRO 1 to 3 lay the parameters end to end in flat tensors, a part for each rank;
without ZeRO every rank holds all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from genrecal.train.engine import device

WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
PARTS = (WEIGHT, *MOMENTS)
# Elements that travel at a time: whole embedding tables beside the model would need gigabytes.
PIECE = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this rank has its elements of a parameter."""

    flat: torch.Tensor | None  # what AdamW updates; None: this rank has no element
    offset: int  # of the first element in `flat`
    start: int  # of the first element in the parameter
    count: int
    replicated: bool  # every rank has all elements


def trained(engine: Any) -> dict[str, nn.Parameter]:
    """The parameters that the engine optimises, by name and in the model's order."""
    return {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}


def shape_of(weight: nn.Parameter) -> tuple[int, ...]:
    """The whole shape, which ZeRO-3 keeps aside."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def place_of(engine: Any, weight: nn.Parameter) -> Place:
    """Where this rank has its elements of `weight`."""
    zero, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if zero == 0:
        return Place(flat=weight, offset=0, start=0, count=weight.numel(), replicated=True)
    if zero == 3:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(weight)]
        start = min(size * dist.get_rank(), weight.ds_numel)  # the last pieces are padded
        return Place(
            flat=optimizer.fp32_partitioned_groups_flat[group],
            offset=offset,
            start=start,
            count=min(size, weight.ds_numel - start),
            replicated=False,
        )
    mapping = weight._hp_mapping
    if mapping is None:
        return Place(flat=None, offset=0, start=0, count=0, replicated=False)
    return Place(
        flat=optimizer.param_groups[mapping.param_group_index]["params"][0],
        offset=mapping.hp_fragment_address.start,
        start=mapping.lp_fragment_address.start,
        count=mapping.lp_fragment_address.numel,
        replicated=False,
    )


def piece(engine: Any, place: Place, part: str) -> torch.Tensor:
    """This rank's elements of one of PARTS, as a view that can be written to; [place.count]."""
    assert place.flat is not None
    source = place.flat if part == WEIGHT else _moments(engine, place.flat)[part]
    return source.detach().view(-1)[place.offset : place.offset + place.count]


def step_count(engine: Any, place: Place) -> int:
    """AdamW's step count of a parameter. Without ZeRO it passes over parameters that got no gradient."""
    if place.replicated and place.flat is not None:
        return int(_moments(engine, place.flat)["step"])
    return max((int(state["step"]) for state in engine.basic_optimizer.state.values() if state), default=0)


def _moments(engine: Any, flat: torch.Tensor) -> dict[str, Any]:
    """AdamW's state of a flat tensor; made here as AdamW makes it, where no step was taken yet."""
    state = engine.basic_optimizer.state[flat]
    if not state:
        on_torch = isinstance(engine.basic_optimizer, torch.optim.Adam)
        state["step"] = torch.tensor(0.0) if on_torch else 0
        for name in MOMENTS:
            state[name] = torch.zeros_like(flat.detach(), memory_format=torch.preserve_format)
    return state


@torch.no_grad()
def whole(engine: Any, weight: nn.Parameter, part: str, *, owner: int) -> torch.Tensor | None:
    """A part of a parameter's state, whole on the CPU of rank `owner`; None elsewhere. All ranks call it."""
    place, shape = place_of(engine, weight), shape_of(weight)
    mine = owner == dist.get_rank()
    if place.replicated or dist.get_world_size() == 1:
        return piece(engine, place, part).to("cpu", copy=True).view(shape) if mine else None
    total = math.prod(shape)
    result = torch.empty(total, dtype=torch.float32) if mine else None
    for first in range(0, total, PIECE):
        buffer = torch.zeros(min(PIECE, total - first), dtype=torch.float32, device=device())
        begin, end = max(first, place.start), min(first + len(buffer), place.start + place.count)
        if begin < end:
            here = piece(engine, place, part)[begin - place.start : end - place.start]
            buffer[begin - first : end - first].copy_(here)
        # As integers: adding the other ranks' zeros leaves every bit, also that of -0.0.
        dist.reduce(buffer.view(torch.int32), dst=owner)
        if result is not None:
            result[first : first + len(buffer)].copy_(buffer)
    return None if result is None else result.view(shape)


Read = Callable[[str, int, int], torch.Tensor]
"""From a part, a first element and a count to these elements of a whole parameter, flat."""


@torch.no_grad()
def put(engine: Any, weight: nn.Parameter, read: Read, *, steps: int, most_steps: int) -> None:
    """Fill this rank's elements of a parameter's state.

    Args:
        engine: DeepSpeed's.
        weight: a trained parameter.
        read: gives the elements.
        steps: AdamW's step count of this parameter.
        most_steps: the largest of all parameters: that of ZeRO's flat tensors, which hold many.
    """
    place = place_of(engine, weight)
    if place.flat is not None and place.count:
        for part in PARTS:
            piece(engine, place, part).copy_(read(part, place.start, place.count))
    if place.flat is not None:
        state = _moments(engine, place.flat)
        count = steps if place.replicated else most_steps
        state["step"] = torch.full_like(state["step"], count) if torch.is_tensor(state["step"]) else count


def before_put(engine: Any) -> None:
    """Let go of whole weights that ZeRO-3 has gathered; all ranks call it."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()


def refresh(engine: Any) -> None:
    """Give the model the master weights as they are now; all ranks call it."""
    zero, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if zero == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    elif zero:
        optimizer.update_lp_params()
