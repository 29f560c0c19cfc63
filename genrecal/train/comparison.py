"""The comparison methods' losses: the student's own head against the teacher's, without a Recalibrator.

    same token types         every position of question, image and answer      (paper, section 5)
    equal tokenizers         answer tokens alone, `answer_only`                 (paper, Appendix G)
    any pair                 ULD by place, GOLD where tokens of both end together

p is the teacher's distribution, q the student's. Vocabularies of unequal length share their first entries,
and the others are left out. Shapes: B samples, S positions, T tokens or positions, A answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genrecal.core.errors import TrainError
from genrecal.data.batch import Batch, PairedBatch
from genrecal.models.vlm import layer_features, predicting_features
from genrecal.train.gold import gold_divergence
from genrecal.train.head_pair import HeadPair
from genrecal.train.losses import (
    relation_distance,
    reverse_divergence,
    skewed_reverse_divergence,
    sorted_distance,
    teacher_divergence,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the comparison losses need to know about the pair."""

    answer_only: bool = False
    skew: float = 0.1
    image_token_id: int = -1
    shared_ids: tuple[torch.Tensor, torch.Tensor] | None = (
        None  # GOLD: [M] ids, the student's and the teacher's
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both models' features of one batch; `embedded` is what each body was fed."""

    heads: HeadPair
    batch_s: Batch
    batch_l: Batch
    z_s_BSD: torch.Tensor
    z_l_BSD: torch.Tensor
    embedded_s_BSD: torch.Tensor
    embedded_l_BSD: torch.Tensor

    def at(self, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher's and student's features at `mask_BS`, [T, D] each."""
        return self.z_l_BSD[mask_BS], self.z_s_BSD[mask_BS]

    def answers(self, mask_BA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher's and student's features that predict the answer tokens of `mask_BA`, [T, D] each."""
        length = mask_BA.shape[1]
        z_l_BAD = predicting_features(self.z_l_BSD, self.batch_l)[:, :length]
        z_s_BAD = predicting_features(self.z_s_BSD, self.batch_s)[:, :length]
        return z_l_BAD[mask_BA], z_s_BAD[mask_BA]


def comparison_terms(
    losses: Sequence[str],
    settings: Comparison,
    *,
    heads: HeadPair,
    teacher: Any,
    embedded_s_BSD: torch.Tensor,
    z_s_BSD: torch.Tensor,
    batch: PairedBatch,
) -> dict[str, torch.Tensor]:
    """The sum of each of `losses` that belongs here.

    Raises:
        TrainError: the two models' tokens of a sample differ where the loss needs them equal.
    """
    wanted = [loss for loss in losses if loss in COMPARISONS]
    if not wanted:
        return {}
    batch_l = batch.teachers[0]
    with torch.no_grad():
        embedded_l_BSD, z_l_BSD = layer_features(teacher, batch_l, (0.0, 1.0))
    pair = Pair(
        heads=heads,
        batch_s=batch.student,
        batch_l=batch_l,
        z_s_BSD=z_s_BSD,
        z_l_BSD=z_l_BSD,
        embedded_s_BSD=embedded_s_BSD,
        embedded_l_BSD=embedded_l_BSD,
    )
    _require_equal(wanted, settings, batch)
    return {loss: COMPARISONS[loss](pair, settings).sum() for loss in wanted}


def position_mask(batch: Batch) -> torch.Tensor:
    """Bool, [B, S]: positions of question, image and answer that predict a token of the sample."""
    lengths_B = batch.question_lengths_B + batch.answer_mask_BA.sum(1)
    positions_S = torch.arange(batch.input_ids_BS.shape[1], device=lengths_B.device)
    return positions_S[None] < lengths_B[:, None] - 1


def image_mask(batch: Batch, image_token_id: int) -> torch.Tensor:
    """Bool, [B, S]: the image tokens of the samples, without a blank image behind them."""
    return position_mask(batch) & (batch.input_ids_BS == image_token_id)


def _divergence(
    pair: Pair, settings: Comparison, divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`divergence` of every position of the sample, or of every answer token, [T]."""
    if settings.answer_only:
        features = pair.answers(pair.batch_s.answer_mask_BA)
    else:
        features = pair.at(position_mask(pair.batch_s))
    return pair.heads(_over_common(divergence), *features)


def _over_common(
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`divergence` of distributions over the entries that both vocabularies have."""

    def over_common(p_TV: torch.Tensor, q_TV: torch.Tensor) -> torch.Tensor:
        entries = min(p_TV.shape[-1], q_TV.shape[-1])
        return divergence(p_TV[:, :entries], q_TV[:, :entries])

    return over_common


def _reverse(pair: Pair, settings: Comparison) -> torch.Tensor:
    return _divergence(pair, settings, reverse_divergence)


def _skewed(pair: Pair, settings: Comparison) -> torch.Tensor:
    def divergence(p_TV: torch.Tensor, q_TV: torch.Tensor) -> torch.Tensor:
        return skewed_reverse_divergence(p_TV, q_TV, skew=settings.skew)

    return _divergence(pair, settings, divergence)


def _response(pair: Pair, settings: Comparison) -> torch.Tensor:
    features = pair.answers(pair.batch_s.answer_mask_BA)
    return pair.heads(_over_common(teacher_divergence), *features)


def _visual(pair: Pair, settings: Comparison) -> torch.Tensor:
    features = pair.at(image_mask(pair.batch_s, settings.image_token_id))
    return pair.heads(_over_common(teacher_divergence), *features)


def _relation(pair: Pair, settings: Comparison) -> torch.Tensor:
    mask_BS = image_mask(pair.batch_s, settings.image_token_id)
    distances = [
        relation_distance(teacher_SD[mask_S], student_SD[mask_S])
        for teacher_SD, student_SD, mask_S in zip(
            pair.embedded_l_BSD, pair.embedded_s_BSD, mask_BS, strict=True
        )
        if mask_S.any()
    ]
    return torch.stack(distances) if distances else pair.embedded_s_BSD.sum()[None] * 0


def _uld(pair: Pair, settings: Comparison) -> torch.Tensor:
    """By place: the n-th answer token of the one beside the n-th of the other, as far as both go."""

    def distance(p_TV: torch.Tensor, q_TV: torch.Tensor) -> torch.Tensor:
        return sorted_distance(p_TV.float().softmax(-1), q_TV.float().softmax(-1))

    return pair.heads(distance, *pair.answers(paired_mask(pair.batch_s, pair.batch_l)))


def paired_mask(batch_s: Batch, batch_l: Batch) -> torch.Tensor:
    """Bool, [B, min(A_s, A_l)]: places that both answers have."""
    length = min(batch_s.answer_mask_BA.shape[1], batch_l.answer_mask_BA.shape[1])
    return batch_s.answer_mask_BA[:, :length] & batch_l.answer_mask_BA[:, :length]


def _gold(pair: Pair, settings: Comparison) -> torch.Tensor:
    assert settings.shared_ids is not None
    return gold_divergence(
        pair.heads,
        settings.shared_ids,
        batch_s=pair.batch_s,
        batch_l=pair.batch_l,
        z_s_BSD=pair.z_s_BSD,
        z_l_BSD=pair.z_l_BSD,
    )


COMPARISONS: dict[str, Callable[[Pair, Comparison], torch.Tensor]] = {
    "reverse_kl": _reverse,
    "skewed_reverse_kl": _skewed,
    "response_kl": _response,
    "visual_kl": _visual,
    "relation": _relation,
    "uld": _uld,
    "gold": _gold,
}
# These compare distributions over one vocabulary, token by token.
SAME_TOKENS = ("reverse_kl", "skewed_reverse_kl", "response_kl", "visual_kl", "relation")


def _require_equal(losses: Sequence[str], settings: Comparison, batch: PairedBatch) -> None:
    if not any(loss in SAME_TOKENS for loss in losses):
        return
    student, teacher = batch.student, batch.teachers[0]
    same = _equal(
        student.answer_ids_BA, student.answer_mask_BA, teacher.answer_ids_BA, teacher.answer_mask_BA
    )
    if same and not settings.answer_only:
        same = _equal(
            student.input_ids_BS, student.attention_mask_BS, teacher.input_ids_BS, teacher.attention_mask_BS
        )
    if not same:
        raise TrainError(
            "student and teacher read different tokens",
            where=f"samples {', '.join(batch.ids[:3])}",
            fix="`genrecal pairs` says which methods serve this pair",
        )


def _equal(ids: torch.Tensor, mask: torch.Tensor, other_ids: torch.Tensor, other_mask: torch.Tensor) -> bool:
    """Whether both hold the same tokens, whatever pads them."""
    return torch.equal(mask, other_mask) and torch.equal(ids[mask.bool()], other_ids[other_mask.bool()])
