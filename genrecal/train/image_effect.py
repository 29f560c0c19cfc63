"""How well a VLM tells the given answers, with the sample's own images and with those of another sample.

    own images        --> nats of every answer token
    another sample's  --> the same      the difference: what the images tell the model about the answer

Another sample's image is scaled to the own one's size, so that all token counts stay. It is a better
"without" than a blank one: to a model that makes no use of its pixels the two are equally good, so a sample's
difference is as often below zero as above. Whether it is, Wilcoxon's signed-rank test says. It asks nothing
of the differences but that, and they have long tails: a wrong letter may cost ten nats.

Shapes: B rows, A answer tokens of one sample, D width, V entries of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import wilcoxon

from genrecal.core.types import Sample
from genrecal.data.batch import collate_one
from genrecal.data.inputs import Prompt
from genrecal.data.pair import TokenizedSample
from genrecal.models.vlm import body_features, predicting_features

# Answer tokens whose logits are in memory at a time: 0.3 GB in float32 for 150,000 entries.
CHUNK = 512
GREY = (128, 128, 128)
# Nats per token: what the order of sums in two rows of a batch may come to, and far below what a pixel does.
ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How well a model tells one answer, token by token with the tokens before it given; sums over it."""

    tokens: int
    nats: float
    greedy_nats: float  # of the token that the model itself would have written
    agreed: int  # tokens that are the model's own first choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Differences of samples, and whether they tend to be above zero."""

    samples: int
    above: int
    unchanged: int  # zero but for rounding
    mean: float
    p_value: float  # of the tendency, were above and below equally likely; 1 for nothing to go by

    def is_shown(self, p_value: float) -> bool:
        return self.p_value < p_value


def compare(differences: Sequence[float]) -> Comparison:
    """Wilcoxon's signed-rank test against values that are as often below zero."""
    values = np.asarray(differences, dtype=np.float64)
    usable = len(values) and bool(np.isfinite(values).all()) and bool(values.any())
    return Comparison(
        samples=len(values),
        above=int((values > 0).sum()),
        unchanged=int((abs(values) <= ROUNDING).sum()),
        mean=float(values.mean()) if len(values) else math.nan,
        p_value=float(wilcoxon(values, alternative="greater").pvalue) if usable else 1.0,
    )


@torch.no_grad()
def tell(
    model: Any,
    rows: Sequence[TokenizedSample],
    *,
    padding: int,
    blank: Prompt,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Told]:
    """One sample through a model, with its own images and with others: nothing is padded.

    So its figures are the same in whatever company it is measured, and ZeRO-3 gathers the weights once for
    both.

    Args:
        model: a VLM, in evaluation mode; under ZeRO-3 all ranks call this with the same rows.
        rows: the same tokens with different pixels; or one row.
        padding: the tokenizer's padding token.
        blank: the image that a sample without one gets (batch.py).
        device: of the model.
        dtype: of its pixels.
    """
    batch = collate_one(rows, padding=padding, blank=blank).to(device, dtype)
    z_BAD = predicting_features(body_features(model, batch), batch)
    return [_told(model, *row) for row in zip(z_BAD, batch.answer_ids_BA, strict=True)]


@torch.no_grad()
def tell_stored(model: Any, z_AD: torch.Tensor, ids_A: torch.Tensor) -> Told:
    """The same of a sample whose predicting features are at hand; `model` needs its head alone."""
    return _told(model, z_AD, ids_A)


def _told(model: Any, z_AD: torch.Tensor, ids_A: torch.Tensor) -> Told:
    nats, greedy_nats, agreed = 0.0, 0.0, 0
    for z_part, ids in zip(z_AD.split(CHUNK), ids_A.split(CHUNK), strict=True):
        log_AV = model.get_output_embeddings()(z_part).float().log_softmax(-1)
        best = log_AV.max(-1)
        nats -= float(log_AV.gather(1, ids[:, None]).double().sum())
        greedy_nats -= float(best.values.double().sum())
        agreed += int((best.indices == ids).sum())
    return Told(tokens=len(ids_A), nats=nats, greedy_nats=greedy_nats, agreed=agreed)


def exchanged_images(
    samples: Sequence[Sample], images: Sequence[Sequence[Image.Image]]
) -> list[list[Image.Image] | None]:
    """For each sample the images of the next one that has others, in its own ones' sizes.

    They are grey where all samples show the same images; None for text alone.
    """
    return [_other_images(place, samples, images) if own else None for place, own in enumerate(images)]


def _other_images(
    place: int, samples: Sequence[Sample], images: Sequence[Sequence[Image.Image]]
) -> list[Image.Image]:
    order = [(place + step) % len(samples) for step in range(1, len(samples))]
    others = [other for other in order if images[other] and samples[other].images != samples[place].images]
    if not others:
        return [Image.new("RGB", image.size, GREY) for image in images[place]]
    donors = images[others[0]]
    return [donors[number % len(donors)].resize(image.size) for number, image in enumerate(images[place])]
