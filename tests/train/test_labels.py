"""The teacher's answers as labels: greedy, kept through a kill, looked up by what is asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.images import open_image
from genrecal.core.types import Sample, Turn
from genrecal.data.inputs import encode_prompt
from genrecal.data.llava import read_llava
from genrecal.data.pair import chat_messages
from genrecal.models.processors import load_model, load_processor
from genrecal.train.label_store import Labels, label_key
from genrecal.train.labels import Relabelled, teacher_labels
from genrecal.train.settings import RunConfig
from tests.tiny import TinyData, TinyPair

pytestmark = pytest.mark.usefixtures("one_rank")

LENGTH = 6
JOURNAL = "labels-journal/rank-0.jsonl"
TABLE = ("keys.npy", "offsets.npy", "answers.bin")


@pytest.fixture(scope="module")
def samples(tiny_data: TinyData) -> tuple[Sample, ...]:
    """Twelve, with no, one and two images, and questions of different lengths."""
    return tuple(read_llava(tiny_data.path))[:12]


def config(
    output: Path,
    pair: TinyPair,
    *,
    teachers: list[dict[str, Any]] | None = None,
    batch: int = 5,
    keep_unended: bool = True,
) -> RunConfig:
    named = {"teachers": teachers} if teachers else {"teacher": pair.teacher}
    output.mkdir(parents=True, exist_ok=True)
    return RunConfig.model_validate(
        {
            "method": "genrecal" if teachers else "seqkd",
            "labels": "teacher",
            "student": pair.student,
            "output": output,
            "data": {"sources": [{"path": "unread.json"}]},
            "relabel": {"batch": batch, "max_new_tokens": LENGTH, "keep_unended": keep_unended},
            "engine": {"zero_stage": 0, "precision": "fp32"},
            "preflight": {"mode": "off"},  # no sources, and weights that nobody trained
        }
        | named
    )


def greedy(folder: Path, sample: Sample) -> str:
    text = load_processor(folder).tokenizer.decode(greedy_ids(folder, sample), skip_special_tokens=True)
    return text.strip()


@torch.no_grad()
def greedy_ids(folder: Path, sample: Sample) -> list[int]:
    """Without padding, cache or `generate`: the likeliest token, LENGTH times or until the turn ends."""
    model, processor = load_model(folder), load_processor(folder)
    prompt = encode_prompt(processor, chat_messages(sample), [open_image(image) for image in sample.images])
    ids = prompt.ids
    for _ in range(LENGTH):
        logits = model(input_ids=ids[None], use_cache=False, **prompt.vision).logits
        ids = torch.cat([ids, logits[0, -1].argmax()[None]])
        if ids[-1] == processor.tokenizer.eos_token_id:
            break
    return ids[len(prompt.ids) :].tolist()


@pytest.fixture(scope="module")
def written(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with the teacher's labels."""
    folder = tmp_path_factory.mktemp("written")
    teacher_labels(config(folder, tiny_pair), samples)
    return folder


def table(run: Path) -> list[bytes]:
    return [(run / "labels" / name).read_bytes() for name in TABLE]


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_labels_are_the_greedy_answers_one_by_one(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path, side: str
) -> None:
    """Padding on the left moves none of them, in a family with plain positions and in one with three."""
    pair = TinyPair(teacher=getattr(tiny_pair, side), student=tiny_pair.student)
    labels = teacher_labels(config(tmp_path / "run", pair, batch=12), samples)
    answers = [labels.answer(sample) for sample in samples]
    assert answers == [greedy(pair.teacher, sample) for sample in samples]
    assert len(set(answers)) > 3


def test_batches_change_nothing(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], written: Path, tmp_path: Path
) -> None:
    teacher_labels(config(tmp_path, tiny_pair, batch=1), samples)
    assert table(tmp_path) == table(written)


def test_finished_labels_are_not_made_again(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], written: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    labels = teacher_labels(config(written, tiny_pair), samples)
    assert len(labels) == len({label_key(sample) for sample in samples})
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.62, 1.0])
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_killed_run_goes_on_behind_its_journal(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], written: Path, tmp_path: Path, kept: float, cut: int
) -> None:
    """The journal ends within a line, or right before its newline: nothing is lost, nothing asked again."""
    lines = (written / JOURNAL).read_text().splitlines(keepends=True)
    whole = "".join(lines[: round(kept * len(lines))])
    path = tmp_path / JOURNAL
    path.parent.mkdir()
    path.write_text(whole[: len(whole) - cut])
    before = whole[: len(whole) - cut].splitlines()
    teacher_labels(config(tmp_path, tiny_pair), samples)
    assert table(tmp_path) == table(written)
    after = path.read_text().splitlines()
    assert after[: len(before)] == before
    done, new = ({row["key"] for row in map(read, part) if row} for part in (before, after[len(before) :]))
    assert not done & new and done | new == {label_key(sample) for sample in samples}


