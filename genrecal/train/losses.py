"""The losses, token by token, in float32; their sums are divided by counts that only the loop knows.

    GenRecal (paper, Appendix E)     ar = CE(head_l(r), gt_l)     kl = KL(head_l(z_l) || head_l(r))
    every method                     sft = CE(head_s(z_s), gt_s)
    comparison methods               divergences between p = head_l(z_l) and q = head_s(z_s)

Shapes: T tokens or positions of a batch, V entries of a vocabulary, P image positions of one sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional


class Losses(NamedTuple):
    """What a batch comes to: a tuple, in which DeepSpeed's hooks look for tensors."""

    total: torch.Tensor  # scalar, the only part with a gradient: the trained terms by their scales
    terms: dict[str, torch.Tensor]  # the sum of each term over its tokens


def answer_cross_entropy(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    """CE against the labels for every token, [T]."""
    return functional.cross_entropy(logits_TV.float(), ids_T, reduction="none")


def teacher_divergence(teacher_logits_TV: torch.Tensor, logits_TV: torch.Tensor) -> torch.Tensor:
    """KL(p || q) for every token, [T]: the forward direction, temperature 1."""
    return _kl(_log(teacher_logits_TV), _log(logits_TV))


def reverse_divergence(teacher_logits_TV: torch.Tensor, logits_TV: torch.Tensor) -> torch.Tensor:
    """KL(q || p) for every token, [T]: MiniLLM's divergence, here on given answers (paper, section 5)."""
    return _kl(_log(logits_TV), _log(teacher_logits_TV))


def skewed_reverse_divergence(
    teacher_logits_TV: torch.Tensor, logits_TV: torch.Tensor, *, skew: float
) -> torch.Tensor:
    """KL(q || (1 - skew) p + skew q) for every token, [T]: DistiLLM's; never infinite where p is zero."""
    p, q = _log(teacher_logits_TV), _log(logits_TV)
    # The mixture in log space: in probability space an entry that both find impossible is log 0.
    mixture = torch.logaddexp(p + math.log(1 - skew), q + math.log(skew))
    return _kl(q, mixture)


def relation_distance(teacher_PD: torch.Tensor, student_PD: torch.Tensor) -> torch.Tensor:
    """1 - cosine of both models' self-correlation of the image tokens of one sample (LLaVA-KD), a scalar.

    Args:
        teacher_PD: image token features as the teacher's body gets them, of its width.
        student_PD: the student's, of its own width.
    """
    teacher, student = (functional.normalize(part.float(), dim=-1) for part in (teacher_PD, student_PD))
    return 1 - functional.cosine_similarity(
        (teacher @ teacher.T).flatten(), (student @ student.T).flatten(), dim=0
    )


def sorted_distance(p_TV: torch.Tensor, q_TW: torch.Tensor) -> torch.Tensor:
    """Sum of |sort(p) - sort(q)| for every token, [T]: universal logit distillation, for any vocabularies.

    Args:
        p_TV: probabilities.
        q_TW: probabilities over another vocabulary; the shorter side is filled with zeros.
    """
    p, q = (part.float().sort(dim=-1, descending=True).values for part in (p_TV, q_TW))
    missing = p.shape[-1] - q.shape[-1]
    if missing > 0:
        q = functional.pad(q, (0, missing))
    elif missing < 0:
        p = functional.pad(p, (0, -missing))
    return (p - q).abs().sum(-1)


def _log(logits_TV: torch.Tensor) -> torch.Tensor:
    return functional.log_softmax(logits_TV.float(), dim=-1)


def _kl(target_TV: torch.Tensor, guess_TV: torch.Tensor) -> torch.Tensor:
    return functional.kl_div(guess_TV, target_TV, log_target=True, reduction="none").sum(-1)
