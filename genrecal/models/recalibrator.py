"""The Recalibrator (paper, sections 3.1 and 3.2): reads the student's question and the teacher's answer.

    z_q (student, D_s) ───────────────────┐
                                          ├─> rec_body: 2 decoder blocks of the student's shape,
    z_a (teacher, D_l) ─> rec_proj_pre ───┘   RoPE over positions 0..n-1, causal mask
                                                │
                                                └─> rec_proj_post (D_s -> D_l) ─> LayerNorm ─> r

The teacher's frozen head turns r into logits. Shapes: B samples, Q / A / N positions of the longest question,
answer and both, D_s and D_l the two hidden sizes.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn

from genrecal.core.config import Config


class RecalibratorConfig(Config):
    """The Recalibrator's shape and input; `{answer_input: features}` and no other key is the paper's."""

    blocks: int = Field(default=2, ge=1)
    """Decoder blocks in rec_body (paper: 2)."""
    layers: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(1.0,), min_length=1)
    """Depths of the features that are recalibrated, as shares of each body's layers, a Recalibrator for each;
    1.0 are the last features (paper)."""
    answer_input: Literal["features", "embeddings", "aligned"] = "features"
    """What it reads at the answer: the teacher's features (paper), the teacher's token embeddings, or those
    together with the student's own answer features where its tokens end no later."""
    answer_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of hiding the teacher's input at an answer position (paper: 0)."""
    answer_delay: int = Field(default=0, ge=0)
    """Positions by which the teacher's answer input is delayed (paper: 0)."""
    question_projector: Literal["shared", "separate"] = "shared"
    """Algorithm 2: the teacher's question passes rec_proj_pre, or a projector of its own."""
    init: Literal["fresh", "student"] = "fresh"
    """Weights that rec_body starts with: random ones, or the student's first blocks."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """The norm before the teacher's head (paper: layer-norm)."""


class Reading(NamedTuple):
    """What the Recalibrator made of [question, answer]; a tuple, since DeepSpeed's hooks look into those."""

    hidden_BND: torch.Tensor  # after rec_body, of every position, in the student's width
    r_BAD: torch.Tensor  # what the teacher's head reads to predict each answer token


