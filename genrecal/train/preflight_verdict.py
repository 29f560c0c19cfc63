"""What the figures of a model's forward passes say about it: errors, warnings, or nothing.

    CE of the labels, with own and exchanged images     is it finite, better than chance, changed by pixels?
    teacher against student on the same samples         do images tell the one less than the other?

How the bounds were chosen, and how often they are wrong: docs/cluster.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrecal.core.types import Sample
from genrecal.data.belonging import Finding
from genrecal.train.image_effect import Comparison, Told, compare

# Of the nats of a uniform guess: no teacher that reads the samples comes near it.
CHANCE = 0.75
# A tendency is shown at this chance of seeing it where there is none; the student, which serves as the proof
# against its teacher, has to show more.
SHOWN, SURELY_SHOWN = 0.05, 0.01
# Nats per token by which stored features may tell an answer otherwise, on average: rounding to bf16 or int8
# comes to hundredths.
STORED_APART = 0.1
# With fewer differences a signed-rank test cannot reach SURELY_SHOWN.
ENOUGH = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One sample as one model told its answer."""

    sample: Sample
    own: Told
    exchanged: Told | None  # with another sample's images; None for text alone

    @property
    def image_nats(self) -> float:
        """What the own images save, in nats for each character of the answer: alike for all vocabularies."""
        assert self.exchanged is not None
        return (self.exchanged.nats - self.own.nats) / self.characters

    @property
    def characters(self) -> int:
        return len(self.sample.answer) + 1  # and the end of the turn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """A model on the samples of the check; nats are those of an answer token."""

    samples: int
    tokens: int
    nats: float
    greedy_nats: float  # of the tokens that the model would have written itself
    agreement: float  # share of the answer tokens that are the model's own first choice
    uniform_nats: float  # of a guess among all entries of the vocabulary
    samples_with_images: int
    image_sample_nats: float | None  # of the samples with images
    exchanged_nats: float | None  # of the same with another sample's images
    images: Comparison | None  # exchanged - own, a sample's mean


def figures_of(trials: Sequence[Trial], *, head_rows: int) -> ModelFigures:
    """Sum up a model's trials; `head_rows` are the entries of its vocabulary."""
    own = [trial.own for trial in trials]
    pairs = [(trial.own, trial.exchanged) for trial in trials if trial.exchanged is not None]
    tokens = sum(told.tokens for told in own)
    image_tokens = sum(told.tokens for told, _ in pairs)
    differences = [(other.nats - told.nats) / told.tokens for told, other in pairs]
    return ModelFigures(
        samples=len(own),
        tokens=tokens,
        nats=sum(told.nats for told in own) / tokens,
        greedy_nats=sum(told.greedy_nats for told in own) / tokens,
        agreement=sum(told.agreed for told in own) / tokens,
        uniform_nats=math.log(head_rows),
        samples_with_images=len(pairs),
        image_sample_nats=sum(told.nats for told, _ in pairs) / image_tokens if pairs else None,
        exchanged_nats=sum(other.nats for _, other in pairs) / image_tokens if pairs else None,
        images=compare(differences) if pairs else None,
    )


def apart(stored: Mapping[str, float], live: Mapping[str, float]) -> float | None:
    """Mean distance of a teacher's features on disk from the live one, in nats per token of the same samples.

    Both by the samples' names; None where they share none.
    """
    shared = stored.keys() & live.keys()
    return sum(abs(stored[name] - live[name]) for name in shared) / len(shared) if shared else None


def stored_findings(distance: float | None) -> list[Finding]:
    """What `apart` says."""
    if distance is None or distance <= STORED_APART:
        return []
    return [
        Finding(
            level="error",
            what=f"its features on disk tell the answers {distance:.3f} nats per token otherwise than the"
            " live teacher did",
            fix="The cache is not this teacher's on this data: delete its folder",
        )
    ]


def model_findings(figures: ModelFigures, *, teaches: bool) -> list[Finding]:
    """What a model's own figures say; only a teacher has to be good."""
    if not math.isfinite(figures.nats):
        return [Finding(level="error", what=f"its CE of the given answers is {figures.nats}")]
    findings = []
    if teaches and figures.nats >= CHANCE * figures.uniform_nats:
        findings.append(
            Finding(
                level="error",
                what=f"its CE of the given answers is {figures.nats:.2f} nats per token, a uniform guess's is"
                f" {figures.uniform_nats:.2f}: it does not read these samples",
                fix="Are weights, tokenizer and chat template from one checkpoint?",
            )
        )
    images = figures.images
    if images is not None and not math.isfinite(images.mean):
        findings.append(Finding(level="error", what="its CE with other images is not finite"))
    elif images is not None and images.unchanged == images.samples:
        findings.append(
            Finding(
                level="error" if teaches else "warning",
                what=f"exchanging the images of {images.samples} samples changes nothing in its answers: no"
                " pixel reaches it",
                fix="Are its vision encoder and projector loaded?",
            )
        )
    elif teaches and images is not None and not images.is_shown(SHOWN):
        findings.append(_unshown(images))
    return findings


def _unshown(images: Comparison) -> Finding:
    few = images.samples < ENOUGH
    return Finding(
        level="warning",
        what=f"another sample's images serve it as well as the own ones: those save it {images.mean:.3f} nats"
        f" per token, in {images.above} of {images.samples} samples",
        fix="Too few samples have images to tell: raise preflight.samples"
        if few
        else "Do these answers need their images? If so, it does not see them",
    )


def against_student(teacher: Sequence[Trial], student: Sequence[Trial]) -> list[Finding]:
    """A teacher against the student on the same samples, in this order in both."""
    findings = []
    pairs = list(zip(teacher, student, strict=True))
    worse = compare([(one.own.nats - other.own.nats) / one.characters for one, other in pairs])
    if worse.is_shown(SHOWN):
        findings.append(
            Finding(
                level="warning",
                what=f"it tells the given answers worse than the student, in {worse.above} of {worse.samples}"
                f" samples, by {worse.mean:.3f} nats per character",
                fix="A student that was trained on these answers may be better; no other should",
            )
        )
    pairs = [(one, other) for one, other in pairs if one.exchanged is not None]
    own, others = (
        compare([one.image_nats for one, _ in pairs]),
        compare([other.image_nats for _, other in pairs]),
    )
    less = compare([other.image_nats - one.image_nats for one, other in pairs])
    if others.is_shown(SURELY_SHOWN) and less.is_shown(SHOWN) and not own.is_shown(SHOWN):
        findings.append(
            Finding(
                level="error",
                what=f"the images tell the student more than the teacher: the own ones rather than another"
                f" sample's save the student nats in {others.above} of {others.samples} samples, and the"
                f" teacher in {own.above}",
                fix="Are the teacher's vision encoder and projector those that it was trained with?",
            )
        )
    return findings
