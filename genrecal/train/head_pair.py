"""Both models' own heads side by side, in chunks of tokens: for losses between the two distributions.

    for each chunk of tokens    teacher's logits, student's logits -> a loss for every token
    backward                    a chunk's logits are made again, and autograd differentiates them

Slower than `head.py`, which knows the derivatives of its two losses; this takes any loss of a token. Under
ZeRO-3 both weights are gathered once around all chunks, in the forward pass and in the backward pass.
Shapes: T tokens of the batch or of a chunk, D_l / D_s widths, V entries of either vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepspeed.runtime.zero import register_external_parameter
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genrecal.train.head import Head, chunk_tokens


class HeadPair(nn.Module):
    """The output layers of two models, which still own them."""

    def __init__(self, teacher: Head, student: Head) -> None:
        super().__init__()
        self._weights = (teacher.weight_VD, student.weight_VD)
        for weight_VD in self._weights:
            register_external_parameter(self, weight_VD)

    def forward(
        self,
        loss: Callable[..., torch.Tensor],
        teacher_TD: torch.Tensor | None,
        student_TD: torch.Tensor | None,
        *others_T: torch.Tensor,
    ) -> torch.Tensor:
        """`loss` of every token, [T], with a gradient for whatever it is made of.

        Args:
            loss: of a chunk's logits, [T, V] each, the teacher's before the student's, and of `others_T`.
            teacher_TD: the teacher's features; None: its head is not asked.
            student_TD: the student's, likewise.
            others_T: more tensors with an entry for each token.
        """
        asked = [
            (z_TD, weight_VD)
            for z_TD, weight_VD in zip((teacher_TD, student_TD), self._weights, strict=True)
            if z_TD is not None
        ]
        weights = [weight_VD for _, weight_VD in asked]

        def of_chunk(*parts: torch.Tensor) -> torch.Tensor:
            logits = [functional.linear(z_TD, w) for z_TD, w in zip(parts, weights, strict=False)]
            return loss(*logits, *parts[len(logits) :])

        size = chunk_tokens(max(map(len, weights)), branches=len(asked))
        # A split of no token gives one chunk of no token, so that every rank runs and walks back the same.
        chunks = zip(*(one.split(size) for one in (*(z_TD for z_TD, _ in asked), *others_T)), strict=True)
        return torch.cat(
            [checkpoint(of_chunk, *parts, use_reentrant=False, preserve_rng_state=False) for parts in chunks]
        )
