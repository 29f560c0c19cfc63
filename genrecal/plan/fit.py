"""What does not fit a GPU, and the nearest setting that does.

Settings are tried in this order, and the first to fit is taken: fewer samples in a micro-batch (and more of
these in a step, which stays the same), activations recomputed, a higher ZeRO stage, more GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from genrecal.plan.settings import MachineConfig
from genrecal.plan.stage import StageSketch
from genrecal.train.settings import EngineConfig

MOST_RANKS = 64  # times as many as planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a stage fits, and if not, what would."""

    limit: int
    """Bytes that a stage may take."""
    peak: int
    change: dict[str, int | bool] | None
    """None: it fits. Otherwise the settings to change; empty: nothing that was tried fits."""
    peak_then: int = 0

    @property
    def fits(self) -> bool:
        return self.change is None

    def sentence(self) -> str:
        """For the console."""
        if self.change is None:
            return f"fits, with {1 - self.peak / self.limit:.0%} to spare"
        if not self.change:
            return "does not fit, and no micro-batch, ZeRO stage or number of GPUs that was tried helps"
        settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in self.change.items())
        return f"does not fit. Nearest that does: {settings} ({self.peak_then / 2**30:.1f} GiB)"


def fit_of(sketch: StageSketch, machine: MachineConfig, *, ranks: int) -> Fit:
    """Does the stage fit a GPU of `machine`?"""
    limit = int(machine.figures.memory_gib * 2**30 * (1 - machine.spare))
    engine, settings = sketch.config.engine, sketch.settings
    peak = sketch.memory(engine, micro_batch=settings.micro_batch, ranks=ranks).peak
    if peak <= limit:
        return Fit(limit=limit, peak=peak, change=None)
    for tried, micro_batch, more in _settings(engine, settings.micro_batch, ranks):
        then = sketch.memory(tried, micro_batch=micro_batch, ranks=more).peak
        if then <= limit:
            planned = {
                "micro_batch": (settings.micro_batch, micro_batch),
                "accumulation": (
                    settings.accumulation,
                    max(1, settings.accumulation * settings.micro_batch * ranks // (micro_batch * more)),
                ),
                "gradient_checkpointing": (engine.gradient_checkpointing, tried.gradient_checkpointing),
                "zero_stage": (engine.zero_stage, tried.zero_stage),
                "ranks": (ranks, more),
            }
            change = {name: new for name, (old, new) in planned.items() if new != old}
            return Fit(limit=limit, peak=peak, change=change, peak_then=then)
    return Fit(limit=limit, peak=peak, change={})


def _settings(engine: EngineConfig, micro_batch: int, ranks: int) -> Iterator[tuple[EngineConfig, int, int]]:
    sizes = [micro_batch]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    times = [2**power for power in range(MOST_RANKS.bit_length())]
    ways = sorted({engine.gradient_checkpointing, True})
    stages = range(engine.zero_stage, 4)
    # The last of these changes first.
    for more, stage, recompute, size in product(times, stages, ways, sizes):
        changed = engine.model_copy(update={"zero_stage": stage, "gradient_checkpointing": recompute})
        yield changed, size, ranks * more
