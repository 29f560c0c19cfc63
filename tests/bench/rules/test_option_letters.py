"""Replies and the letters that the official rules read from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rules.option_letters import infer_option

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two dogs", "D": "none of these"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("{D}", "D"),
        ("B: it barks", "B"),  # the letter is among the last four words
        ("A dog", "A"),  # no guard for the article
        ("b", None),  # letters are case-sensitive
        ("**B**.", "B"),  # stars become spaces
        ("Z", "Z"),
        ("It is Z, I think", "Z"),
        ("Cannot determine the answer", "Z"),
        ("I'm sorry, but without the image provided I would say B", "Z"),
        ("Failed to obtain answer via API", None),
        ("B or C", None),
        ("The answer is B or C", "B"),  # the verbose rule takes the first match
        ("B it must be", "B"),  # the fourth word from the end still counts
        ("B it must be so", None),  # the fifth does not
        ("B is what I would choose here today", None),  # named once, but too early
        ("The correct answer is **B**. Here is why, at some length", "B"),
        ("the answer is c", "C"),
        ("The answer is blue", "B"),  # no word boundary
        ("The answer is E", None),
        ("It shows two dogs", "C"),
        ("It shows A CAT", "A"),  # one letter that stands alone
        ("it shows A Cat on a nice red mat", "A"),  # too early for a letter; then the text of the option
        ("a dog and a cat", None),
        ("I would say that what is shown here is surely none of these other things at all, no", None),
        ("", None),
    ],
)
def test_reply(reply, letter):
    assert infer_option(reply, OPTIONS) == letter


def test_the_verbose_rule_needs_the_letter_among_the_options():
    assert infer_option("the answer is D as far as one can possibly see", {"A": "x1", "B": "x2"}) is None


def test_text_only_counts_in_replies_up_to_twice_the_options():
    options = {"A": "cat", "B": "dog"}  # six characters, so twelve at most
    assert infer_option("it is a cat!", options) == "A"
    assert infer_option("it is a cat!!", options) is None


@given(st.text(max_size=60), st.integers(2, 5))
def test_never_more_than_a_letter_or_a_refusal(reply, count):
    options = {letter: f"text {letter}{letter}" for letter in "ABCDE"[:count]}
    assert infer_option(reply, options) in {*options, "Z", None}
