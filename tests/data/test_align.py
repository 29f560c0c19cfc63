"""Ends of answer tokens, through real tokenizers, against their bytes counted one by one."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from genrecal.data.align import answer_tokens, common_ends, last_complete
from genrecal.data.batch import NEVER
from tests.data.spellings import PROSE, WORLD, byte_level, gpt2, metaspace_bpe, spelled, unigram

BUILD = {
    "prose": lambda: byte_level(PROSE, entries=340),
    "world": lambda: byte_level(WORLD, entries=420),
    "qwen2": lambda: byte_level(PROSE, entries=340, compose=True),
    "bytes": lambda: byte_level((), entries=257),
    "gpt2": lambda: gpt2((*PROSE, *WORLD, "\n\t  \n  - one\n   - two"), entries=360),
    "llama": lambda: metaspace_bpe(PROSE, entries=400, lead=True),
    "gemma": lambda: metaspace_bpe((*PROSE, *WORLD), entries=420, lead=False),
    "unigram": lambda: unigram((*PROSE, *WORLD), entries=380, lead=True),
}
# These put a space before a text that no character of it stands for.
LEADS = ("llama", "unigram")
# These write ▁ for a space, and cannot tell the two apart.
METASPACE = ("llama", "gemma", "unigram")
EXACT = ("prose", "world", "bytes", "gpt2", "llama", "gemma")
PAIRS = [("prose", "world"), ("world", "bytes"), ("gpt2", "gemma"), ("llama", "prose"), ("gemma", "llama")]

# Words that the merges know and characters that fall apart into bytes, next to each other.
PIECES = st.sampled_from(
    [
        "the",
        " the",
        "cat",
        " ",
        "  ",
        "\n",
        "\n  ",
        "\t ",
        "é",
        "e\u0301",
        "\u0301",
        "🙂",
        "👩‍👩‍👧",
        "鲁",
        "棒",
        "한",
        ".",
        "7",
        "▁",
    ]
)
TEXT = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=12))


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return BUILD[name]()


def spellable(text: str, *names: str) -> str:
    return text.replace("▁", "_") if set(names) & set(METASPACE) else text


def progress(name: str, text: str) -> tuple[list[int], list[int], list[int]]:
    """Ids of `text`; for each, the bytes of it that are spelled so far, and the end.

    The end: characters up to the last place that is a border of tokens and a border of characters.
    """
    ids = tokenizer(name)(text, add_special_tokens=False)["input_ids"]
    parts = spelled(tokenizer(name), ids)
    lead = b"".join(parts).removesuffix(text.encode())
    assert lead in ((b"", b" ") if name in LEADS else (b"",))
    borders = {len(text[:count].encode()): count for count in range(len(text) + 1)}
    done, ends, size = [], [], -len(lead)
    for part in parts:
        size += len(part)
        done.append(size)
        ends.append(borders.get(size, ends[-1] if ends else 0))
    return ids, done, ends


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=60, deadline=None, derandomize=True)
@example("a\n   - b \t x")
@example(" 🙂 ")
@example("é▁")
@example("")
@given(text=TEXT)
def test_an_end_is_where_the_token_stops(name: str, text: str) -> None:
    text = spellable(text, name)
    ids, ends = answer_tokens(tokenizer(name), text)
    expected_ids, _, expected_ends = progress(name, text)
    assert ids.tolist() == [*expected_ids, tokenizer(name).eos_token_id]
    assert ends.tolist() == [*expected_ends, len(text) + 1]
    assert ends.tolist() == sorted(ends.tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@example("한국 the")
@given(text=TEXT)
def test_unigram_gives_unknown_characters_one_span(text: str) -> None:
    """A run of them falls back to bytes as a whole: no end within it, and those around it are right."""
    text = spellable(text, "unigram")
    ids, ends = answer_tokens(tokenizer("unigram"), text)
    expected_ids, _, expected_ends = progress("unigram", text)
    assert ids.tolist()[:-1] == expected_ids and ends[-1] == len(text) + 1
    assert set(ends.tolist()) <= {0, *expected_ends, len(text) + 1} and ends.tolist() == sorted(ends.tolist())
    firsts = {end: place for place, end in reversed(list(enumerate(expected_ends)))}
    for end in set(ends.tolist()[:-1]) - {0}:
        assert ends.tolist().index(end) == firsts[end]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@settings(max_examples=60, deadline=None, derandomize=True)
@example("the 🙂 sat")
@example("🙂🙂")
@example("é▁")
@example("👩‍👩‍👧棒")
@given(text=TEXT)
def test_both_spell_the_same_between_common_ends(one: str, other: str, text: str) -> None:
    """The pairs are exactly the places where both have spelled the same bytes, behind a whole character."""
    text = spellable(text, one, other)
    found = common_ends(answer_tokens(tokenizer(one), text)[1], answer_tokens(tokenizer(other), text)[1])
    done, other_done = (progress(name, text)[1] for name in (one, other))
    borders = [len(text[:count].encode()) for count in range(1, len(text) + 1)]
    expected = [
        (done.index(size), other_done.index(size)) for size in borders if size in done and size in other_done
    ]
    # The end of the turn is always one.
    assert found == [*expected, (len(done), len(other_done))]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@settings(max_examples=60, deadline=None, derandomize=True)
@example("the 🙂 sat")
@example("e\u0301 鲁棒")
@given(text=TEXT)
def test_the_last_complete_token_reads_no_further(one: str, other: str, text: str) -> None:
    """Character by character: it is the last that stops at a character which the one has spelled whole."""
    text = spellable(text, one, other)
    ends, other_ends = (answer_tokens(tokenizer(name), text)[1] for name in (one, other))
    (index,) = last_complete(ends[None], other_ends[None]).tolist()
    other_done = progress(other, text)[1]
    for place, end in enumerate(progress(one, text)[2]):
        expected = -1
        for count in range(1, end + 1):
            size = len(text[:count].encode())
            expected = other_done.index(size) if size in other_done else expected
        assert index[place] == expected
    assert index[-1] == len(other_done)  # behind the answer the other's end of the turn is read


@settings(max_examples=60, deadline=None, derandomize=True)
@example("cafe\u0301 x")
@given(text=TEXT)
def test_ends_count_the_characters_that_were_given(text: str) -> None:
    """Qwen2's tokenizer composes e and an accent first; ends still are places in the text as it was."""
    ids, ends = answer_tokens(tokenizer("qwen2"), text)
    said = spelled(tokenizer("qwen2"), ids[:-1])
    for place, end in enumerate(ends.tolist()[:-1]):
        if end > ([0, *ends.tolist()])[place]:
            assert b"".join(said[: place + 1]) == unicodedata.normalize("NFC", text[:end]).encode()
    assert ends.tolist()[-2:] == [len(text), len(text) + 1][-len(ends) :]


