"""Where answer tokens of two vocabularies end in the same text.

    answer      the  cat   sat  <end>
    teacher     |the| c|at |s|at|<end>|       ends   3  5  7  9 11 12
    student     |the cat   |sat |<end>|       ends   7     11    12

A token's end is the number of the answer's characters up to where it stops. A token that stops within a
character, after some of its bytes, has the end of the token before it: of tokens with the same end, the first
one stops there. The token that ends the turn ends one past the text. Ends come from the tokenizers' own
offsets, so normalisation and special tokens need no rules of ours.

Shapes: B samples, A / C answer positions of the one and of the other vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer


def answer_tokens(tokenizer: Any, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer's token ids and their ends, [A] both; the last one ends the turn."""
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    untrimmed = _untrimmed(tokenizer)
    spans = untrimmed.encode(answer).offsets if untrimmed else encoded["offset_mapping"]
    ends: list[int] = []
    for position, (_, end) in enumerate(spans):
        # A character whose bytes lie in several tokens is in the span of each; an accent that normalisation
        # joins to its letter is in none.
        following = spans[position + 1][0] if position + 1 < len(spans) else len(answer)
        ends.append(following if end <= following else (ends[-1] if ends else 0))
    ids = torch.tensor([*encoded["input_ids"], tokenizer.eos_token_id])
    return ids, torch.tensor([*ends, len(answer) + 1])


@lru_cache(maxsize=64)
def _untrimmed(tokenizer: Any) -> Tokenizer | None:
    """A copy whose offsets hold a token's spaces too, where the tokenizer's own leave them out (GPT-2's do).

    Without them nobody could tell whether the space between two tokens ends the one or begins the other.
    """
    backend = tokenizer.backend_tokenizer
    if backend.post_processor is None or b'"trim_offsets":true' not in backend.post_processor.__getstate__():
        return None
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = None
    copy.no_truncation()
    copy.no_padding()
    return copy


def last_complete(ends_BA: torch.Tensor, other_ends_BC: torch.Tensor) -> torch.Tensor:
    """For each position of the one answer, the last position of the other that reads no further.

    Args:
        ends_BA: ends of the one vocabulary's tokens.
        other_ends_BC: ends of the other's, ascending.

    Returns:
        index_BA with -1 where nothing of the other is complete yet.
    """
    other_ends_BC = other_ends_BC.contiguous()
    last_BA = torch.searchsorted(other_ends_BC, ends_BA.contiguous(), right=True) - 1
    reached_BA = other_ends_BC.gather(1, last_BA.clamp(min=0))
    first_BA = torch.searchsorted(other_ends_BC, reached_BA)
    return first_BA.masked_fill((last_BA < 0) | (reached_BA == 0), -1)


def common_ends(ends_A: torch.Tensor, other_ends_C: torch.Tensor) -> list[tuple[int, int]]:
    """Where both answers have a token that ends at the same character: (position, other position) pairs.

    Between two pairs lie the tokens that spell the same characters in both vocabularies.
    """
    own, other = _places(ends_A), _places(other_ends_C)
    return [(own[end], other[end]) for end in sorted(own.keys() & other.keys()) if end > 0]


def _places(ends_A: torch.Tensor) -> dict[int, int]:
    """The first position with each end."""
    places: dict[int, int] = {}
    for place, end in enumerate(ends_A.tolist()):
        places.setdefault(end, place)
    return places
