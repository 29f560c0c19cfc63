"""Does the Recalibrator read the student?

The teacher's answer features already hold the teacher's next token, so the Recalibrator need not look at the
student's question features z_q; then distillation teaches the student nothing. Two measurements say how much
it looks, each for the first answer token and for the later ones:

    gradient norms   ||d(CE + KL) / d z_q||, and ||d SFT / d z_q|| beside it
    KL rise          KL with z_q of another sample - KL with the right z_q, per token

The other sample is one of the micro-batch or, where that holds one sample, the micro-batch before it in the
step. Where the Recalibrator reads the student's answer features too (`answer_input: aligned`), both count
them in. `verdict` says in words what the figures of a stage come to, beside the cosines of the paper's
Figure 7.

Both come from the training step itself. To split the gradient, a probed step runs the Recalibrator on two
views of z_q and takes r of the first tokens from one and of the later tokens from the other: the loss, and so
the step, is the one that an unprobed step takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from genrecal.core.cosines import PairCosines
from genrecal.data.batch import Batch

if TYPE_CHECKING:
    from genrecal.train.recalibrated import StudentReading

    Speak = Callable[[StudentReading], torch.Tensor]

KEYS = (
    "distill_first_sq",
    "distill_later_sq",
    "sft_sq",
    "rise_first",
    "rise_later",
    "first_tokens",
    "later_tokens",
)


class ReadingProbe:
    """Collects the sums of one optimizer step on one rank."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(KEYS, 0.0)
        self._before: dict[
            Hashable, StudentReading
        ] = {}  # of the micro-batch before, where it was one sample

    def watchable(self, z_BSD: torch.Tensor) -> torch.Tensor:
        """z with a gradient also while the student is frozen."""
        return z_BSD if z_BSD.requires_grad else z_BSD.detach().requires_grad_(True)

    def split(self, speak: Speak, student: StudentReading, first_T: torch.Tensor) -> torch.Tensor:
        """r at the targets, [T, D]: at first tokens from one view of the student, at later ones from another.

        Args:
            speak: gives r at every target.
            student: what it reads.
            first_T: bool, which targets are their answer's first token.
        """
        first_TD = speak(student.through(partial(self._watch, key="distill_first_sq")))
        later_TD = speak(student.through(partial(self._watch, key="distill_later_sq")))
        return torch.where(first_T[:, None], first_TD, later_TD)

    def another(self, student: StudentReading, key: Hashable) -> StudentReading | None:
        """Features of other samples in the student's place; None: the step has had no other sample yet.

        Args:
            student: what the Recalibrator reads of this micro-batch.
            key: of this Recalibrator.
        """
        if len(student.lengths_B) > 1:
            return student.of_another_sample()
        before, self._before[key] = self._before.get(key), student.detached()
        return None if before is None else before.as_long_as(student)

    @torch.no_grad()
    def shuffled(self, speak: Speak, other: StudentReading) -> torch.Tensor:
        """r at the targets, [T, D], with the features of other samples."""
        return speak(other)

    def add_rise(self, rise_T: torch.Tensor, first_T: torch.Tensor) -> None:
        """Count the KL that every target gains by `shuffled`."""
        self.sums["rise_first"] += float(rise_T[first_T].sum())
        self.sums["rise_later"] += float(rise_T[~first_T].sum())
        self.sums["first_tokens"] += int(first_T.sum())
        self.sums["later_tokens"] += int((~first_T).sum())

    def watch_sft(self, z_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """z for the student's own head; its gradient is counted at the question positions alone."""
        positions_S = torch.arange(z_BSD.shape[1], device=z_BSD.device)
        question_BS = positions_S[None] < batch.question_lengths_B[:, None]
        return self._watch(z_BSD, key="sft_sq", mask=question_BS)

    def _watch(self, z: torch.Tensor, *, key: str, mask: torch.Tensor | None = None) -> torch.Tensor:
        if not z.requires_grad:
            return z
        view = z.view_as(z)

        def add(gradient: torch.Tensor) -> None:
            kept = gradient if mask is None else gradient[mask]
            self.sums[key] += float(kept.float().square().sum())

        view.register_hook(add)
        return view


def reading_metrics(sums: dict[str, float], *, ranks: int, distils: bool) -> dict[str, float | None]:
    """The figures of a step from the sums over all ranks.

    Args:
        sums: `ReadingProbe.sums`, summed over the ranks.
        ranks: the engine averages gradients over the ranks, so each rank's loss was scaled up by them.
        distils: whether the stage has the distillation loss.

    Returns:
        grad_sft and, where the stage distils, grad_distill, grad_distill_first, grad_distill_later (norms),
        kl_rise_first, kl_rise_later (nats per token; None where the step had no such token, or no sample but
        one).
    """

    def norm(*keys: str) -> float:
        return sum(sums[key] for key in keys) ** 0.5 / ranks

    metrics: dict[str, float | None] = {"grad_sft": norm("sft_sq")}
    if distils:
        metrics["grad_distill"] = norm("distill_first_sq", "distill_later_sq")
        for part in ("first", "later"):
            metrics[f"grad_distill_{part}"] = norm(f"distill_{part}_sq")
            tokens = sums[f"{part}_tokens"]
            metrics[f"kl_rise_{part}"] = sums[f"rise_{part}"] / tokens if tokens else None
    return metrics


# By whether the first answer token is read, and later ones.
READS = {
    (True, True): "every answer token",
    (True, False): "the first answer token alone",
    (False, True): "later answer tokens alone",
    (False, False): "no answer token",
}
# A KL rise below so many nats is noise: a token that another sample's features predict as well reads none.
READS_NATS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the last probes of a stage and its features come to; None is what could not be told."""

    reads: str | None = None  # one of READS
    kl_rise_first: float | None = None  # nats
    kl_rise_later: float | None = None
    # Figure 7: mean cosine of r at the student's question with r at the teacher's, of the same pair and of
    # different ones; then with the mean over the pairs taken off each side.
    cosine_same: float | None = None
    cosine_others: float | None = None
    centred_same: float | None = None
    centred_others: float | None = None

    @property
    def reads_all(self) -> bool:
        return self.reads == READS[True, True]

    def sentence(self) -> str:
        """For the console."""
        if self.reads is None:
            start = (
                "cannot tell whether the Recalibrator reads the student"
                " (no probed step had another sample whose features to put in its place)"
            )
        else:
            rises = ", ".join(
                f"{name} {_signed(value)} nats"
                for name, value in (("first", self.kl_rise_first), ("later", self.kl_rise_later))
            )
            start = (
                f"the Recalibrator reads the student for {self.reads}"
                f" (KL rise with another sample's features: {rises})"
            )
        if self.cosine_same is None:
            return start
        return (
            f"{start}; cosines of its outputs at the two models' questions: {_signed(self.cosine_same)} in a"
            f" pair, {_signed(self.cosine_others)} across pairs; centred {_signed(self.centred_same)} and"
            f" {_signed(self.centred_others)}"
        )


def verdict(readings: Sequence[Mapping[str, float | None]], cosines: PairCosines | None = None) -> Verdict:
    """What a stage with a Recalibrator comes to.

    Args:
        readings: the records of its last probes.
        cosines: of r at the student's and at the teacher's questions; None: no features were taken.
    """

    def mean(key: str) -> float | None:
        values = [value for reading in readings if (value := reading.get(key)) is not None]
        return sum(values) / len(values) if values else None

    first, later = mean("kl_rise_first"), mean("kl_rise_later")
    reads = None
    if first is not None or later is not None:
        # Where answers lack one part (those of one token have no later ones), the other part speaks for both.
        parts = (first if first is not None else later, later if later is not None else first)
        reads_first, reads_later = (value is not None and value > READS_NATS for value in parts)
        reads = READS[reads_first, reads_later]
    # Of a single pair there are no others, and centred nothing is left.
    found = (cosines.diagonal, cosines.others, *cosines.centred) if cosines is not None else ()
    means = found if found and all(map(math.isfinite, found)) else (None,) * 4
    return Verdict(
        reads=reads,
        kl_rise_first=first,
        kl_rise_later=later,
        cosine_same=means[0],
        cosine_others=means[1],
        centred_same=means[2],
        centred_others=means[3],
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
