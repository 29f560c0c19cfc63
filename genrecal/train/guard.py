"""A step whose loss or gradient is not finite is taken by no rank.

    loss of a micro-batch not finite -> its gradient is made NaN -> so is the norm over all ranks
    gradient norm not finite         -> DeepSpeed leaves weights and moments as they are, on every rank

So all ranks agree without a collective of their own. What the run does then is a policy with a budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from genrecal.core.console import console
from genrecal.core.errors import TrainError
from genrecal.data.batch import PairedBatch
from genrecal.train.settings import EngineConfig

NAMED = 8  # samples that an error or a line of metrics names


def poisoned(total: torch.Tensor) -> torch.Tensor:
    """`total`, or NaN with a NaN gradient where it is not finite: an infinite loss can have a finite one."""
    return total if bool(total.isfinite()) else total * math.nan


def take_step(engine: Any) -> bool:
    """DeepSpeed's step behind a micro-batch; whether the weights moved, as they do behind the last one alone.

    ZeRO 1 to 3 check the gradient norm themselves; without ZeRO nothing does, but every rank holds the same
    reduced gradients, so all of them find the same.
    """
    if engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary():
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            engine.set_gradient_accumulation_boundary(False)  # counted, but the optimizer is not asked
            engine.step()
            engine.set_gradient_accumulation_boundary(None)
            engine.zero_grad()
            return False
    engine.step()
    return bool(engine.was_step_applied())


class Guard:
    """The policy for steps that were not taken, and how many there were in this stage."""

    def __init__(self, settings: EngineConfig, *, skipped: int = 0) -> None:
        """Every rank has one, with the same arguments.

        Args:
            settings: whether to stop, or to go on without the step, and how often.
            skipped: steps that were skipped before a resume.
        """
        self.settings, self.skipped = settings, skipped

    def refuse(
        self, step: int, batches: Sequence[PairedBatch], bad: Sequence[int], *, where: str
    ) -> list[str]:
        """What a step that was not taken comes to; every rank calls it.

        Args:
            step: which one.
            batches: the micro-batches of this rank.
            bad: places of those whose loss was not finite; none where only the gradient is not.
            where: for the error.

        Returns:
            The samples that are to blame, over all ranks: those with such a loss, or else all of the step.

        Raises:
            TrainError: the policy is to stop, or the budget is spent; on every rank alike.
        """
        mine = (
            [name for place in bad for name in batches[place].ids],
            [n for one in batches for n in one.ids],
        )
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        blamed = [name for losses, _ in gathered for name in losses]
        kind = "loss" if blamed else "gradient"
        names = blamed or [name for _, every in gathered for name in every]
        self.skipped += 1
        said = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        skips, most = self.settings.nonfinite == "skip", self.settings.max_skipped
        if not skips or self.skipped > most:
            raise TrainError(
                f"the {kind} is not finite, so no rank took the step; its samples: {said}",
                where=f"{where} step {step}",
                fix=f"engine.max_skipped is {most}; the same command with a higher one goes on"
                if skips
                else "The same command with engine.nonfinite: skip goes on without such steps",
            )
        if dist.get_rank() == 0:
            console.print(
                f"warning: {where} step {step}: the {kind} is not finite, step skipped"
                f" ({self.skipped} of at most {most}); its samples: {said}",
                style="yellow",
            )
        return names[:NAMED]
