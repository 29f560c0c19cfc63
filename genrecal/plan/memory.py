"""Memory of one GPU by part, as DeepSpeed 0.19 and AdamW take it under this project's settings (engine.py).

    held all the time      weights, fp32 master weights, AdamW's two moments
    on top, at the largest of three moments, which follow each other:
        within a micro-step     what lives (trace.py), and the weights that ZeRO-3 has gathered
        when gradients are sent the copies that are reduced and added up
        when AdamW steps        the gradient in one piece, and AdamW's own temporaries

n ranks, P_t trained and P_f frozen parameters, w bytes of a weight (bf16: 2); / n is what ZeRO splits. Sums
of gradients and DeepSpeed's bucket are held all the time, or from a step's first micro-step to its end (*),
or in its backward passes (**):

    ZeRO    weights          master       moments    sums of gradients            bucket
    0       (P_t + P_f) w    -            8 P_t      4 P_t *                      -
    1       (P_t + P_f) w    4 P_t / n    8 P_t / n  bf16: 4 P_t; fp32: 4 P_t *   fp32: 5e8 w **
    2       (P_t + P_f) w    4 P_t / n    8 P_t / n  4 P_t / n *                  5e8 w **
    3       (P_t + P_f) w/n  4 P_t / n    8 P_t / n  4 P_t / n                    5e8 w

With `engine.offload_params` ZeRO-3's weights lie in the host's memory; with `engine.hpz_partition` the ranks
of a node hold all weights once more between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrecal.plan.parameters import Parameters
from genrecal.plan.trace import BACKWARD, Trace
from genrecal.train.settings import EngineConfig

# DeepSpeed's defaults, which engine.py leaves as they are (deepspeed/runtime/zero/config.py), in numbers.
REDUCE_BUCKET = 500_000_000
PREFETCH = 50_000_000
MAX_REUSE_DISTANCE = 1_000_000_000
SUB_GROUP = 1_000_000_000
FP32 = 4
BUCKET = "backward pass with the bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one GPU."""

    held: dict[str, int]
    """By part, all the time from the first step on."""
    moments: dict[str, int]
    """On top, at each of the moments that follow each other."""
    activations: dict[str, int]
    """What lives within a micro-step at its peak, by the part that made it."""

    @property
    def resting(self) -> int:
        return sum(self.held.values())

    @property
    def peak(self) -> int:
        return self.resting + max(self.moments.values())


def memory_of(parameters: Parameters, micro_step: Trace, engine: EngineConfig, *, ranks: int) -> Memory:
    """The memory of one of `ranks` GPUs.

    Args:
        parameters: of the stage.
        micro_step: of the micro-batch that is to fit.
        engine: precision and ZeRO stage.
        ranks: GPUs that ZeRO splits over.
    """
    held, moments = _zero(parameters, engine, ranks)
    gathered = gathered_bytes(parameters, engine, ranks=ranks)
    moments["micro-step"] += micro_step.peak_bytes + gathered
    if BUCKET in moments:
        moments[BUCKET] += sum(micro_step.phases.get(BACKWARD, {}).values())
    return Memory(
        held={part: size for part, size in held.items() if size},
        moments=moments,
        activations=micro_step.peak_parts | ({"gathered weights": gathered} if gathered else {}),
    )


def weight_bytes(engine: EngineConfig) -> int:
    """Of one weight."""
    return 2 if engine.precision == "bf16" else FP32


def gathered_bytes(parameters: Parameters, engine: EngineConfig, *, ranks: int) -> int:
    """Weights of other ranks that ZeRO-3 holds at one time.

    A module's weights stay where they are used again within MAX_REUSE_DISTANCE numbers; the next ones are
    fetched ahead. A model below that stays whole from its first forward pass to the end of the step.
    """
    if engine.zero_stage < 3 or (ranks == 1 and engine.offload_params == "none"):
        return 0
    live = min(parameters.total, MAX_REUSE_DISTANCE + parameters.layer + PREFETCH)
    return live * weight_bytes(engine)


def _zero(parameters: Parameters, engine: EngineConfig, ranks: int) -> tuple[dict[str, int], dict[str, int]]:
    """What is held all the time, and on top at each moment, without the micro-step's own tensors."""
    trained, frozen, weight = parameters.trained_total, parameters.frozen_total, weight_bytes(engine)
    stage, bf16 = engine.zero_stage, engine.precision == "bf16"
    part, in_host = -(-trained // ranks), engine.offload_params == "cpu"
    split = ranks if stage == 3 else 1
    again = (trained + frozen) * weight // engine.hpz_partition if engine.hpz_partition > 1 else 0
    held = {
        "frozen weights": 0 if in_host else frozen * weight // split,
        "trained weights": 0 if in_host else trained * weight // split,
        "weights of the node": again,
        "fp32 master weights": part * FP32 if stage else 0,
        "AdamW moments": 2 * FP32 * (part if stage else trained),
    }
    bucket, sent = REDUCE_BUCKET * weight, min(trained, REDUCE_BUCKET)
    # torch's AdamW makes two tensors as large as the one it updates: roots of the second moment, corrected.
    if stage == 0:
        sums = trained * FP32
        return held, _moments(sums, sums, sums + 2 * parameters.largest_trained * FP32)
    if stage == 1 and bf16:
        # DeepSpeed's BF16_Optimizer: fp32 sums of all gradients on every rank, bf16 ones until the end.
        held["gradients"], kept = trained * FP32, trained * weight
        return held, _moments(kept, kept, kept + 2 * part * FP32)
    if stage < 3:
        sums = (part if stage == 2 else trained) * FP32
        moments = _moments(sums, sums + bucket + sent * weight, sums + 3 * part * FP32)
        return held, {**moments, BUCKET: sums + bucket}
    held |= {"gradients": part * FP32, "reduce bucket": bucket}
    # reduce-scatter: all gradients of the bucket in one piece, this rank's part of them, and it in fp32
    sending = sent * weight + sent // ranks * (weight + (FP32 if bf16 else 0))
    return held, _moments(0, sending, 3 * min(part, SUB_GROUP) * FP32)


def _moments(micro_step: int, sending: int, stepping: int) -> dict[str, int]:
    return {"micro-step": micro_step, "gradients are sent": sending, "AdamW steps": stepping}
