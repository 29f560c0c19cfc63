"""VQA accuracy: a reply against ten annotators, each left out once; answers normalised by whose code.

    mean over the ten answers of min(1, equal ones among the other nine / 3)

The official code leaves everything as it is where all ten answers are the same, the reply too: "Yes" against
ten times "yes" earns nothing. Its full stop goes unless a digit follows, as a look-behind is misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"\d,+\d")  # lmms-eval's
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOP_OF_NO_NUMBER = re.compile(r"(?<!\d)\.(?!\d)")
# All three pass a flag where the count of replacements belongs.
_MOST_STOPS = 32
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
# As the official table has them, mistakes included; words are in lower case by then.
_TABLE = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's
howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll
maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've
mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've
shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've
somebody'd=somebodyd somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll
somebodys=somebody's someoned=someone'd someoned've=someone'd've someone'dve=someone'd've
someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
something'dve=something'd've somethingll=something'll thats=that's thered=there'd
thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd
theyd've=they'd've they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas
wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're
whats=what's whatve=what've whens=when's whered=where'd wheres=where's whereve=where've whod=who'd
whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're
whys=why's wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've
wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll
youre=you're youve=you've
"""
_CONTRACTIONS = dict(pair.split("=") for pair in _TABLE.split())


def official(reply: str, answers: Sequence[str]) -> float:
    """The accuracy as the VQA challenge's code has it.

    Args:
        reply: raw.
        answers: of all annotators.
    """
    golds = [_one_line(answer) for answer in answers]
    said = _one_line(reply)
    if len(set(golds)) > 1:
        golds = [_words(_punctuation(gold, _FULL_STOP, _COMMA_IN_NUMBER)) for gold in golds]
        said = _words(_punctuation(said, _FULL_STOP, _COMMA_IN_NUMBER))
    return _agreement(said, golds)


def vlmevalkit(reply: str, answers: Sequence[str]) -> float:
    """The kit: always normalised; a full stop after a digit stays."""

    def normalised(text: str) -> str:
        return _words(_punctuation(_one_line(text), _FULL_STOP_OF_NO_NUMBER, _COMMA_IN_NUMBER))

    return _agreement(normalised(reply), [normalised(answer) for answer in answers])


def lmms(reply: str, answers: Sequence[str]) -> float:
    """lmms-eval's VQAv2: the official normalisation, always."""
    return _agreement(_challenge(reply), [_challenge(answer) for answer in answers])


def lmms_evalai(reply: str, answers: Sequence[str]) -> float:
    """lmms-eval's OK-VQA and TextVQA: commas and question marks go first, and 's stands apart."""

    def normalised(text: str) -> str:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        return _challenge(text)

    return _agreement(normalised(reply), [normalised(answer) for answer in answers])


Accuracy = Callable[[str, Sequence[str]], float]


def _challenge(text: str) -> str:
    return _words(_punctuation(_one_line(text), _FULL_STOP, _COMMAS_IN_NUMBER))


def _agreement(said: str, golds: Sequence[str]) -> float:
    equal = sum(gold == said for gold in golds)
    return sum(min(1.0, (equal - (gold == said)) / 3) for gold in golds) / len(golds)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, full_stop: re.Pattern[str], comma: re.Pattern[str]) -> str:
    """A mark goes where it stands beside a space or the text has a comma in a number; else it is a space."""
    out = text
    grouped = comma.search(text) is not None
    for mark in _PUNCTUATION:
        goes = grouped or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if goes else " ")
    return full_stop.sub("", out, count=_MOST_STOPS)


def _words(text: str) -> str:
    """Lower case, digits for number words, no articles, apostrophes where they are missing."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
