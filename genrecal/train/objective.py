"""The models under one engine; `forward` gives the loss terms of a batch, whatever the method.

    student features ──┬─> recalibrated.py   GenRecal: Algorithms 1 to 3, through the teacher's head
    teacher features ──┤─> comparison.py     the other methods, through the student's own head
                       └─> sft               CE of the student's own head

Terms are sums; `counts` says what the loop divides them by. It does so in `scales`, before the forward pass:
gradients are made where the logits are (head.py), and so is the total of what is trained. With several
teachers, the terms of the second one end in @1, and so on. Shapes: B samples, S positions, T answer tokens of
the batch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from genrecal.data.batch import PairedBatch
from genrecal.models.vlm import layer_features, predicting_features
from genrecal.train.comparison import (
    Comparison,
    comparison_terms,
    image_mask,
    paired_mask,
    position_mask,
)
from genrecal.train.gold import common_end_count
from genrecal.train.head import Branch, Head
from genrecal.train.head_pair import HeadPair
from genrecal.train.losses import Losses
from genrecal.train.reading import ReadingProbe
from genrecal.train.recalibrated import Source, target_mask

Domains = tuple[str, ...] | None


class Objective(nn.Module):
    """The student, and each teacher with its Recalibrators; no teachers where the stage reads none."""

    def __init__(
        self,
        *,
        student: Any,
        sources: Sequence[Source] = (),
        losses: tuple[str, ...],
        routes: Sequence[Domains] = (),
        comparison: Comparison | None = None,
    ) -> None:
        """Put them under one module.

        Args:
            student: the VLM that learns.
            sources: teachers with their Recalibrators.
            losses: keys of `stages.py::LOSSES`.
            routes: for each source the domains that it teaches; None: all. Default: all for each.
            comparison: settings of the comparison methods.
        """
        super().__init__()
        self.student, self.sources = student, nn.ModuleList(sources)
        self.head = Head(student)
        compares = bool(sources) and "align" not in losses
        self.heads = HeadPair(sources[0].head, self.head) if compares else None
        self.losses, self.comparison = losses, comparison or Comparison()
        self.routes = tuple(routes) or (None,) * len(sources)

    def train(self, mode: bool = True) -> Objective:
        """As of any module; a frozen teacher stays in evaluation mode."""
        super().train(mode)
        for source in self.sources:
            source.teacher.eval()
        return self

    def forward(
        self,
        batch: PairedBatch,
        scales: Mapping[str, float] = MappingProxyType({}),
        probe: ReadingProbe | None = None,
    ) -> Losses:
        """Loss terms as sums over the batch, and the total of those that are trained.

        Args:
            batch: on the engine's device.
            scales: what a term's sum is multiplied by in the total; terms that are not in it are followed.
            probe: when given, it measures whether the Recalibrator reads the student.

        Returns:
            The terms of `losses`, and two that are followed in every stage that can (paper, Figure 9): `sft`,
            and with a Recalibrator `teacher_ar`, the teacher's own CE.
        """
        terms: dict[str, torch.Tensor] = {}
        totals: list[torch.Tensor] = []
        recalibrates = "align" in self.losses
        depths = self.sources[0].config.layers if recalibrates else (0.0,)
        *features, z_s_BSD = layer_features(self.student, batch.student, (*depths, 1.0))
        if probe is not None:
            z_s_BSD = probe.watchable(z_s_BSD)
            # The probe watches the features that are recalibrated; the last ones are those of the head.
            features = [
                z_s_BSD if depth == 1.0 else probe.watchable(part)
                for depth, part in zip(depths, features, strict=True)
            ]
        for place, source in enumerate(self.sources):
            if recalibrates:
                found = source.recalibrated_losses(
                    features,
                    batch.student,
                    batch.teachers[place],
                    routed(batch.domains, self.routes[place]),
                    regularize="regularize" in self.losses,
                    scales={
                        term_of(name)[0]: scale for name, scale in scales.items() if term_of(name)[1] == place
                    },
                    probe=probe,
                )
                totals.append(found.total)
                terms |= {term_name(name, place): value for name, value in found.terms.items()}
        if self.heads is not None:
            compared = comparison_terms(
                self.losses,
                self.comparison,
                heads=self.heads,
                teacher=self.sources[0].teacher,
                embedded_s_BSD=features[0],
                z_s_BSD=z_s_BSD,
                batch=batch,
            )
            totals += [scales[name] * value for name, value in compared.items() if name in scales]
            terms |= {name: value.detach() for name, value in compared.items()}
        if probe is not None:
            z_s_BSD = probe.watch_sft(z_s_BSD, batch.student)
        sft = self.head.losses(
            [
                Branch(
                    z_TD=predicting_features(z_s_BSD, batch.student)[batch.student.answer_mask_BA],
                    ce=scales.get("sft"),
                )
            ],
            batch.student.answer_ids_BA[batch.student.answer_mask_BA],
        )
        terms["sft"] = sft.ce_NT.sum()
        return Losses(total=torch.stack([*totals, sft.total]).sum(), terms=terms)

    def counts(self, batch: PairedBatch) -> dict[str, float]:
        """What the sums of `forward` are divided by, by `Loss.per`; of one batch on one rank."""
        student = batch.student
        counts = {"student_tokens": float(student.answer_tokens)}
        if "align" in self.losses:
            for place, (source, teacher) in enumerate(zip(self.sources, batch.teachers, strict=True)):
                targets = target_mask(
                    teacher, routed(batch.domains, self.routes[place]), first_token=source.first_token
                )
                counts[term_name("aligned_tokens", place)] = float(targets.sum())
        elif batch.teachers:
            teacher, images = batch.teachers[0], image_mask(student, self.comparison.image_token_id)
            whole = student.answer_mask_BA if self.comparison.answer_only else position_mask(student)
            counts |= {
                "positions": float(whole.sum()),
                "image_positions": float(images.sum()),
                "samples_with_images": float(images.any(1).sum()),
                "paired_tokens": float(paired_mask(student, teacher).sum()),
                "common_ends": float(common_end_count(student, teacher)),
            }
        return counts


def term_name(name: str, place: int) -> str:
    """The name of a term of the teacher at `place`; the only or first teacher's have no mark."""
    return name if place == 0 else f"{name}@{place}"


def term_of(name: str) -> tuple[str, int]:
    """The other way: a term's plain name and its teacher's place."""
    plain, _, place = name.partition("@")
    return plain, int(place or 0)


def routed(domains: Sequence[str], route: Domains) -> torch.Tensor:
    """Bool, [B]: the samples whose domain is on `route`."""
    return torch.tensor([route is None or domain in route for domain in domains])
