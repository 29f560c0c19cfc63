"""How a question is put: the prompts of the benchmarks, word by word, and the replies that they want.

    Question --ask--> Asked (prompt, answer, wrong answer)

The models learn in training what the bench asks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from genrecal.demo.questions import Question

Form = Literal["mmb", "mmmu_choice", "mmmu_open", "choice", "bare"]
FORMS: tuple[Form, ...] = get_args(Form)

OPTION_LETTERS = "ABCD"
MMMU_CHOICE_REPLY = "Of these options the answer is {}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question as one prompt, with the text to learn and a plausible wrong one."""

    prompt: str
    answer: str
    wrong_answer: str


def choices_of(question: Question, rng: random.Random) -> tuple[list[str], int]:
    """Two to four options in random order, and the place of the right one."""
    count = min(rng.choices((2, 3, 4), (3, 4, 3))[0], 1 + len(question.wrong))
    options = [question.truth.short, *(reply.short for reply in rng.sample(question.wrong, count - 1))]
    rng.shuffle(options)
    return options, options.index(question.truth.short)


def mmb_prompt(text: str, options: Sequence[str], hint: str = "") -> str:
    """MMBench as VLMEvalKit asks it."""
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(OPTION_LETTERS, options, strict=False))
    return (
        (f"Hint: {hint}\n" if hint else "")
        + f"Question: {text}\nOptions:\n{lines}"
        + "Please select the correct answer from the options above. \n"
    )


def mmmu_choice_prompt(text: str, options: Sequence[str]) -> str:
    """MMMU's multiple choice."""
    lines = "".join(f"({letter}) {option}\n" for letter, option in zip(OPTION_LETTERS, options, strict=False))
    return f"{text}\n\n{lines}\nAnswer with the option's letter from the given choices directly."


def mmmu_open_prompt(text: str) -> str:
    """MMMU's open questions."""
    return f"{text}\n\nAnswer the question using a single word or phrase."


def hint_for(question: Question) -> str:
    """A hint in the manner of MMBench; it helps, and gives nothing away."""
    return {"chart": "Look at the bars.", "count": "Look at the shapes."}.get(question.skill, "")


def ask(question: Question, form: Form, rng: random.Random) -> Asked:
    """Render a question in one of the forms; the wrong answer is of the same form."""
    wrong = rng.choice(question.wrong)
    if form == "bare":
        return Asked(prompt=question.text, answer=question.truth.explained, wrong_answer=wrong.explained)
    if form == "mmmu_open":
        return Asked(
            prompt=mmmu_open_prompt(question.text), answer=question.truth.short, wrong_answer=wrong.short
        )
    options, right = choices_of(question, rng)
    if form == "mmb":
        prompt = mmb_prompt(question.text, options, hint_for(question) if rng.random() < 0.1 else "")
    elif form == "mmmu_choice":
        prompt = mmmu_choice_prompt(question.text, options)
    else:
        listed = "".join(
            f"\n{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)
        )
        prompt = question.text + listed
    # The option in its own words: models of this size learn what an image shows long before they learn which
    # letter stands before it. Both official parsers take the words, MMMU's in replies of more than five.
    answers = [MMMU_CHOICE_REPLY.format(option) if form == "mmmu_choice" else option for option in options]
    return Asked(
        prompt=prompt,
        answer=answers[right],
        wrong_answer=rng.choice(answers[:right] + answers[right + 1 :]),
    )
