"""GOLD: both models' own distributions side by side, wherever tokens of both end at the same character.

    student    The | ␣cat | s      teacher    The | ␣c | ats
    groups     The beside The              one token each, and the same    KL over the entries
               ␣cat s beside ␣c ats        cut differently                 KL over {this text, any other}

Where both spell a group with one token, and with the same one, an entry that both vocabularies have is one
event for both, and what only one of them has is one event more. Elsewhere an entry is no common event: of a
text that both are sure of, `a` and `b` have the probability at `a`, but `ab` has it at `ab`. There the text
of the group is the event, and its probability the product over its tokens.

p is the teacher's, q the student's. Shapes: B samples, S positions, A answer, T tokens, G groups, M entries
that both vocabularies have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from genrecal.data.align import common_ends
from genrecal.data.batch import Batch
from genrecal.models.vlm import predicting_features
from genrecal.train.head_pair import HeadPair
from genrecal.train.losses import answer_cross_entropy


def gold_divergence(
    heads: HeadPair,
    shared_ids: tuple[torch.Tensor, torch.Tensor],
    *,
    batch_s: Batch,
    batch_l: Batch,
    z_s_BSD: torch.Tensor,
    z_l_BSD: torch.Tensor,
) -> torch.Tensor:
    """KL(p || q) of every group, [G], those of one equal token first.

    Args:
        heads: the teacher's and the student's.
        shared_ids: entries that both vocabularies have: the student's ids and the teacher's, [M] each.
        batch_s: the student's tokens.
        batch_l: the teacher's, of the same samples.
        z_s_BSD: the student's features.
        z_l_BSD: the teacher's.
    """
    ids_s_M, ids_l_M = (ids.to(z_s_BSD.device) for ids in shared_ids)
    groups_s, groups_l = _groups(batch_s, batch_l), _groups(batch_l, batch_s)
    ids_s_T, ids_l_T = (batch.answer_ids_BA[batch.answer_mask_BA] for batch in (batch_s, batch_l))
    z_s_TD = predicting_features(z_s_BSD, batch_s)[batch_s.answer_mask_BA]
    z_l_TD = predicting_features(z_l_BSD, batch_l)[batch_l.answer_mask_BA]
    alike = _alike(ids_s_T[_firsts(groups_s)], ids_l_T[_firsts(groups_l)], ids_s_M, ids_l_M)
    one, several = [], []
    for own, other, same in zip(groups_s, groups_l, alike, strict=True):
        (one if same and len(own) == len(other) == 1 else several).append((own, other))

    def of_entries(p_GV: torch.Tensor, q_GV: torch.Tensor) -> torch.Tensor:
        return _divergence(p_GV.float().log_softmax(-1)[:, ids_l_M], q_GV.float().log_softmax(-1)[:, ids_s_M])

    # Every rank asks each head equally often, if for no token: under ZeRO-3 all of them gather its weight.
    places_s, places_l = _firsts([own for own, _ in one]), _firsts([other for _, other in one])
    of_entries_G = heads(of_entries, z_l_TD[places_l], z_s_TD[places_s])
    with torch.no_grad():
        log_p_G = _spelled(
            [other for _, other in several], ids_l_T, z_l_TD, lambda z, ids: heads(_own, z, None, ids)
        )
    log_q_G = _spelled([own for own, _ in several], ids_s_T, z_s_TD, lambda z, ids: heads(_own, None, z, ids))
    return torch.cat([of_entries_G, _divergence(log_p_G[:, None], log_q_G[:, None])])


def common_end_count(batch_s: Batch, batch_l: Batch) -> int:
    """Common ends of a batch: what GOLD's sum is divided by."""
    return len(_groups(batch_s, batch_l))


def _groups(batch: Batch, other: Batch) -> list[range]:
    """Of each common end the answer tokens that lead to it, by their places among all of the batch."""
    groups, offset = [], 0
    for row, length in enumerate(batch.answer_mask_BA.sum(1).tolist()):
        begin = 0
        for end, _ in common_ends(_ends(batch, row), _ends(other, row)):
            groups.append(range(offset + begin, offset + end + 1))
            begin = end + 1
        offset += length
    return groups


def _ends(batch: Batch, row: int) -> torch.Tensor:
    return batch.answer_ends_BA[row, : int(batch.answer_mask_BA[row].sum())]


def _firsts(groups: Sequence[range]) -> list[int]:
    return [group[0] for group in groups]


def _alike(
    first_s_G: torch.Tensor, first_l_G: torch.Tensor, ids_s_M: torch.Tensor, ids_l_M: torch.Tensor
) -> list[bool]:
    """Whether the two tokens are the same entry of both vocabularies.

    A chat template that puts a space before the answer makes its first token another one: `␣The`, not `The`.
    """
    beyond = 1 << 32  # above any id: a pair of ids is one number
    return torch.isin(first_s_G * beyond + first_l_G, ids_s_M * beyond + ids_l_M).tolist()


def _own(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token, [T]."""
    return -answer_cross_entropy(logits_TV, ids_T)


def _spelled(
    groups: Sequence[range],
    ids_T: torch.Tensor,
    z_TD: torch.Tensor,
    own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Log-probability of each group's text, [G]: of its tokens, one after the other."""
    places = [place for group in groups for place in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    own_T = own(z_TD[places], ids_T[places])
    return own_T.new_zeros(len(groups)).index_add(0, torch.tensor(numbers, device=own_T.device).long(), own_T)


def _divergence(log_p_GM: torch.Tensor, log_q_GM: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over M events and all others as one more, [G]."""
    return functional.kl_div(
        _with_rest(log_q_GM), _with_rest(log_p_GM), log_target=True, reduction="none"
    ).sum(-1)


def _with_rest(log_p_GM: torch.Tensor) -> torch.Tensor:
    spent_G = log_p_GM.logsumexp(-1).clamp(max=-1e-6)
    return torch.cat([log_p_GM, torch.log1p(-spent_G.exp())[:, None]], dim=-1)
