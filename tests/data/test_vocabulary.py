"""What two processors have in common, found out from their folders without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from genrecal.core.types import Sample, Turn
from genrecal.data.inputs import AnswerForm, answer_form
from genrecal.data.pair import tokenize
from genrecal.data.vocabulary import PROBE, Kinship, kinship, shared_ids, token_bytes
from genrecal.models.processors import load_processor
from tests.data.spellings import END, PROSE, WORLD, byte_level, metaspace_bpe, spelled
from tests.kin import Kin, write_kin
from tests.tiny import TinyPair


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Kin:
    """Folders that lost their weights: nothing here reads them."""
    found = write_kin(tmp_path_factory.mktemp("kin"))
    for folder in (found.twin, found.tiles, found.added):
        (folder / "model.safetensors").unlink()
    return found


def compare(student: Path, teacher: Path) -> Kinship:
    return kinship(load_processor(student), load_processor(teacher))


def test_the_tiny_pair_has_nothing_in_common(tiny_pair: TinyPair) -> None:
    found = compare(tiny_pair.student, tiny_pair.teacher)
    assert (found.same_tokenizer, found.same_token_types) == (False, False)
    assert found.difference
    assert not found.serves(answer_only=False) and not found.serves(answer_only=True)


def test_a_model_has_everything_in_common_with_itself(tiny_pair: TinyPair) -> None:
    for folder in (tiny_pair.student, tiny_pair.teacher):
        assert compare(folder, folder) == Kinship(same_tokenizer=True, same_token_types=True, difference="")


def test_equal_tokenizer_and_tiles(tiny_pair: TinyPair, kin: Kin) -> None:
    """Sizes of the networks, and an embedding that is padded beyond the vocabulary, do not matter."""
    found = compare(kin.twin, tiny_pair.teacher)
    assert found == Kinship(same_tokenizer=True, same_token_types=True, difference="")
    assert found.serves(answer_only=False) and found.serves(answer_only=True)


def test_equal_tokenizer_and_other_image_tokens(tiny_pair: TinyPair, kin: Kin) -> None:
    for one, other in ((kin.tiles, tiny_pair.teacher), (tiny_pair.teacher, kin.tiles)):
        found = compare(one, other)
        assert (found.same_tokenizer, found.same_token_types) == (True, False)
        counts = {folder: _tokens(folder) for folder in (one, other)}
        assert found.difference == (
            f"a question about 64x64 pixels is {counts[one]} and {counts[other]} tokens"
        )
        assert found.serves(answer_only=True) and not found.serves(answer_only=False)


def test_tokens_added_to_one_of_them_do_not_matter(tiny_pair: TinyPair, kin: Kin) -> None:
    """As between Qwen2 and Qwen2.5."""
    tokenizers = [load_processor(folder).tokenizer for folder in (kin.added, tiny_pair.teacher)]
    assert len(tokenizers[0]) == len(tokenizers[1]) + 2
    for one, other in ((kin.added, tiny_pair.teacher), (tiny_pair.teacher, kin.added)):
        assert compare(one, other) == Kinship(same_tokenizer=True, same_token_types=True, difference="")


def test_a_vocabulary_that_differs_where_no_probe_looks(tiny_pair: TinyPair, kin: Kin) -> None:
    """Two entries have changed places: texts of the probe that hold neither cannot tell."""
    student, teacher = load_processor(kin.twin), load_processor(tiny_pair.teacher)
    swapped = student.tokenizer.backend_tokenizer.to_str()
    ids = student.tokenizer.get_vocab()
    probed = {token for text in PROBE for token in student.tokenizer.tokenize(text)}
    one, other = sorted((token for token in ids if token.isascii() and token.isalpha()), key=len)[-2:]
    assert not {one, other} & probed
    marks = (f'"{one}":{ids[one]}', f'"{other}":{ids[other]}')
    assert all(mark in swapped for mark in marks)
    swapped = swapped.replace(marks[0], f'"{one}":{ids[other]}').replace(marks[1], f'"{other}":{ids[one]}')
    backend = student.tokenizer.backend_tokenizer.from_str(swapped)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for name in ("eos_token", "pad_token", "chat_template"):
        setattr(tokenizer, name, getattr(student.tokenizer, name))
    student.tokenizer = tokenizer
    found = kinship(student, teacher)
    assert not found.same_tokenizer and "2 entries of the vocabularies differ" in found.difference


def test_another_end_of_turn_is_another_tokenizer(tiny_pair: TinyPair, kin: Kin) -> None:
    student, teacher = load_processor(kin.twin), load_processor(tiny_pair.teacher)
    student.chat_template = student.chat_template.replace("<|im_end|>", "<|endoftext|>")
    assert answer_form(student) != answer_form(teacher) == AnswerForm(lead="", end_id=2)
    found = kinship(student, teacher)
    assert not found.same_tokenizer and found.difference.startswith("an answer stands in ")


def test_shared_entries_spell_the_same_bytes(tiny_pair: TinyPair) -> None:
    """A byte-level vocabulary against one that writes ▁ for a space and falls back to bytes."""
    student, teacher = byte_level(PROSE, entries=340), metaspace_bpe(PROSE, entries=500, lead=False)
    processors = [load_processor(tiny_pair.teacher) for _ in range(2)]
    for processor, tokenizer in zip(processors, (student, teacher), strict=True):
        processor.tokenizer = tokenizer
    own, other = shared_ids(*processors)
    assert len(own) == len(other) == len(set(own.tolist())) == len(set(other.tolist()))
    assert (own[-1], other[-1]) == (student.eos_token_id, teacher.eos_token_id)
    mine, theirs = spelled(student, own[:-1].tolist()), spelled(teacher, other[:-1].tolist())
    assert mine == theirs
    # Every entry of the one that the other has too, however it writes it.
    texts = {
        name: {spelled(tokenizer, [place])[0] for place in _plain(tokenizer)}
        for name, tokenizer in (("student", student), ("teacher", teacher))
    }
    assert set(mine) == texts["student"] & texts["teacher"]
    assert any(len(part) > 2 and part.startswith(b" ") for part in mine)  # Ġcat and ▁cat


def test_a_byte_is_the_entry_that_the_tokenizer_writes() -> None:
    """`<0x61>` comes first in the vocabulary, but an `a` is never written with it."""
    tokenizer = metaspace_bpe((*PROSE, *WORLD), entries=420, lead=False)
    entries = token_bytes(tokenizer)
    for text in ("a", " ", ".", "é", "🙂"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            assert entries[text.encode()] == ids[0]
    assert entries[b"a"] == tokenizer.convert_tokens_to_ids("a") > tokenizer.convert_tokens_to_ids("<0x61>")
    # Where nothing else spells it, the byte it is.
    assert entries[b"\x00"] == tokenizer.convert_tokens_to_ids("<0x00>")


def _plain(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [place for token, place in tokenizer.get_vocab().items() if token not in ("<unk>", END)]


def _tokens(folder: Path) -> int:
    turns = (Turn(role="user", text="<image>\nWhat is this?"), Turn(role="assistant", text="A test."))
    sample = Sample(id="one", images=(), turns=turns, domain="general_vqa", source="here")
    image = Image.new("RGB", (64, 64))
    return len(tokenize(sample, load_processor(folder), [image], max_tokens=1000).question_ids)