def test_padding_is_never_reached() -> None:
    ends = torch.tensor([[3, 5, 6], [2, 3, NEVER]])
    other = torch.tensor([[5, 6, NEVER, NEVER], [1, 2, 3, 4]])
    assert last_complete(ends, other)[0].tolist() == [-1, 0, 1]
    assert last_complete(ends, other)[1, :2].tolist() == [1, 2]


def test_the_drawing_of_the_module() -> None:
    """Ends as they stand in align.py, and a character whose bytes lie in three tokens."""
    teacher, student = torch.tensor([3, 5, 7, 9, 11, 12]), torch.tensor([7, 11, 12])
    assert common_ends(teacher, student) == [(2, 0), (4, 1), (5, 2)]
    assert last_complete(teacher[None], student[None]).tolist() == [[-1, -1, 0, 0, 1, 2]]
    # " ", three bytes of 🙂 apart, its last byte, the end: what follows the space is no part of it
    apart, whole = torch.tensor([1, 1, 1, 1, 2, 3]), torch.tensor([1, 2, 3])
    assert common_ends(apart, whole) == [(0, 0), (4, 1), (5, 2)]
    assert last_complete(whole[None], apart[None]).tolist() == [[0, 4, 5]]
    # The first character is under way: nothing is complete.
    assert last_complete(torch.tensor([[0, 1]]), torch.tensor([[0, 0, 1]])).tolist() == [[-1, 2]]
