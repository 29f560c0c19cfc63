"""A model's head over all answer tokens of a batch, in chunks: their logits never all exist.

    for each chunk of tokens
        logits = [t, r_1 .. r_N] W^T                        one product for the teacher and every branch
        p = softmax(t), q = softmax(r)                      float32
        CE = -log q[label]      KL = sum p (log p - log q)
        d/dlogits = ce (q - onehot(label)) + kl (q - p)     ce, kl: what the branch's losses weigh
        d/dr = d/dlogits W                                  one product for every branch
        d/dW += d/dlogits^T r                               where the head is trained

The gradients are made where the logits are, in the forward pass, so that has to know what each loss weighs in
the step's total; the backward pass only scales them. Every row of W is a class of the softmax, those of an
embedding matrix that was padded beyond the tokenizer's ids too, as in the model's own loss.

Under ZeRO-3 the weight is gathered once around the chunks, because `Head` is a module that names it; a frozen
head is not gathered again for the backward pass, which does not need it. Shapes: N branches, K = N and the
teacher, T tokens of the batch or of a chunk, D width, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.zero import register_external_parameter
from torch import nn
from torch.nn import functional

from genrecal.core.errors import ModelError

# Of the float32 logits of one chunk, all branches together; some copies of them exist at a time. With 150,000
# entries it makes products of 450 rows: below about 300 an H100 waits for the weights rather than computes.
CHUNK_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Features that go through the head, and what their losses weigh in the total; None: only looked at."""

    z_TD: torch.Tensor
    ce: float | None = None
    kl: float | None = None


class HeadLosses(NamedTuple):
    """What the head says of the branches; only `total` has a gradient."""

    total: torch.Tensor  # scalar: the sum of all losses by their weights
    ce_NT: torch.Tensor  # float32, in nats
    kl_NT: torch.Tensor  # KL(teacher || branch); zeros without a teacher
    teacher_ce_T: torch.Tensor  # the teacher's own CE; empty without a teacher


class Head(nn.Module):
    """The output layer of `model`, which still owns it; it may be frozen, trained, or tied to the embeddings.

    Raises:
        ModelError: the output layer is more than a matrix.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear) or linear.bias is not None:
            raise ModelError(
                f"the head is {linear!r}, not a linear layer without bias",
                where=type(model).__name__,
                fix="Losses are taken through a plain matrix alone",
            )
        # In a tuple, so that it is no parameter of this module too; and not read from the linear layer later,
        # because under ZeRO-3 that gathers it for whatever module is running then.
        self._weight = (linear.weight,)
        register_external_parameter(self, linear.weight)

    @property
    def weight_VD(self) -> nn.Parameter:
        return self._weight[0]

    def losses(
        self, branches: Sequence[Branch], labels_T: torch.Tensor, teacher_TD: torch.Tensor | None = None
    ) -> HeadLosses:
        """CE and KL of every branch at every token, and their total.

        Args:
            branches: their features, [T, D] each; T may be 0.
            labels_T: the tokens to predict.
            teacher_TD: features of the KL's target, through the same head.
        """
        trained = self.weight_VD.requires_grad and torch.is_grad_enabled()
        wanted = tuple(
            torch.is_grad_enabled()
            and (trained or branch.z_TD.requires_grad)
            and not (branch.ce is None and branch.kl is None)
            for branch in branches
        )
        scales = tuple((branch.ce or 0.0, branch.kl or 0.0) for branch in branches)
        # ZeRO-3 gathers a module's weights for its backward pass where inputs or outputs carry a gradient.
        z = tuple(branch.z_TD if trained else branch.z_TD.detach() for branch in branches)
        *found, gradient_KTD = self(z, scales, wanted, labels_T, teacher_TD)
        losses = HeadLosses(*found)
        inputs = [branch.z_TD for branch, one in zip(branches, wanted, strict=True) if one]
        if not trained and inputs:
            losses = losses._replace(total=_Known.apply(losses.total, (*gradient_KTD,), *inputs))
        return losses

    def forward(
        self,
        z: tuple[torch.Tensor, ...],
        scales: tuple[tuple[float, float], ...],
        wanted: tuple[bool, ...],
        labels_T: torch.Tensor,
        teacher_TD: torch.Tensor | None,
    ) -> tuple[Any, ...]:
        """The fields of `HeadLosses`, and d total / dz of the wanted branches, for a frozen head's caller."""
        weight_VD = self.weight_VD
        trained = weight_VD.requires_grad and any(wanted)
        total, *found, gradient_KTD, gradient_VD = _in_chunks(
            weight_VD, z, scales, wanted, labels_T, teacher_TD, trained=trained
        )
        if trained:
            inputs = [one for one, want in zip(z, wanted, strict=True) if want]
            total = _Known.apply(total, (*gradient_KTD, gradient_VD), *inputs, weight_VD)
        return (total, *found, gradient_KTD)


