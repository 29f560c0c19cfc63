"""What the ranks send each other: bytes that one GPU receives, by collective (ZeRO paper, section 7).

    ZeRO-3   each micro-step   all-gather of the weights that run, again for the backward pass where they were
                               let go in between; reduce-scatter of the gradients
    ZeRO-2   each micro-step   reduce-scatter of the gradients      each step   all-gather of trained weights
    ZeRO-1   each step         reduction of the summed gradients, all-gather of trained weights
    ZeRO-0   each step         all-reduce of the summed gradients

A gather or a scatter of S bytes over n ranks brings S (n - 1) / n to each of them; an all-reduce is both.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrecal.plan.memory import FP32, MAX_REUSE_DISTANCE, weight_bytes
from genrecal.plan.parameters import Parameters
from genrecal.plan.settings import MachineConfig
from genrecal.train.settings import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """Bytes that one GPU receives, by collective."""

    micro_step: dict[str, float]
    step: dict[str, float]
    """Once for each optimizer step, beside those of its micro-steps."""
    in_node: dict[str, float]
    """Of each micro-step, from the ranks of the same node alone (hpZ)."""
    gb_s: float
    """Of the slowest link on the way."""
    node_gb_s: float

    def seconds_of_step(self, accumulation: int) -> float:
        """As if nothing else was done meanwhile."""
        far = accumulation * sum(self.micro_step.values()) + sum(self.step.values())
        near = accumulation * sum(self.in_node.values())
        return far / (self.gb_s * 1e9) + near / (self.node_gb_s * 1e9)


def communication_of(
    parameters: Parameters, engine: EngineConfig, machine: MachineConfig, *, ranks: int
) -> Communication:
    """The communication of one of `ranks` GPUs."""
    share = (ranks - 1) / ranks
    weight, trained = weight_bytes(engine) * share, parameters.trained_total
    micro_step: dict[str, float] = {}
    step: dict[str, float] = {}
    in_node: dict[str, float] = {}
    if engine.zero_stage == 3:
        # With hpZ a node has all weights; those that trained in the step before are sent to it once.
        frozen = in_node if engine.hpz_partition > 1 else micro_step
        micro_step["all-gather forward"] = trained * weight
        frozen["all-gather forward"] = frozen.get("all-gather forward", 0) + parameters.frozen_total * weight
        if parameters.total > MAX_REUSE_DISTANCE:
            frozen["all-gather backward"] = _read_backwards(parameters) * weight
        micro_step["reduce-scatter"] = trained * weight
    elif engine.zero_stage == 2:
        micro_step["reduce-scatter"] = trained * weight
        step["all-gather"] = trained * weight
    elif engine.zero_stage == 1:
        step["all-reduce"] = 2 * trained * FP32 * share
        step["all-gather"] = trained * weight
    else:
        step["all-reduce"] = 2 * trained * FP32 * share
    figures = machine.figures
    near = ranks <= machine.ranks_per_node
    return Communication(
        micro_step=micro_step if ranks > 1 else {},
        in_node=in_node if ranks > 1 else {},
        step=step if ranks > 1 else {},
        gb_s=figures.node_gb_s if near else figures.network_gb_s,
        node_gb_s=figures.node_gb_s,
    )


def _read_backwards(parameters: Parameters) -> int:
    """Weights of what a backward pass goes through: the student's text side if it trains, the Recalibrator.

    A frozen head's gradients are made in the forward pass (train/head.py).
    """
    student_trains = any(part.startswith("student") for part in parameters.trained)
    read = ["Recalibrator"]
    if student_trains:
        read += ["student body", "student projector", "student LoRA", "student embedding"]
    both = (parameters.trained, parameters.frozen)
    return sum(counts.get(part, 0) for counts in both for part in read)
