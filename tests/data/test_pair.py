"""One sample as two token sequences, and batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import Sample, Turn
from genrecal.data.batch import NEVER, collate, collate_one
from genrecal.data.llava import read_llava
from genrecal.data.pair import PairReader, SharedTokens, chat_messages, tokenize
from genrecal.models.processors import load_processor
from tests.tiny import TinyData, TinyPair, write_data


@pytest.fixture(scope="module")
def samples(tiny_data: TinyData) -> tuple[Sample, ...]:
    return tuple(read_llava(tiny_data.path))


@pytest.fixture(scope="module")
def reader(tiny_pair: TinyPair, samples: tuple[Sample, ...]) -> PairReader:
    return PairReader(
        samples,
        student=load_processor(tiny_pair.student),
        teachers=[load_processor(tiny_pair.teacher)],
        max_tokens=512,
    )


def side_of(whole: Any, side: str) -> Any:
    """The student's or the teacher's part of a reader, a paired sample or a paired batch."""
    return whole.student if side == "student" else whole.teachers[0]


def image_tokens(ids: torch.Tensor, processor: Any) -> int:
    return int((ids == processor.image_token_id).sum())


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_ids_decode_back(reader: PairReader, side: str) -> None:
    processor = side_of(reader, side)
    for index, sample in enumerate(reader.samples):
        tokens = side_of(reader[index], side)
        answer = processor.tokenizer.decode(tokens.answer_ids, skip_special_tokens=False)
        assert answer == sample.answer + processor.tokenizer.eos_token
        assert tokens.answer_ids[-1] == processor.tokenizer.eos_token_id
        question = processor.tokenizer.decode(tokens.question_ids, skip_special_tokens=True)
        for turn in sample.turns[:-1]:
            assert turn.text.replace("<image>", "").strip("\n") in question
        assert question.endswith("assistant\n") and sample.answer not in question.split("assistant")[-1]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_question_ids_are_the_processors_own(reader: PairReader, side: str) -> None:
    """One call of `apply_chat_template` that does everything gives the same ids and the same pixels."""
    processor = side_of(reader, side)
    for index in (0, 1, 4, 7):
        sample = reader.samples[index]
        images = iter([open_image(path) for path in sample.images])
        messages = chat_messages(sample)
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = next(images)
        own = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = side_of(reader[index], side)
        assert tokens.question_ids.tolist() == own["input_ids"][0].tolist()
        assert tokens.vision.keys() == own.keys() - {"input_ids", "attention_mask"}
        for name, value in tokens.vision.items():
            assert torch.equal(value, own[name])


def test_the_two_sides_share_nothing_but_the_sample(reader: PairReader) -> None:
    pair = reader[0]
    assert (pair.id, pair.domain) == ("tiny-0", reader.samples[0].domain)
    (teacher,), (processor,) = pair.teachers, reader.teachers
    assert reader.student.tokenizer.get_vocab() != processor.tokenizer.get_vocab()
    counts = (
        image_tokens(pair.student.question_ids, reader.student),
        image_tokens(teacher.question_ids, processor),
    )
    grid = pair.student.vision["image_grid_thw"]
    assert counts == (int(grid.prod(1).sum()) // 4, 4 * len(teacher.vision["pixel_values"]))
    assert counts[0] != counts[1]


def test_a_sample_that_is_too_long_is_an_error(reader: PairReader, samples: tuple[Sample, ...]) -> None:
    images = [open_image(path) for path in samples[0].images]
    tokens = tokenize(samples[0], reader.student, images, max_tokens=512)
    length = len(tokens.question_ids) + len(tokens.answer_ids)
    tokenize(samples[0], reader.student, images, max_tokens=length)
    with pytest.raises(DataError, match=rf"sample 'tiny-0' of .*: has {length} tokens .* max_tokens is"):
        tokenize(samples[0], reader.student, images, max_tokens=length - 1)


def test_a_batch_holds_every_sample_whole(reader: PairReader) -> None:
    rows = [reader[index] for index in (0, 1, 4, 9)]
    batch = collate(rows, student_padding=7, teacher_paddings=[9], teacher_blanks=reader.teacher_blanks)
    assert batch.ids == ("tiny-0", "tiny-1", "tiny-4", "tiny-9") and len(batch.teachers) == 1
    assert batch.domains == tuple(reader.samples[index].domain for index in (0, 1, 4, 9))
    for side, padding in (("student", 7), ("teacher", 9)):
        one = side_of(batch, side)
        for place, row in enumerate(rows):
            tokens = side_of(row, side)
            whole = torch.cat([tokens.question_ids, tokens.answer_ids])
            assert one.input_ids_BS[place, : len(whole)].tolist() == whole.tolist()
            assert set(one.input_ids_BS[place, len(whole) :].tolist()) <= {padding}
            assert int(one.attention_mask_BS[place].sum()) == len(whole)
            assert int(one.question_lengths_B[place]) == len(tokens.question_ids)
            mask_A = one.answer_mask_BA[place]
            assert one.answer_ids_BA[place][mask_A].tolist() == tokens.answer_ids.tolist()
            assert one.answer_ends_BA[place][mask_A].tolist() == tokens.answer_ends.tolist()
            # Padded places end behind every answer, so that a search among the ends never lands on them.
            assert set(one.answer_ends_BA[place][~mask_A].tolist()) <= {NEVER}
        assert one.answer_tokens == sum(len(side_of(row, side).answer_ids) for row in rows)
        pixels = [side_of(row, side).vision["pixel_values"] for row in rows if side_of(row, side).vision]
        assert torch.equal(one.vision["pixel_values"], torch.cat(pixels))


def test_a_batch_of_text_carries_one_hidden_blank_image(reader: PairReader) -> None:
    text = reader[1].student
    assert text.vision == {}
    plain = collate_one([text], padding=7)
    batch = collate_one([text], padding=7, blank=reader.student_blank)
    length = plain.input_ids_BS.shape[1]
    assert plain.vision == {} and torch.equal(batch.input_ids_BS[:, :length], plain.input_ids_BS)
    assert int(batch.attention_mask_BS.sum()) == length == int(plain.attention_mask_BS.sum())
    hidden = image_tokens(batch.input_ids_BS[0, length:], reader.student)
    assert hidden == int(batch.vision["image_grid_thw"].prod()) // 4 > 0
    # A batch that has an image of its own gets none.
    mixed = collate_one([text, reader[0].student], padding=7, blank=reader.student_blank)
    assert len(mixed.vision["image_grid_thw"]) == 1 and int(mixed.attention_mask_BS.sum()) > length


def test_without_a_teacher(tiny_pair: TinyPair, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    reader = PairReader(samples, student=load_processor(tiny_pair.student), max_tokens=512)
    assert len(reader) == len(samples) and reader[0].teachers == ()
    assert collate([reader[0]], student_padding=0).teachers == ()


def test_what_is_kept_is_read_once(tiny_pair: TinyPair, tmp_path: Path) -> None:
    """By the reader that kept it and by others that share with it; what was not kept is read again."""
    data = write_data(tmp_path / "data", samples=3)
    samples = tuple(read_llava(data.path))
    student, teacher = load_processor(tiny_pair.student), load_processor(tiny_pair.teacher)
    shared: SharedTokens = {}

    def reader(keep: int, *teachers: Any, shared: SharedTokens | None = None) -> PairReader:
        return PairReader(
            samples, student=student, teachers=teachers, max_tokens=512, keep=keep, shared=shared
        )

    first = reader(1, teacher, shared=shared)
    before = first[0], first[2]
    for image in (*samples[0].images, *samples[2].images):
        image.unlink()
    assert first[0] is before[0]
    again = reader(1, teacher, shared=shared)[0]
    assert again.student is before[0].student and again.teachers == before[0].teachers
    # A stage without a teacher reads the student's part alone.
    assert reader(1, shared=shared)[0].student is before[0].student
    for fresh in (first, reader(1, teacher, shared=shared)):
        with pytest.raises(DataError, match=r"2\.png"):
            fresh[2]
    with pytest.raises(DataError, match=r"0\.png"):
        reader(1, teacher)[0]


def test_every_teacher_reads_the_sample_in_its_own_way(
    tiny_pair: TinyPair, samples: tuple[Sample, ...], reader: PairReader
) -> None:
    """Two teachers beside the student; one batch holds a Batch for each, in their order."""
    own = load_processor(tiny_pair.student)
    both = PairReader(samples, student=own, teachers=[own, reader.teachers[0]], max_tokens=512)
    rows = [both[index] for index in (1, 4)]
    batch = collate(rows, student_padding=7, teacher_paddings=[7, 9], teacher_blanks=both.teacher_blanks)
    assert torch.equal(batch.teachers[0].input_ids_BS, batch.student.input_ids_BS)
    alone = collate(
        [reader[index] for index in (1, 4)],
        student_padding=7,
        teacher_paddings=[9],
        teacher_blanks=reader.teacher_blanks,
    )
    assert torch.equal(batch.teachers[1].input_ids_BS, alone.teachers[0].input_ids_BS)
    assert not torch.equal(batch.teachers[1].answer_ids_BA, batch.teachers[0].answer_ids_BA)


def test_an_image_token_typed_in_the_text_is_an_error(
    reader: PairReader, samples: tuple[Sample, ...]
) -> None:
    turns = (Turn(role="user", text="What is <|image_pad|>?"), Turn(role="assistant", text="A token."))
    typed = Sample(id="typed", images=(), turns=turns, domain="knowledge", source="here")
    with pytest.raises(
        DataError, match="sample 'typed' of here: has the text '<|image_pad|>'".replace("|", r"\|")
    ):
        tokenize(typed, reader.student, [], max_tokens=512)
