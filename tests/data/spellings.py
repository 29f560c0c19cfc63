"""Real tokenizers that cut the same text in different ways, and the bytes that each token spells."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from genrecal.demo.pair import train_tokenizer

END = "<|im_end|>"  # as in the tiny models' chat templates
PROSE = ("the cat sat on the mat, and the cart was 12 miles off.", "it's a naïve café", "one\n\ntwo\n  three")
WORLD = ("🙂🙂 the 👩‍👩‍👧 sat", "鲁棒性测试。日本語のテキスト", "the the the  the", "é à ñ e\u0301 a\u0300")
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))


def byte_level(corpus: Sequence[str], *, entries: int, compose: bool = False) -> PreTrainedTokenizerFast:
    """The demo's own kind, byte-level BPE over words; with `compose` as Qwen2's, which normalises to NFC."""
    tokenizer = train_tokenizer(corpus, (END,), entries)
    if compose:
        tokenizer.normalizer = normalizers.NFC()
    return _wrap(tokenizer)


def gpt2(corpus: Sequence[str], *, entries: int) -> PreTrainedTokenizerFast:
    """GPT-2's and SmolLM's: a post-processor that leaves spaces out of the offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _wrap(tokenizer)


def metaspace_bpe(corpus: Sequence[str], *, entries: int, lead: bool) -> PreTrainedTokenizerFast:
    """Llama 2's (with a space put before every text) and Gemma's (without): BPE with a fallback to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if lead else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=entries, special_tokens=["<unk>", END, *BYTE_PIECES], show_progress=False
        ),
    )
    return _wrap(_plain_bytes(tokenizer))


def unigram(corpus: Sequence[str], *, entries: int, lead: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's own model, with a fallback to bytes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if lead else "never")
    trainer = trainers.UnigramTrainer(
        vocab_size=entries,
        special_tokens=["<unk>", END, *BYTE_PIECES],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _wrap(_plain_bytes(tokenizer, byte_fallback=True))


def _plain_bytes(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    """The pieces for single bytes as published files have them: plain entries of the vocabulary."""
    settings = json.loads(tokenizer.to_str())
    settings["model"] |= model
    settings["added_tokens"] = [
        entry for entry in settings["added_tokens"] if entry["content"] not in BYTE_PIECES
    ]
    again = Tokenizer.from_str(json.dumps(settings))
    again.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return again


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def gpt2_bytes() -> dict[str, int]:
    """GPT-2's letter for every byte: printable ones stand for themselves, the others follow from 256 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {
        chr(256 + place): value for place, value in enumerate(others)
    }


def spelled(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bytes]:
    """What each token spells, by the rules of its kind; of ids without special tokens."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    if "ByteLevel" in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]):
        letters = gpt2_bytes()
        return [bytes(letters[letter] for letter in token) for token in tokens]
    return [
        bytes([int(token[3:5], 16)]) if re.fullmatch("<0x..>", token) else token.replace("▁", " ").encode()
        for token in tokens
    ]
