"""The losses of Algorithms 1 to 3 (paper, Appendix E), as sums over answer tokens.

    main            r = Recalibrator([z_q student, z_a teacher])
    regularisation  r = Recalibrator([z_q teacher, z_a teacher])
    ar = CE(head_l(r), gt_l)        kl = KL(head_l(z_l) || head_l(r))        sft = CE(head_s(z_s), gt_s)

Sums, because a loss is normalised by the answer tokens of the whole optimizer step, which only the loop
knows. Everything is computed in float32. Shapes: T answer tokens of a batch, V entries of a vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def answer_cross_entropy(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    """CE against the labels for every token, [T]."""
    return functional.cross_entropy(logits_TV.float(), ids_T, reduction="none")


def teacher_divergence(teacher_logits_TV: torch.Tensor, logits_TV: torch.Tensor) -> torch.Tensor:
    """KL(teacher || recalibrated) for every token, [T]: the forward direction, temperature 1."""
    target = functional.log_softmax(teacher_logits_TV.float(), dim=-1)
    guess = functional.log_softmax(logits_TV.float(), dim=-1)
    return functional.kl_div(guess, target, log_target=True, reduction="none").sum(-1)