class Recalibrator(nn.Module):
    """rec_proj_pre, rec_body, rec_proj_post and the norm before the teacher's head."""

    def __init__(self, config: RecalibratorConfig, *, student_body: Any, teacher_width: int) -> None:
        """Build it in the shape of `student_body`, the student's text model.

        Args:
            config: number of blocks, norm, initialisation.
            student_body: a transformers text model; only its class and config are read (`copy_blocks` reads
                weights).
            teacher_width: D_l.
        """
        super().__init__()
        body_config = copy.deepcopy(student_body.config)
        body_config.num_hidden_layers = config.blocks
        if getattr(body_config, "layer_types", None):
            # A block with a sliding window would not see the whole question.
            body_config.layer_types = ["full_attention"] * config.blocks
        width = body_config.hidden_size
        self.rec_proj_pre = nn.Linear(teacher_width, width)
        self.rec_proj_question = (
            nn.Linear(teacher_width, width) if config.question_projector == "separate" else None
        )
        self.rec_body = type(student_body)._from_config(body_config, dtype=torch.float32)
        # The body is fed features, and the paper's only norm after it is the one of the teacher's width.
        del self.rec_body.embed_tokens
        self.rec_body.norm = nn.Identity()
        self.rec_proj_post = nn.Linear(width, teacher_width)
        self.norm = (
            nn.LayerNorm(teacher_width) if config.norm == "layernorm" else nn.RMSNorm(teacher_width, eps=1e-6)
        )

    def forward(
        self,
        prefix_BQD: torch.Tensor,
        prefix_lengths_B: torch.Tensor,
        suffix_BAD: torch.Tensor,
        suffix_mask_BA: torch.Tensor,
        *,
        project_prefix: bool,
        student_suffix_BAD: torch.Tensor | None = None,
    ) -> Reading:
        """Read [question, answer] and say what the teacher's head shall read.

        Args:
            prefix_BQD: question features: the student's, [B, Q, D_s], or with `project_prefix` the teacher's,
                [B, Q, D_l] (Algorithm 2).
            prefix_lengths_B: true question lengths.
            suffix_BAD: the teacher's answer input, [B, A, D_l].
            suffix_mask_BA: which answer positions are real.
            project_prefix: whether the prefix passes a projector too.
            student_suffix_BAD: the student's answer features at those positions, [B, A, D_s]; they are added
                to the projected input.

        Returns:
            A Reading; entry t of r_BAD comes from the position before answer token t, the first from the last
            question position.
        """
        if project_prefix and self.rec_proj_question is None:
            # One pass through the projector: under ZeRO-3 it is gathered once.
            joint = self.rec_proj_pre(torch.cat([prefix_BQD, suffix_BAD], dim=1))
            prefix_BQD, suffix_BAD = joint.split([prefix_BQD.shape[1], suffix_BAD.shape[1]], dim=1)
        else:
            if project_prefix and self.rec_proj_question is not None:
                prefix_BQD = self.rec_proj_question(prefix_BQD)
            suffix_BAD = self.rec_proj_pre(suffix_BAD)
        if student_suffix_BAD is not None:
            suffix_BAD = suffix_BAD + student_suffix_BAD
        lengths_B = prefix_lengths_B + suffix_mask_BA.sum(1)
        sequence_BND = splice(prefix_BQD, prefix_lengths_B, suffix_BAD, length=int(lengths_B.max()))
        positions_N = torch.arange(sequence_BND.shape[1], device=sequence_BND.device)
        hidden_BND = self.rec_body(
            inputs_embeds=sequence_BND,
            attention_mask=(positions_N[None] < lengths_B[:, None]).long(),
            position_ids=positions_N[None].expand(len(sequence_BND), -1),
            use_cache=False,
        ).last_hidden_state
        offsets_A = torch.arange(suffix_BAD.shape[1], device=sequence_BND.device)
        index_BA = (prefix_lengths_B[:, None] + offsets_A[None] - 1).clamp(max=sequence_BND.shape[1] - 1)
        hidden_BAD = hidden_BND.gather(1, index_BA[:, :, None].expand(-1, -1, hidden_BND.shape[-1]))
        return Reading(hidden_BND=hidden_BND, r_BAD=self.speak(hidden_BAD))

    def speak(self, hidden_BAD: torch.Tensor) -> torch.Tensor:
        """rec_body's output in the width and scale of the teacher's head."""
        return self.norm(self.rec_proj_post(hidden_BAD))


def copy_blocks(recalibrator: Recalibrator, student_body: Any) -> None:
    """Start rec_body with the weights of the student's first blocks (`init: student`)."""
    for own, given in zip(recalibrator.rec_body.layers, student_body.layers, strict=False):
        own.load_state_dict(
            {name: value.detach().to(torch.float32) for name, value in given.state_dict().items()}
        )


def splice(
    prefix_BQD: torch.Tensor, prefix_lengths_B: torch.Tensor, suffix_BAD: torch.Tensor, *, length: int
) -> torch.Tensor:
    """[prefix without its padding, suffix] for every sample, [B, length, D]."""
    batch, _, width = prefix_BQD.shape
    positions_N = torch.arange(length, device=prefix_BQD.device)[None].expand(batch, -1)
    from_prefix_BN = positions_N < prefix_lengths_B[:, None]
    prefix_index = positions_N.clamp(max=prefix_BQD.shape[1] - 1)
    suffix_index = (positions_N - prefix_lengths_B[:, None]).clamp(min=0, max=suffix_BAD.shape[1] - 1)
    return torch.where(
        from_prefix_BN[:, :, None],
        prefix_BQD.gather(1, prefix_index[:, :, None].expand(-1, -1, width)),
        suffix_BAD.gather(1, suffix_index[:, :, None].expand(-1, -1, width)),
    )