def read(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def test_what_stands_in_the_journal_is_not_asked_again(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / JOURNAL
    path.parent.mkdir()
    path.write_text(json.dumps({"key": label_key(samples[3]), "answer": "from before ✓"}) + "\n")
    labels = teacher_labels(config(tmp_path, tiny_pair), samples)
    assert labels.answer(samples[3]) == "from before ✓"
    assert labels.answer(samples[2]) != "from before ✓"


def test_an_empty_answer_keeps_the_given_one(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / JOURNAL
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"key": label_key(one), "answer": ""}) + "\n" for one in samples[:2]))
    labels = teacher_labels(config(tmp_path, tiny_pair), samples)
    relabelled = Relabelled(samples, labels)
    assert len(relabelled) == len(samples)
    for index, sample in enumerate(samples):
        found = relabelled[index]
        if index < 2:
            assert found == sample and labels.answer(sample) == ""
        else:
            assert found.answer == labels.answer(sample) != sample.answer
            assert replace(found, turns=sample.turns) == sample and found.turns[:-1] == sample.turns[:-1]


@torch.no_grad()
def test_an_answer_that_does_not_end_keeps_the_given_one(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    """A teacher that ends its turn where it would have said the third token of its first answer."""
    model, end_id = load_model(tiny_pair.teacher), load_processor(tiny_pair.teacher).tokenizer.eos_token_id
    rows = model.get_output_embeddings().weight
    rows[end_id] = 1.05 * rows[greedy_ids(tiny_pair.teacher, samples[0])[2]]
    ending = TinyPair(teacher=tmp_path / "teacher", student=tiny_pair.student)
    shutil.copytree(tiny_pair.teacher, ending.teacher)
    model.save_pretrained(ending.teacher)
    labels = teacher_labels(config(tmp_path / "run", ending, keep_unended=False), samples)
    ended = [greedy_ids(ending.teacher, sample)[-1] == end_id for sample in samples]
    assert set(ended) == {True, False}
    for sample, has_ended in zip(samples, ended, strict=True):
        assert labels.answer(sample) == (greedy(ending.teacher, sample) if has_ended else "")


def test_nothing_but_empty_answers_is_a_table_too(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / JOURNAL
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"key": label_key(one), "answer": ""}) + "\n" for one in samples))
    relabelled = Relabelled(samples, teacher_labels(config(tmp_path, tiny_pair), samples))
    assert [relabelled[index] for index in range(len(samples))] == list(samples)


def test_a_label_belongs_to_what_is_asked(samples: tuple[Sample, ...], written: Path) -> None:
    labels = Labels(written / "labels")
    several = next(sample for sample in samples if len(sample.turns) > 2)
    # Another given answer, another id, another order: the same question.
    other = replace(several, id="other", turns=(*several.turns[:-1], Turn(role="assistant", text="else")))
    assert labels.answer(other) == labels.answer(several)
    # Another image or another turn before it: another question, which was never asked.
    earlier = replace(several, turns=(replace(several.turns[0], text="?"), *several.turns[1:]))
    pictured = replace(next(sample for sample in samples if sample.images), images=(Path("elsewhere.png"),))
    assert len({label_key(one) for one in (several, earlier, pictured)}) == 3
    for unknown in (earlier, pictured):
        with pytest.raises(DataError, match=r"has no label for sample .* delete this folder"):
            labels.answer(unknown)


def test_damaged_labels_are_refused(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], written: Path, tmp_path: Path
) -> None:
    teacher_labels(config(tmp_path, tiny_pair), samples)
    text = tmp_path / "labels" / "answers.bin"
    text.write_bytes(b"x" + text.read_bytes()[1:])
    with pytest.raises(GenrecalError, match=r"answers\.bin"):
        Labels(tmp_path / "labels")


def test_the_first_teacher_that_teaches_a_domain_answers(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    teachers = [
        {"path": tiny_pair.teacher, "domains": ["knowledge"]},
        {"path": tiny_pair.student, "domains": ["knowledge", "science_math"]},
    ]
    labels = teacher_labels(config(tmp_path, tiny_pair, teachers=teachers), samples)
    by_domain = {"knowledge": tiny_pair.teacher, "science_math": tiny_pair.student}
    assert {sample.domain for sample in samples} > set(by_domain)
    for sample in samples:
        folder = by_domain.get(sample.domain)
        assert labels.answer(sample) == (greedy(folder, sample) if folder else "")
