"""The demo's data on disk: training sets as LLaVA conversations, test sets in the benchmarks' file formats.

Every image and question is drawn anew from a seed and the name of its split, so the streams of two splits
never meet; `genrecal data check` compares the pixels on top.
"""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from genrecal.core.files import atomic_folder, write_bytes, write_json, write_text
from genrecal.demo.drawings import Layout, Split, compose, render
from genrecal.demo.prompts import OPTION_LETTERS, Form, ask, choices_of, hint_for
from genrecal.demo.questions import Question, questions_about
from genrecal.demo.skills import SKILLS

# Kind of drawing -> its share of the images.
SHARES = {
    "single": 0.20,
    "scene": 0.26,
    "compare": 0.10,
    "bars": 0.14,
    "text": 0.08,
    "letter": 0.07,
    "digit": 0.07,
    "sum": 0.05,
    "number": 0.03,
}
# Of the kinds that have a wide form; about a sixth of all images.
WIDE_SHARE = 0.25
# Form of the question -> its share, for questions that can be asked in every form.
FORM_SHARES: dict[Form, float] = {
    "bare": 0.32,
    "mmmu_open": 0.18,
    "mmb": 0.28,
    "mmmu_choice": 0.16,
    "choice": 0.06,
}
CIRCULAR_OFFSET = 10**6
MMMU_IMAGES = 7
# Thousands of small files: speed matters more than their size.
PNG_LEVEL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One drawn image and what it shows."""

    image: Image.Image
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSets:
    """Where the three test sets lie."""

    __test__ = False  # the name is no test's

    mmb: Path  # a TSV
    mmvet: Path  # a folder with mm-vet.json and images/
    mmmu: Path  # a folder with one folder for every subject, a parquet file in each


def draw(rng: random.Random, split: Split) -> Drawing:
    """One random drawing of a split."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    layout = compose(kind, rng, wide=rng.random() < WIDE_SHARE, split=split)
    return Drawing(image=render(layout, rng), layout=layout)


def drawings(seed: int, split: Split) -> Iterator[Drawing]:
    """An endless stream of drawings, the same for equal arguments."""
    rng = random.Random(f"drawings {split} {seed}")
    while True:
        yield draw(rng, split)


def corpus(seed: int, samples: int = 20_000) -> Iterator[str]:
    """Prompts and answers to learn a tokenizer from; nothing is rendered for it."""
    rng = random.Random(f"corpus {seed}")
    for _ in range(samples):
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        layout = compose(kind, rng, wide=rng.random() < WIDE_SHARE, split="pretrain")
        question = questions_about(layout, rng)[0]
        asked = ask(question, _form(question, rng), rng)
        yield f"user\n{asked.prompt}"
        yield f"assistant\n{asked.answer}"


def write_training_set(
    folder: Path,
    *,
    seed: int,
    images: int,
    split: Split,
    wrong_answers: float = 0.0,
    questions: tuple[int, int] = (2, 3),
) -> Path:
    """Draw a training set: `folder`/images/*.png and, last, `folder`/conversations.json.

    Args:
        folder: created where it is missing; a set of the same name in it is replaced.
        seed: another seed gives another set.
        images: the number of images.
        split: "pretrain" or "distill": handwritten digits of one are not in the other.
        wrong_answers: share of the samples whose answer is a plausible wrong one of the same kind and form.
        questions: the least and the most questions about one image.

    Returns: the path of the JSON, a list of LLaVA conversations; mislabelled rows say so in a field that no
        reader of LLaVA data looks at.
    """
    rng = random.Random(f"training {split} {seed}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "conversations.json"
    path.unlink(missing_ok=True)  # without it the folder is no set while its images are being replaced
    rows: list[dict[str, Any]] = []
    for number in range(images):
        drawing = draw(rng, split)
        name = f"images/{number:06d}.png"
        # The JSON is what makes the folder a set, and it is written last: no fsync for every small file.
        drawing.image.save(folder / name, compress_level=PNG_LEVEL)
        asked_about = questions_about(drawing.layout, rng)[: rng.randint(*questions)]
        for place, question in enumerate(asked_about):
            asked = ask(question, _form(question, rng), rng)
            mislabelled = rng.random() < wrong_answers
            row = {
                "id": f"{split}-{seed}-{number:06d}-{place}",
                "image": name,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{asked.prompt}"},
                    {"from": "gpt", "value": asked.wrong_answer if mislabelled else asked.answer},
                ],
                "domain": SKILLS[question.skill].domain,
            }
            rows.append({**row, "mislabelled": True} if mislabelled else row)
    write_json(path, rows)
    return path


def write_test_sets(folder: Path, *, seed: int, questions: int = 300) -> TestSets:
    """Draw the three test sets, each of `questions` questions about as many images of its own.

    Returns: `folder`/mmbench.tsv, `folder`/mm-vet and `folder`/mmmu.
    """
    sets = TestSets(mmb=folder / "mmbench.tsv", mmvet=folder / "mm-vet", mmmu=folder / "mmmu")
    _write_mmbench(sets.mmb, random.Random(f"mmbench {seed}"), questions)
    with atomic_folder(sets.mmvet) as target:
        _write_mmvet(target, random.Random(f"mm-vet {seed}"), questions)
    with atomic_folder(sets.mmmu) as target:
        _write_mmmu(target, random.Random(f"mmmu {seed}"), questions)
    return sets


