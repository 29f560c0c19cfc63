"""Does a training sample ask what a test set asks? By the pixels of its images and the words of its turns.

same image              equal pixels (check.py): whatever is asked about it
same words, like image  equal words, and an image that looks the same: it was scaled or compressed again
same words              where the sample or the question has no image
(same words about another image is another question, and only counted)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.check import pixel_hash
from genrecal.data.row_images import IMAGE_MARK

# Of the 64 bits of a look; unrelated images differ in about half of them.
LIKE_BITS = 6
# Shorter questions without an image are asked by chance.
FEWEST_WORDS = 6
# Thai, Lao, Myanmar, Khmer, kana and Han put no space between words; of two characters a word, about.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
UNSPACED_PER_WORD = 2
_OPTION = re.compile(r"^\s*\(?[A-H][.):]", re.MULTILINE)
_MENTION = re.compile(r"<image(?: \d+)?>")
_NO_WORD = re.compile(r"[^\w]+")


class Question(Protocol):
    """A question of a test set (bench/images.py, asked.py)."""

    @property
    def name(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def images(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What is remembered of an image."""

    pixels: bytes  # 32 bytes: equal for equal pixels
    look: int  # 64 bits: nearly equal for images that look alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A training sample that a test set asks."""

    test: str
    why: str  # "image", "words and a like image", "words"


def fingerprint(image: Image.Image) -> Fingerprint:
    """Of a decoded RGB image; the look is whether each of 8 x 8 grey cells is brighter than its neighbour."""
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (grey[row * 9 + column] > grey[row * 9 + column + 1])
    return Fingerprint(pixels=bytes.fromhex(pixel_hash(image)), look=bits)


def normalised(text: str) -> str:
    """Words alone, in lower case, without marks of images."""
    plain = unicodedata.normalize("NFKC", _MENTION.sub(" ", text)).casefold()
    return _NO_WORD.sub(" ", plain).strip()


def word_count(words: str) -> int:
    """Of a `normalised` text, about."""
    spaced, unspaced = _UNSPACED.subn(" ", words)
    return len(spaced.split()) + unspaced // UNSPACED_PER_WORD


class TestIndex:
    """Everything that the test sets ask, held in memory: they are small beside training data."""

    __test__ = False  # not one of pytest's

    def __init__(self, questions: Iterable[Question]) -> None:
        """Read all questions and their images.

        Raises:
            DataError: a question's image cannot be used.
        """
        self.questions, self.images = 0, 0
        self._pixels: dict[bytes, str] = {}
        self._words: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        known: dict[str, Fingerprint] = {}
        for question in questions:
            self.questions += 1
            for name, source in question.images.items():
                if name not in known:
                    known[name] = fingerprint(open_image(source, name=name))
                    self._pixels.setdefault(known[name].pixels, name)
            looks = tuple(known[name].look for name in question.images)
            for words in {normalised(text) for text in question.texts} - {""}:
                self._words.setdefault(words, []).append((question.name, looks))
        self.images = len(known)

    def match(self, sample: Sample, prints: Iterable[Fingerprint]) -> Match | None:
        """The strongest reason why `sample` is in a test set; None without one."""
        looks = []
        for one in prints:
            if one.pixels in self._pixels:
                return Match(test=self._pixels[one.pixels], why="image")
            looks.append(one.look)
        for words, (name, tested) in self._same_words(sample):
            if any((look ^ other).bit_count() <= LIKE_BITS for look in looks for other in tested):
                return Match(test=name, why="words and a like image")
            if not (looks and tested) and word_count(words) >= FEWEST_WORDS:
                return Match(test=name, why="words")
        return None

    def asks_the_same(self, sample: Sample) -> bool:
        """Whether a question of the sample has the words of a test question, about whatever image."""
        return any(True for _ in self._same_words(sample))

    def _same_words(self, sample: Sample) -> Iterable[tuple[str, tuple[str, tuple[int, ...]]]]:
        for turn in sample.turns:
            if turn.role == "user":
                for words in _forms(turn.text):
                    for known in self._words.get(words, ()):
                        yield words, known


def _forms(text: str) -> set[str]:
    """A question whole, without its options, and its first line: instructions often follow."""
    bare = text.replace(IMAGE_MARK, " ").strip()
    return {
        normalised(form) for form in (bare, _OPTION.split(bare, maxsplit=1)[0], bare.split("\n", 1)[0])
    } - {""}
