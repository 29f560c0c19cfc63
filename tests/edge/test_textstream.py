"""Text in pieces: whole characters, and stop strings wherever the tokens cut them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.model import EdgeModel
from edge.textstream import TextStream


def bytes_to_text(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes: it cuts every character that can be cut."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(ids: Sequence[int], stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(bytes_to_text, stops)
    found = []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            break
    found.append(stream.finish())
    return [piece for piece in found if piece], stream


def test_characters_come_whole() -> None:
    text = "aé你🙂!"
    found, stream = pieces(text.encode())
    assert found == list(text) and stream.text == text


def test_an_unfinished_character_comes_last() -> None:
    found, stream = pieces("ab🙂".encode()[:-1])
    assert found == ["a", "b", "\ufffd"] and not stream.stopped


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.text(max_size=20).map(str.encode) | st.binary(max_size=20))
def test_pieces_join_to_the_text_of_all_tokens(content: bytes) -> None:
    found, stream = pieces(content)
    assert "".join(found) == stream.text == bytes_to_text(content)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text("abé", max_size=14), stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    found, stream = pieces(text.encode(), stops)
    # Character by character, as the text came: the first moment at which some stop string is complete.
    expected = text
    for end in range(1, len(text) + 1):
        places = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if places:
            expected = text[: min(places)]
            break
    assert "".join(found) == stream.text == expected
    assert stream.stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize("text", ["\n\nUser:", "\n\nUse"])
def test_the_beginning_of_a_stop_string_waits(text: str) -> None:
    stream = TextStream(bytes_to_text, ["\n\nUser:"])
    given_out = [stream.push(token) for token in b"ok" + text.encode()]
    assert given_out == ["o", "k", *[""] * len(text)]
    assert stream.stopped == text.endswith(":")
    assert stream.finish() == ("" if stream.stopped else text)


def test_the_real_tokenizer_joins_too(edge_model: EdgeModel) -> None:
    tokenizer = edge_model._maker.encoder.tokenizer
    text = "Grüße, 你好 🙂, how many red circles are there?\n"
    ids = tokenizer.encode(text).ids
    assert len(ids) > 20
    stream = TextStream(edge_model._maker.encoder.decode)
    found = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(found) == text
    assert "\ufffd" not in "".join(found)