@torch.no_grad()
def _in_chunks(
    weight_VD: torch.Tensor,
    z: Sequence[torch.Tensor],
    scales: Sequence[tuple[float, float]],
    wanted: Sequence[bool],
    labels_T: torch.Tensor,
    teacher_TD: torch.Tensor | None,
    *,
    trained: bool,
) -> tuple[Any, ...]:
    """The fields of `HeadLosses`, d total / dz of the wanted branches, d total / dW if trained."""
    # The teacher first and the differentiated branches last: what one product takes lies together.
    order = sorted(range(len(z)), key=lambda n: wanted[n])
    stacked = [*([] if teacher_TD is None else [teacher_TD]), *(z[n] for n in order)]
    others, graded = len(stacked) - len(z), len(stacked) - sum(wanted)
    ce_KT = torch.zeros(len(stacked), len(labels_T), device=labels_T.device)
    kl_KT = torch.zeros_like(ce_KT)
    gradient_KTD = z[0].new_empty(sum(wanted), *z[0].shape)
    # In float32: bf16 would round the later chunks away.
    gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if trained else None
    size = chunk_tokens(len(weight_VD), branches=len(stacked))
    for first in range(0, len(labels_T), size):
        part = slice(first, first + size)
        labels_T1 = labels_T[part, None]
        z_KTD = torch.stack([one[part] for one in stacked])
        log_KTV = functional.log_softmax(functional.linear(z_KTD, weight_VD), dim=-1, dtype=torch.float32)
        ce_KT[:, part] = -log_KTV.gather(2, labels_T1.expand(len(stacked), -1, -1))[:, :, 0]
        p_TV = None if teacher_TD is None else log_KTV[0].exp()
        for k in range(others, len(stacked)):
            if p_TV is not None:
                kl_KT[k, part] = (log_KTV[0] - log_KTV[k]).mul_(p_TV).sum(-1)
            if k >= graded:
                _differentiate(log_KTV[k], p_TV, labels_T1, *scales[order[k - others]])
        if any(wanted):
            d_logits_KTV = log_KTV[graded:].to(weight_VD.dtype)
            gradient_KTD[:, part] = d_logits_KTV @ weight_VD
            if gradient_VD is not None:
                _add_product(gradient_VD, d_logits_KTV.flatten(0, 1), z_KTD[graded:].flatten(0, 1))
    back = [others + order.index(n) for n in range(len(z))]
    ce_NT, kl_NT = ce_KT[back], kl_KT[back]
    total = (torch.stack([ce_NT.sum(1), kl_NT.sum(1)], 1) * ce_NT.new_tensor(scales)).sum()
    gradient = None if gradient_VD is None else gradient_VD.to(weight_VD.dtype)
    return total, ce_NT, kl_NT, ce_KT[:others].flatten(), gradient_KTD, gradient


def _differentiate(
    log_q_TV: torch.Tensor, p_TV: torch.Tensor | None, labels_T1: torch.Tensor, ce: float, kl: float
) -> None:
    """d (ce CE + kl KL) / d logits, written over log q."""
    d_logits_TV = log_q_TV.exp_().mul_(ce if p_TV is None else ce + kl)
    if p_TV is not None:
        d_logits_TV.sub_(p_TV, alpha=kl)
    d_logits_TV.scatter_add_(1, labels_T1, torch.full_like(labels_T1, -ce, dtype=torch.float32))


def chunk_tokens(entries: int, *, branches: int) -> int:
    """Tokens of a chunk: as many as keep its float32 logits within CHUNK_BYTES, and one at least."""
    return max(1, CHUNK_BYTES // (4 * entries * branches))


def _add_product(gradient_VD: torch.Tensor, d_logits_TV: torch.Tensor, z_TD: torch.Tensor) -> None:
    if d_logits_TV.dtype == gradient_VD.dtype:
        gradient_VD.addmm_(d_logits_TV.T, z_TD)  # without a second [V, D]
    else:
        gradient_VD += d_logits_TV.T @ z_TD


class _Known(torch.autograd.Function):
    """A value whose gradients for `inputs` are there already."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: tuple[torch.Tensor, ...], *inputs: Any) -> Any:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        return None, None, *(gradient * above for gradient in ctx.saved_tensors)
