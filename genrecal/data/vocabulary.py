"""Two tokenizers side by side: are they equal, do they read images alike, which entries do they share?

Everything is asked of the processors alone; no weights are loaded. Entries are compared by the bytes that
they stand for, since vocabularies write the same bytes in different ways (a space is Ġ here and ▁ there).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.convert_slow_tokenizer import bytes_to_unicode

from genrecal.core.types import Sample, Turn
from genrecal.data.inputs import answer_form
from genrecal.data.pair import tokenize

# Words, digits, spaces, punctuation, accents, scripts without spaces and characters of four bytes.
PROBE = (
    "The quick brown fox, 1234567890 times: it's 3.14 %!\n\n\tdef f(x):  return x**2  # naïve café",
    "鲁棒性测试。日本語のテキスト 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦 emoji ∑∫√ x²≤y³ <b>tag</b> {json: [1, 2]}",
)
PROBE_SIZES = ((64, 64), (448, 448), (900, 300), (301, 747))
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinship:
    """What a student and a teacher have in common, and the first difference that was found."""

    same_tokenizer: bool
    same_token_types: bool
    difference: str

    def serves(self, *, answer_only: bool) -> bool:
        """Whether a method that compares distributions token by token can serve the pair."""
        return self.same_token_types or (answer_only and self.same_tokenizer)


def kinship(student: Any, teacher: Any) -> Kinship:
    """Compare two processors by what they make of text and of images of several sizes."""
    own, other = answer_form(student), answer_form(teacher)
    if own != other:
        difference = f"an answer stands in {own} and in {other}"
    else:
        difference = _tokenizer_difference(student.tokenizer, teacher.tokenizer)
    if difference:
        return Kinship(same_tokenizer=False, same_token_types=False, difference=difference)
    for width, height in PROBE_SIZES:
        ids, other_ids = (_question(processor, width, height) for processor in (student, teacher))
        if not torch.equal(ids, other_ids):
            difference = f"a question about {width}x{height} pixels is {len(ids)} and {len(other_ids)} tokens"
            if len(ids) == len(other_ids):
                difference += ", but other ones"
            return Kinship(same_tokenizer=True, same_token_types=False, difference=difference)
    return Kinship(same_tokenizer=True, same_token_types=True, difference="")


def _tokenizer_difference(student: Any, teacher: Any) -> str:
    for text in PROBE:
        own, other = (part(text, add_special_tokens=False)["input_ids"] for part in (student, teacher))
        if own != other:
            return f"'{text[:24]}…' is {len(own)} and {len(other)} tokens, or other ones"
    own, other = (_plain_vocabulary(part) for part in (student, teacher))
    unequal = {token for token in own.keys() | other.keys() if own.get(token) != other.get(token)}
    return f"{len(unequal):,} entries of the vocabularies differ, '{min(unequal)}' for one" if unequal else ""


def _plain_vocabulary(tokenizer: Any) -> dict[str, int]:
    """The vocabulary without added tokens, of which each model has its own."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return {token: place for token, place in tokenizer.get_vocab().items() if token not in added}


def _question(processor: Any, width: int, height: int) -> torch.Tensor:
    turns = (Turn(role="user", text="<image>\nWhat is this?"), Turn(role="assistant", text="A test."))
    sample = Sample(id="probe", images=(), turns=turns, domain="general_vqa", source="probe")
    image = Image.new("RGB", (width, height), (127, 127, 127))
    return tokenize(sample, processor, [image], max_tokens=1 << 20).question_ids


def shared_ids(student: Any, teacher: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries that both processors' tokenizers have: the student's ids and the teacher's, [M] each."""
    own, other = token_bytes(student.tokenizer), token_bytes(teacher.tokenizer)
    shared = sorted(own.keys() & other.keys())
    ids = [(own[key], other[key]) for key in shared]
    ids.append((answer_form(student).end_id, answer_form(teacher).end_id))
    return torch.tensor([pair[0] for pair in ids]), torch.tensor([pair[1] for pair in ids])


def token_bytes(tokenizer: Any) -> dict[bytes, int]:
    """The bytes of every plain entry; of equal ones the first id.

    An entry that a vocabulary falls back on for a single byte comes after the one that spells it: `A` is
    written as `A` and never as `<0x41>`.
    """
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {decoder.get("type")} | {part.get("type") for part in decoder.get("decoders", [])}
    byte_level = {mark: value for value, mark in bytes_to_unicode().items()} if "ByteLevel" in kinds else None
    entries: dict[bytes, int] = {}
    plain = _plain_vocabulary(tokenizer).items()
    for token, place in sorted(plain, key=lambda entry: (BYTE.fullmatch(entry[0]) is not None, entry[1])):
        entries.setdefault(_bytes_of(token, byte_level), place)
    return entries


def _bytes_of(token: str, byte_level: dict[str, int] | None) -> bytes:
    if byte_level is not None and all(mark in byte_level for mark in token):
        return bytes(byte_level[mark] for mark in token)
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
