"""Converted tokenizers against the authors' own, and InternLM2's against sentencepiece itself."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, Qwen2Tokenizer

from genrecal.convert.internlm2_tokenizer import read_internlm2
from genrecal.core.errors import ModelError
from tests.convert.conftest import Converted
from tests.convert.reference import DATA

INTERNLM2 = DATA / "internvl2_5_internlm2" / "source"
LETTERS = (
    "aeghinorst AEST  019.,!?<>/_[]\n\t图片里最高的柱子是你书生éü😀👍🏽\u200d\u2581\u00a0\U0001d4b3\u0627"
)


def test_every_text_gets_the_authors_ids(converted: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.folder)
    assert tokenizer.is_fast
    texts = converted.reference.facts["tokenization"]
    assert len(texts) == 25
    assert {text: tokenizer(text).input_ids for text in texts} == texts


def test_spaces_and_letters_survive_decoding(converted: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.folder)
    for text in (" two  spaces ", "图片 and 😀\n\nend", "  "):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens(converted: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.folder)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token is not None
    assert len(tokenizer) <= converted.model().config.text_config.vocab_size
    encoded = tokenizer("a", return_token_type_ids=None)
    assert set(encoded) == {"input_ids", "attention_mask"}
    settings = json.loads((converted.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in settings


def test_the_slow_qwen2_tokenizer_reads_the_folder_too(converted_folders: dict[str, Converted]) -> None:
    converted = converted_folders["internvl2_5_qwen2"]
    slow = Qwen2Tokenizer.from_pretrained(converted.folder)
    texts = converted.reference.facts["tokenization"]
    assert {text: slow(text).input_ids for text in texts} == texts


def test_internlm2_merges_as_sentencepiece_does() -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=str(INTERNLM2 / "tokenizer.model"))
    settings = json.loads((INTERNLM2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = read_internlm2(INTERNLM2 / "tokenizer.model", settings)
    random.seed(0)
    corpus = json.loads((INTERNLM2.parent / "reference.json").read_text(encoding="utf-8"))
    words = "".join(case["prompt"].replace("<IMG_CONTEXT>", "") for case in corpus["cases"].values()).split()
    for _ in range(500):
        text = "".join(
            random.choice([random.choice(LETTERS), random.choice(words)[:6], " "])
            for _ in range(random.randint(0, 30))
        )
        if any(token in text for token in settings["additional_special_tokens"]):
            continue
        assert tokenizer.encode(text, add_special_tokens=False).ids == peer.encode(text), repr(text)
        assert tokenizer.encode(text).ids[:1] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proto: setattr(proto.normalizer_spec, "add_dummy_prefix", True), "puts a space before"),
        (lambda proto: setattr(proto.normalizer_spec, "remove_extra_whitespaces", True), "removes spaces"),
        (lambda proto: setattr(proto.normalizer_spec, "precompiled_charsmap", b"x"), "normalisation table"),
        (lambda proto: setattr(proto.trainer_spec, "byte_fallback", False), "no byte fallback"),
        (lambda proto: setattr(proto.trainer_spec, "model_type", 1), "is no BPE model"),
        (lambda proto: setattr(proto.pieces[-1], "type", 5), "has unused pieces"),
        (lambda proto: setattr(proto.pieces[-1], "piece", proto.pieces[-2].piece), "the same name"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(
    tmp_path: Path, change: object, message: str
) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((INTERNLM2 / "tokenizer.model").read_bytes())
    change(proto)  # type: ignore[operator]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=message):
        read_internlm2(path, {})


def test_a_file_that_is_no_sentencepiece_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such tokenizer file"):
        read_internlm2(tmp_path / "tokenizer.model", {})
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 50)
    with pytest.raises(ModelError, match="no sentencepiece model"):
        read_internlm2(tmp_path / "tokenizer.model", {})


def test_added_tokens_with_a_gap_are_refused(tmp_path: Path) -> None:
    shutil.copy(INTERNLM2 / "tokenizer.model", tmp_path)
    settings = json.loads((INTERNLM2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    last = max(settings["added_tokens_decoder"], key=int)
    settings["added_tokens_decoder"]["9999"] = settings["added_tokens_decoder"].pop(last)
    with pytest.raises(ModelError, match="cannot have the id 9999"):
        read_internlm2(tmp_path / "tokenizer.model", settings)
