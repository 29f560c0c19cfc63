"""The teacher's own answers as labels (sequence-level distillation), written once, before the first stage.

    RUN/labels-journal/rank-0.jsonl …      {"key", "answer"} as they come; a killed run goes on behind them
    RUN/labels/keys.npy, offsets.npy, answers.bin, manifest.json      all of them, sorted; the manifest last

Answers are greedy: the labels are a function of
teacher and data. A sample that the teacher answers with nothing, or with more than `relabel.max_new_tokens`,
keeps its given answer: a student that learned a cut one would learn to stop in the middle (`keep_unended`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from genrecal.core.console import console, progress
from genrecal.core.manifest import NAME
from genrecal.core.types import Sample, Turn
from genrecal.data.mixture import Mixture
from genrecal.data.order import Part
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_model, load_processor
from genrecal.train.engine import DTYPES, device, engine_config, generating, loading_for
from genrecal.train.greedy import greedy_answers
from genrecal.train.label_store import Labels, end_last_line, journal_rows, label_key, write_labels
from genrecal.train.preflight import check
from genrecal.train.preflight_samples import Seat, teacher_name
from genrecal.train.settings import RunConfig
from genrecal.train.stages import StageConfig

FOLDER = "labels"


class Relabelled(Sequence[Sample]):
    """`samples` with the teacher's answers where it has one."""

    def __init__(self, samples: Mixture, labels: Labels) -> None:
        self.samples, self.labels = samples, labels

    @property
    def parts(self) -> tuple[Part, ...]:
        """As of the mixture: which sample comes when does not depend on who answered."""
        return self.samples.parts

    @property
    def lengths(self) -> np.ndarray:
        """As of the mixture, whose own answers they count."""
        return self.samples.lengths

    def token_lengths(self, processors: Sequence[Any]) -> np.ndarray:
        """As of the mixture."""
        return self.samples.token_lengths(processors)

    def place(self, index: int) -> int:
        """As of the mixture."""
        return self.samples.place(index)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        sample = self.samples[index]
        answer = self.labels.answer(sample)
        if not answer:
            return sample
        return replace(sample, turns=(*sample.turns[:-1], Turn(role="assistant", text=answer)))


def teacher_labels(config: RunConfig, samples: Mixture) -> Labels:
    """The labels of the run, generated now where they are not there yet; every rank calls it.

    With several teachers each sample is answered by the first one whose domains hold it; a sample that none
    teaches keeps its given answer.
    """
    folder = config.output / FOLDER
    if not (folder / NAME).is_file():
        journals = config.output / f"{FOLDER}-journal"
        journals.mkdir(parents=True, exist_ok=True)  # rank 0 may not have written to the run folder yet
        for place in range(len(config.sources)):
            _generate(config, samples, place, journals)
        dist.barrier()
        if dist.get_rank() == 0:
            answered = write_labels(folder, journals)
            console.print(
                f"labels: {answered:,} questions answered by the teacher; the others, with empty or unended"
                " answers, keep the given ones"
            )
        dist.barrier()
    return Labels(folder)


def _generate(config: RunConfig, samples: Mixture, place: int, journals: Path) -> None:
    """This rank's share of one teacher's answers, appended to its journal."""
    source, batch = config.sources[place], config.relabel.batch
    done = {row["key"] for journal in journals.glob("*.jsonl") for row in journal_rows(journal)}
    dist.barrier()  # every rank has read the journals before one writes
    rank = dist.get_rank()
    end_last_line(journals / f"rank-{rank}.jsonl")
    mine = [
        index
        for index in range(rank, len(samples), dist.get_world_size())
        if _teacher_of(samples[index], config) == place and label_key(samples[index]) not in done
    ]
    if place == 0:
        _note_untaught(config, samples, journals / f"rank-{rank}.jsonl", done)
    batches = [mine[first : first + batch] for first in range(0, len(mine), batch)]
    most = torch.tensor(len(batches), device=device())
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if not int(most):
        return
    limits = {"max_tiles": config.data.max_tiles, "max_pixels": config.data.max_pixels}
    processor = load_processor(source.path, **limits, code=config.code(source.path))
    engine = config.engine if config.relabel.split else config.engine.model_copy(update={"zero_stage": 1})
    settings = engine_config(engine, config.optimizer, StageConfig(micro_batch=batch, accumulation=1))
    with loading_for(settings):
        model = load_model(source.path, dtype=DTYPES[config.engine.precision], code=config.code(source.path))
    with (
        generating(model, settings) as teacher,
        (journals / f"rank-{rank}.jsonl").open("a", encoding="utf-8") as journal,
        progress(disable=rank != 0) as bar,
    ):
        _check(config, samples, place, teacher, processor)
        task = bar.add_task("labels", total=int(most), note="")
        for number in range(int(most)):
            # Under ZeRO-3 a rank without samples left generates along: weights are gathered from all.
            rows = [samples[index] for index in (batches[number] if number < len(batches) else [0])]
            answers = greedy_answers(
                teacher,
                processor,
                rows,
                config.relabel,
                together=engine.zero_stage == 3,
                skips=config.data.on_bad == "skip",
            )
            if number < len(batches):
                for sample, answer in zip(rows, answers, strict=True):
                    journal.write(json.dumps({"key": label_key(sample), "answer": answer}) + "\n")
                journal.flush()
            bar.update(task, advance=1)


def _check(config: RunConfig, samples: Mixture, place: int, model: Any, processor: Any) -> None:
    """Stop before the first answer if the teacher does not read the samples or their images."""
    reader = PairReader(samples, student=processor, teachers=[], max_tokens=config.data.max_tokens)
    seat = Seat(
        name=teacher_name(place),
        folder=config.sources[place].path,
        model=model,
        processor=processor,
        blank=reader.student_blank,
        domains=config.sources[place].domains,
        teaches=True,
    )
    name = FOLDER if place == 0 else f"{FOLDER}@{place}"
    check([seat], config=config, name=name, reader=reader, mixture=samples)


def _note_untaught(config: RunConfig, samples: Sequence[Sample], journal: Path, done: set[int]) -> None:
    """An empty answer for every sample of this rank that no teacher teaches."""
    with journal.open("a", encoding="utf-8") as stream:
        for index in range(dist.get_rank(), len(samples), dist.get_world_size()):
            sample = samples[index]
            if _teacher_of(sample, config) is None and label_key(sample) not in done:
                stream.write(json.dumps({"key": label_key(sample), "answer": ""}) + "\n")


def _teacher_of(sample: Sample, config: RunConfig) -> int | None:
    serving = (
        place
        for place, source in enumerate(config.sources)
        if source.domains is None or sample.domain in source.domains
    )
    return next(serving, None)
