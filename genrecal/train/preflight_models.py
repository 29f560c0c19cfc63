"""Each model of a stage before the first step: its tokens, its weights, its forward passes.

templates, tokens, pixels      data/belonging.py, data/readback.py
weights all finite             every rank looks at its part
CE with own and with exchanged images          image_effect.py, where nothing is wrong yet
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genrecal.data.belonging import Finding, ModelVocabulary, template_findings
from genrecal.data.pair import name_of
from genrecal.data.readback import pixel_findings, sample_problems, summarize
from genrecal.models.head_only import HeadOnly
from genrecal.train.engine import device
from genrecal.train.image_effect import tell, tell_stored
from genrecal.train.preflight_samples import ReadSample, Seat
from genrecal.train.preflight_verdict import (
    ModelFigures,
    Trial,
    against_student,
    apart,
    figures_of,
    model_findings,
    stored_findings,
)

NAMED = 5  # weights that a finding names


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A model as it was found."""

    name: str  # of its seat
    folder: Path
    figures: ModelFigures | None  # None where no forward pass was made, or one failed
    findings: tuple[Finding, ...]
    failed: bool  # it could not read a sample, so training could not either
    stored: bool  # whether its features came from a cache
    nats: dict[str, float]  # per token, of each sample with its own images
    live_apart: float | None  # nats per token between a cache's features and the live teacher


def examine(
    seats: Sequence[Seat],
    samples: Sequence[ReadSample],
    dtype: torch.dtype,
    *,
    live: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Examined]:
    """Every model's tokens, weights and forward passes; all ranks call it with the same samples.

    Args:
        seats: the student's first, where there is one.
        samples: as `read_samples` gives them.
        dtype: of the models.
        live: `Examined.nats` of an earlier stage by seat, to compare features from a cache with.
    """
    examined: list[Examined] = []
    of_student: dict[int, Trial] = {}
    for place, seat in enumerate(seats):
        mine = {number: one for number, one in enumerate(samples) if seat.reads(one.sample)}
        findings = [*_read_back(seat, place, list(mine.values())), *_weight_findings(seat.model)]
        trials: dict[int, Trial] = {}
        failed = False
        # An id beyond the embeddings would end a GPU's process, so no forward pass is made then.
        if not any(finding.level == "error" for finding in findings):
            try:
                for number, one in mine.items():
                    trials[number] = _trial(seat, place, one, dtype)
            except (IndexError, RuntimeError, ValueError) as error:
                message = " ".join(str(error).split())[:300]
                name = name_of(one.sample)
                findings.append(Finding(level="error", what=f"it cannot read {name} ({message})"))
                trials, failed = {}, True
        figures, told = None, list(trials.values())
        nats = {name_of(trial.sample): trial.own.nats / trial.own.tokens for trial in told}
        if told:
            figures = figures_of(told, head_rows=vocabulary_of(seat.model).head_rows)
            findings += model_findings(figures, teaches=seat.teaches)
            if seat.teaches and of_student:
                findings += against_student(told, [of_student[number] for number in trials])
        distance = apart(nats, (live or {}).get(seat.name, {})) if seat.stored is not None else None
        findings += stored_findings(distance)
        if not seat.teaches:
            of_student = trials
        examined.append(
            Examined(
                name=seat.name,
                folder=seat.folder,
                figures=figures,
                findings=tuple(findings),
                failed=failed,
                stored=seat.stored is not None,
                nats=nats,
                live_apart=distance,
            )
        )
    return examined


def _read_back(seat: Seat, place: int, samples: Sequence[ReadSample]) -> Iterator[Finding]:
    vocabulary = vocabulary_of(seat.model)
    yield from template_findings(seat.processor, vocabulary)
    problems = []
    for one in samples:
        row = one.own[place]
        problems += [
            (one.sample, problem) for problem in sample_problems(one.sample, row, seat.processor, vocabulary)
        ]
    yield from summarize(problems, samples=len(samples))
    for one in samples:
        if not torch.equal(one.fed[place].answer_ids, one.own[place].answer_ids):
            yield Finding(
                level="error",
                what=f"{name_of(one.sample)} reaches it with other answer tokens than its tokenizer gives",
            )
            break
    yield from pixel_findings([one.own[place] for one in samples])
    if not samples:
        yield Finding(
            level="warning",
            what="none of the samples is of a domain that it teaches, so it was not run",
            fix="Raise preflight.samples",
        )


def _trial(seat: Seat, place: int, one: ReadSample, dtype: torch.dtype) -> Trial:
    if seat.stored is not None:
        row = one.fed[place]
        assert row.features is not None
        z_ALD = row.features.answer.to(device()).unpacked(dtype)
        z_AD = z_ALD[:, list(seat.stored.depths).index(1.0)]
        own = tell_stored(seat.model, z_AD, row.answer_ids.to(device()))
        return Trial(sample=one.sample, own=own, exchanged=None)
    rows = [one.own[place], *([one.exchanged[place]] if one.exchanged else [])]
    own, *others = tell(
        seat.model,
        rows,
        padding=seat.processor.tokenizer.pad_token_id,
        blank=seat.blank,
        device=device(),
        dtype=dtype,
    )
    return Trial(sample=one.sample, own=own, exchanged=others[0] if others else None)


def vocabulary_of(model: Any) -> ModelVocabulary:
    """What a model's weights and configs say of token ids; its weights may be split over the ranks."""
    head_rows = _rows(model.get_output_embeddings())
    if isinstance(model, HeadOnly):  # nothing is embedded, and nothing is generated
        embedding_rows, ends = head_rows, None
    else:
        embedding_rows = _rows(model.get_input_embeddings())
        ends = model.generation_config.eos_token_id
    return ModelVocabulary(
        embedding_rows=embedding_rows,
        head_rows=head_rows,
        image_token_id=getattr(model.config, "image_token_id", None),
        end_ids=tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,),
    )


def _rows(layer: Any) -> int:
    return int(getattr(layer.weight, "ds_shape", layer.weight.shape)[0])


@torch.no_grad()
def bad_weights(model: Any) -> list[str]:
    """Names of the parameters with an entry that is not finite; under ZeRO-3 in this rank's part of them."""
    names, finite = [], []
    for name, parameter in model.named_parameters():
        part = getattr(parameter, "ds_tensor", parameter)
        if part.numel():
            names.append(name)
            finite.append(part.isfinite().all())
    good = torch.stack(finite).tolist() if finite else []
    return [name for name, is_good in zip(names, good, strict=True) if not is_good]


def _weight_findings(model: Any) -> Iterator[Finding]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, bad_weights(model))
    names = sorted({name for one in everyone for name in one})
    if names:
        yield Finding(
            level="error",
            what=f"{len(names)} of its weights hold NaN or infinity: {', '.join(names[:NAMED])}",
            fix="Is the checkpoint damaged, or was it saved by a run that diverged?",
        )
