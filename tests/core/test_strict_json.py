"""JSON made to hurt: one meaning or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrecal.core.errors import GenrecalError
from genrecal.core.strict_json import MAX_DEPTH, parse_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(value=VALUES, ascii_only=st.booleans())
def test_what_python_writes_is_read_as_it_was(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), where="x") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 1}', "the key 'a' stands twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b"1e999", "1e999 is too large"),
        (b"1" * 40, "a number of 40 digits"),
        (b"1" * 5000, "a number of 5000 digits"),
        (b'"\\ud800"', "is not valid JSON"),
        (b'{"\\udfff": 1}', "is not valid JSON"),
        (b'"\xff"', "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not valid JSON"),
        (b"[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * 100_000, f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 65 + b"]" * 65, f"nested more than {MAX_DEPTH} deep"),
        (b" " * 2000, "has 2,000 bytes, more than 1,000"),
        (b'{"a": 1}{}', "Extra data"),
        (b"", "is not valid JSON"),
        (b"'a'", "is not valid JSON"),
    ],
)
def test_what_has_two_meanings_or_none(data: bytes, message: str) -> None:
    limit = 1000 if data.isspace() else 10**6
    with pytest.raises(GenrecalError, match=message) as caught:
        parse_json(data, where="x.json", max_bytes=limit)
    assert str(caught.value).startswith("x.json: ") and str(caught.value).isprintable()


def test_brackets_in_texts_are_no_depth() -> None:
    assert parse_json(json.dumps("[{" * 500 + '\\"[').encode(), where="x") == "[{" * 500 + '\\"['
    assert parse_json(b"[" * 64 + b"]" * 64, where="x") is not None
