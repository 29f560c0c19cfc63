"""JSON from a stranger: bounded in size, depth and numbers, and with one meaning only.

Python's own reader takes more than JSON is: of two equal keys the last wins (another reader may take the
first), NaN and Infinity are numbers, half of a surrogate pair is text that cannot be printed, and deep
nesting ends in a RecursionError.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from genrecal.core.errors import GenrecalError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
# A number of more digits is no size, no id and no weight; a float64 has 17.
MAX_DIGITS = 32
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def parse_json(
    data: bytes, *, where: str | Path, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> Any:
    """The value of a JSON text.

    Args:
        data: the text in UTF-8, without a byte order mark.
        where: what an error calls it.
        max_bytes: the longest text.
        max_depth: lists and mappings inside each other.

    Raises:
        GenrecalError: it is no JSON, too long, too deep, names a key twice, or holds a number or a text that
            other readers would not read as the same.
    """
    if len(data) > max_bytes:
        raise GenrecalError(f"has {len(data):,} bytes, more than {max_bytes:,}", where=where)
    depth = 0
    for found in _TOKEN.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
        if depth > max_depth:
            raise GenrecalError(f"is nested more than {max_depth} deep", where=where)
    try:
        # Keys, too, stand in the text as they are: whoever could not encode one again refuses it here.
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeError, ValueError, RecursionError) as error:
        raise GenrecalError(f"is not valid JSON ({_one_line(error)})", where=where) from None
    return value


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one mapping")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if len(digits) > 4 * MAX_DIGITS or not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large or too long")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _one_line(error: Exception) -> str:
    # Of a long or odd text the error shows a part; it must not break the line that it is printed in.
    shown = " ".join(str(error).split())[:200]
    return shown.encode("ascii", "backslashreplace").decode()
