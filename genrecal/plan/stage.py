"""One stage on paper: what it trains, takes, sends, computes and writes.

configs -> models as shapes -> parameters ─┬─> memory of a GPU, at the longest micro-batch
workload -> micro-batches -> traces ───────┤─> FLOPs of a sample, by part
                                           └─> communication, disk
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from genrecal.data.order import step_count
from genrecal.plan.communication import Communication, communication_of
from genrecal.plan.depth import SHALLOW, deep_parameters, deep_trace, may_be_shallow, with_layers
from genrecal.plan.disk import Disk, disk_of
from genrecal.plan.memory import Memory, memory_of
from genrecal.plan.parameters import Parameters, count_parameters
from genrecal.plan.settings import MachineConfig
from genrecal.plan.shapes import stage_as_shapes
from genrecal.plan.trace import Trace, trace
from genrecal.plan.workload import Batches, Workload
from genrecal.train.settings import EngineConfig, RunConfig
from genrecal.train.stages import StageConfig
from genrecal.train.teacher_cache import serves

TEACHER_BODY = ("teacher body", "teacher vision encoder", "teacher projector", "teacher embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """All figures of a stage; bytes and FLOPs unless a name says otherwise."""

    name: str
    samples: int
    steps: int
    global_batch: int
    accumulation: int
    student_tokens: float  # of a sample, the mean
    teacher_tokens: float
    answer_tokens: float
    parameters: Parameters
    memory: Memory
    flops_of_sample: dict[str, float]
    communication: Communication
    disk: Disk
    cached: bool  # the teacher's features come from a cache, its body is not loaded

    @property
    def flops(self) -> float:
        """Of the whole stage."""
        return sum(self.flops_of_sample.values()) * self.steps * self.global_batch

    @property
    def tokens(self) -> float:
        """That the student reads in the whole stage."""
        return self.student_tokens * self.steps * self.global_batch


class StageSketch:
    """A stage whose settings may vary; traces are made once for each micro-batch and way to recompute."""

    def __init__(self, config: RunConfig, name: str, models: Sequence[Any], workload: Workload) -> None:
        self.config, self.name = config, name
        self.settings: StageConfig = config.stage(name)
        reads = models if config.plan(name).reads_teacher else models[:1]
        self._models, self._workload = list(reads), workload
        self._traces: dict[tuple[Any, ...], Trace] = {}
        self._batches: dict[int, Batches] = {}
        self._objectives: dict[tuple[bool, int | None], Any] = {}
        self._layers = [SHALLOW, SHALLOW + 1] if may_be_shallow(self._models) else [None]
        self.cached = serves(config, config.plan(name))
        self.parameters = self._parameters()

    def batches(self, micro_batch: int) -> Batches:
        """Micro-batches of that size."""
        if micro_batch not in self._batches:
            self._batches[micro_batch] = self._workload.batches(self.name, micro_batch)
        return self._batches[micro_batch]

    def memory(self, engine: EngineConfig, *, micro_batch: int, ranks: int) -> Memory:
        """Of one GPU, at the longest micro-batch and in a step that is probed where the stage has such."""
        probed = self.config.plan(self.name).recalibrates
        longest = self._trace("longest", engine, micro_batch, probed=probed)
        return memory_of(self.parameters, longest, engine, ranks=ranks)

    def flops_of_sample(self) -> dict[str, float]:
        """By part, the mean of the typical micro-batches."""
        size, engine = self.settings.micro_batch, self.config.engine
        found: dict[str, float] = {}
        typical = self.batches(size).typical
        for place in range(len(typical)):
            for part, flops in self._trace(place, engine, size, probed=False).flops.items():
                found[part] = found.get(part, 0.0) + flops / len(typical) / size
        return {part: flops for part, flops in found.items() if not (self.cached and part in TEACHER_BODY)}

    def steps(self, ranks: int) -> int:
        """Optimizer steps of the stage."""
        return step_count(
            samples=self._workload.samples[self.name],
            epochs=self.settings.epochs,
            ranks=ranks,
            micro_batch=self.settings.micro_batch,
            accumulation=self.settings.accumulation,
        )

    def plan(self, machine: MachineConfig, *, ranks: int) -> StagePlan:
        """The stage as the config has it."""
        config, settings = self.config, self.settings
        batches = self.batches(settings.micro_batch)
        student, teacher, answer = batches.tokens()
        samples = self._workload.samples[self.name]
        widths = [model.get_text_config().hidden_size for model in self._models[1:]]
        return StagePlan(
            name=self.name,
            samples=samples,
            steps=self.steps(ranks),
            global_batch=settings.micro_batch * settings.accumulation * ranks,
            accumulation=settings.accumulation,
            student_tokens=student,
            teacher_tokens=teacher,
            answer_tokens=answer,
            parameters=self.parameters,
            memory=self.memory(config.engine, micro_batch=settings.micro_batch, ranks=ranks),
            flops_of_sample=self.flops_of_sample(),
            communication=communication_of(self.parameters, config.engine, machine, ranks=ranks),
            disk=disk_of(config, self.parameters, batches, samples=samples, widths=widths),
            cached=self.cached,
        )

    def _objective(self, checkpointing: bool, layers: int | None) -> Any:
        if (checkpointing, layers) not in self._objectives:
            engine = self.config.engine.model_copy(update={"gradient_checkpointing": checkpointing})
            config = self.config.model_copy(update={"engine": engine})
            student, *teachers = (
                self._models if layers is None else [with_layers(model, layers) for model in self._models]
            )
            self._objectives[checkpointing, layers] = stage_as_shapes(config, self.name, student, teachers)
        return self._objectives[checkpointing, layers]

    def _parameters(self) -> Parameters:
        checkpointing = self.config.engine.gradient_checkpointing
        counted = [count_parameters(self._objective(checkpointing, layers)) for layers in self._layers]
        found = deep_parameters(*counted, self._models) if len(counted) > 1 else counted[0]
        if not self.cached:
            return found
        return replace(
            found, frozen={part: count for part, count in found.frozen.items() if part not in TEACHER_BODY}
        )

    def _trace(self, which: Any, engine: EngineConfig, micro_batch: int, *, probed: bool) -> Trace:
        batches = self.batches(micro_batch)
        batch = batches.longest if which == "longest" else batches.typical[which]
        # Equal samples: the longest micro-batch is the typical one.
        key = (id(batch), engine.gradient_checkpointing, engine.zero_stage == 3, probed)
        if key not in self._traces:
            stage = self.config.plan(self.name)
            traces = [
                trace(
                    self._objective(engine.gradient_checkpointing, layers),
                    stage,
                    batch,
                    zero_stage=engine.zero_stage,
                    probed=probed,
                )
                for layers in self._layers
            ]
            self._traces[key] = deep_trace(*traces, self._models) if len(traces) > 1 else traces[0]
        return self._traces[key]
