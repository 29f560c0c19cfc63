"""Where answer tokens of two vocabularies end in the same text.

    answer      the  cat   sat  <end>
    teacher     |the| c|at |s|at|<end>|       ends   3  5  7  9 11 12
    student     |the cat   |sat |<end>|       ends   7     11    12

A token's end is the number of the answer's characters that are complete with it: a token that holds some
bytes of a character only ends before that character. The token that ends the turn ends one past the text.
Ends come from the tokenizers' own offsets, so normalisation and special tokens need no rules of ours.

Shapes: B samples, A / C answer positions of the one and of the other vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch


def answer_tokens(tokenizer: Any, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer's token ids and the characters complete with each, [A] both; the last ends the turn."""
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    ends = []
    for position, (_, end) in enumerate(spans):
        # A character whose bytes lie in several tokens is complete with the last of them.
        following = spans[position + 1][0] if position + 1 < len(spans) else end
        ends.append(max(min(end, following), ends[-1] if ends else 0))
    ids = torch.tensor([*encoded["input_ids"], tokenizer.eos_token_id])
    return ids, torch.tensor([*ends, len(answer) + 1])


def last_complete(ends_BA: torch.Tensor, other_ends_BC: torch.Tensor) -> torch.Tensor:
    """For each position of the one answer, the last position of the other that ends no later.

    Args:
        ends_BA: ends of the one vocabulary's tokens.
        other_ends_BC: ends of the other's, ascending.

    Returns:
        index_BA with -1 where nothing of the other is complete yet.
    """
    return torch.searchsorted(other_ends_BC.contiguous(), ends_BA.contiguous(), right=True) - 1


def common_ends(ends_A: torch.Tensor, other_ends_C: torch.Tensor) -> list[tuple[int, int]]:
    """Where both answers have a token that ends at the same character: (position, other position) pairs.

    Between two pairs lie the tokens that spell the same characters in both vocabularies.
    """
    last = {int(end): place for place, end in enumerate(ends_A.tolist())}
    other = {int(end): place for place, end in enumerate(other_ends_C.tolist())}
    return [(last[end], other[end]) for end in sorted(last.keys() & other.keys()) if end > 0]