def _form(question: Question, rng: random.Random) -> Form:
    if not question.has_short:
        return "bare"
    return rng.choices(list(FORM_SHARES), list(FORM_SHARES.values()))[0]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _asked(rng: random.Random, count: int) -> Iterator[tuple[int, Drawing, list[Question]]]:
    """`count` test drawings, numbered from 1, with the questions about each in random order."""
    for number in range(1, count + 1):
        drawing = draw(rng, "test")
        yield number, drawing, questions_about(drawing.layout, rng)


def _first_short(questions: list[Question]) -> Question:
    return next(question for question in questions if question.has_short)


def _write_mmbench(path: Path, rng: random.Random, count: int) -> None:
    """MMBench's TSV: every question in each rotation of its options; only the first row holds the image."""
    main: list[dict[str, Any]] = []
    turned: list[dict[str, Any]] = []
    for number, drawing, questions in _asked(rng, count):
        question = _first_short(questions)
        options, right = choices_of(question, rng)
        skill = SKILLS[question.skill]
        for turn in range(len(options)):
            row = {
                "index": number + turn * CIRCULAR_OFFSET,
                "question": question.text,
                "hint": hint_for(question) if number % 10 == 0 else "",
                **dict.fromkeys(OPTION_LETTERS, ""),
                **dict(zip(OPTION_LETTERS, options[turn:] + options[:turn], strict=False)),
                "answer": OPTION_LETTERS[(right - turn) % len(options)],
                "category": skill.category,
                "l2-category": skill.l2_category,
                "split": "dev",
                "image": str(number) if turn else base64.b64encode(_png(drawing.image)).decode("ascii"),
            }
            (turned if turn else main).append(row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(main[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(main + turned)
    write_text(path, stream.getvalue())


def _write_mmvet(folder: Path, rng: random.Random, count: int) -> None:
    """MM-Vet's JSON and images: open questions, answered by a description or a sentence."""
    (folder / "images").mkdir()
    rows: dict[str, dict[str, Any]] = {}
    for number, drawing, questions in _asked(rng, count):
        # Every other question is the one of its drawing that takes the longest answer.
        question = max(questions, key=lambda q: len(q.truth.explained)) if number % 2 else questions[0]
        name = f"v1_{number}"
        drawing.image.save(folder / "images" / f"{name}.png")
        rows[name] = {
            "imagename": f"{name}.png",
            "question": question.text,
            "answer": _reference(question),
            "capability": list(SKILLS[question.skill].capabilities),
        }
    write_json(folder / "mm-vet.json", rows)


def _reference(question: Question) -> str:
    """The right answer in MM-Vet's notation: a fact alone, or every part of a longer answer.

    A fact stands alone only where no wrong explanation names it on the way.
    """
    short, explained = question.truth.short, question.truth.explained.rstrip(".")
    parts = explained.split(", ")
    named = any(f" {short}" in reply.explained.rstrip(".").replace(",", "") for reply in question.wrong)
    return short if short and not named and len(parts) <= 2 else "<AND>".join(parts)


def _write_mmmu(folder: Path, rng: random.Random, count: int) -> None:
    """MMMU's parquet files, one for every subject; two questions of three are multiple choice."""
    # Imported here: pyarrow comes with the bench, and training sets are written without it.
    import pyarrow
    import pyarrow.parquet

    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts = ("id", "question", "options", "explanation")
    more = ("img_type", "answer", "topic_difficulty", "question_type", "subfield")
    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in texts]
        + [(f"image_{number}", image_type) for number in range(1, MMMU_IMAGES + 1)]
        + [(name, pyarrow.string()) for name in more]
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, drawing, questions in _asked(rng, count):
        question = _first_short(questions)
        subject = SKILLS[question.skill].subject
        of_subject = rows.setdefault(subject, [])
        name = f"validation_{subject}_{len(of_subject) + 1}"
        options: list[str] = []
        answer = question.truth.short
        if number % 3:
            options, right = choices_of(question, rng)
            answer = OPTION_LETTERS[right]
        of_subject.append(
            {
                "id": name,
                "question": f"<image 1>\n{question.text}",
                "options": str(options),
                "explanation": question.truth.explained,
                **dict.fromkeys(f"image_{place}" for place in range(2, MMMU_IMAGES + 1)),
                "image_1": {"bytes": _png(drawing.image), "path": f"{name}_1.png"},
                "img_type": "['Plots and Charts']"
                if drawing.layout.kind == "bars"
                else "['Icons and Symbols']",
                "answer": answer,
                "topic_difficulty": "Easy",
                "question_type": "multiple-choice" if options else "open",
                "subfield": drawing.layout.kind,
            }
        )
    for subject, of_subject in sorted(rows.items()):
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(of_subject, schema=schema), stream)
        write_bytes(folder / subject / "validation-00000-of-00001.parquet", stream.getvalue())
