"""Do a model's weights, tokenizer and chat template belong together? Asked without any sample.

An error means that the model cannot be used like this, a warning that it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from genrecal.data.inputs import PROBE, answer_form, placeholders

# How templates write the tokens that frame turns. Words in brackets alone, as [INST], are plain text in some.
# DeepSeek's have full-width bars.
MARK = re.compile("<[|\uff5c][^|\uff5c<>\\s]{1,40}[|\uff5c]>|<(?:start|end)_of_\\w{1,20}>")

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong, or may be, with one of the models as it is used."""

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVocabulary:
    """What a model's weights and configs say of token ids."""

    embedding_rows: int
    head_rows: int
    image_token_id: int | None
    end_ids: tuple[int, ...]  # that end generation; empty where no config says


def template_findings(processor: Any, vocabulary: ModelVocabulary) -> list[Finding]:
    """What is wrong with a processor's tokenizer and chat template for a model, whatever the samples."""
    return [
        *_vocabulary_findings(processor.tokenizer, vocabulary),
        *_image_token_findings(processor, vocabulary),
        *_turn_findings(processor, vocabulary),
    ]


def _vocabulary_findings(tokenizer: Any, vocabulary: ModelVocabulary) -> Iterator[Finding]:
    rows = vocabulary.embedding_rows
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    beyond = {token: place for token, place in tokenizer.get_vocab().items() if place >= rows}
    plain = sorted(beyond.keys() - added)
    if plain:
        yield Finding(
            level="error",
            what=f"its tokenizer has {len(plain):,} entries beyond the model's {rows:,} embeddings,"
            f" '{plain[0]}' for one: it is another model's",
            fix="Take tokenizer and weights from one checkpoint",
        )
    elif beyond:
        yield Finding(
            level="warning",
            what=f"its tokenizer has {len(beyond):,} added tokens beyond the model's {rows:,} embeddings,"
            f" '{min(beyond)}' for one: a text that holds one cannot be read",
        )
    if tokenizer.pad_token_id is None:
        yield Finding(level="error", what="its tokenizer has no padding token", fix="Set pad_token")


def _image_token_findings(processor: Any, vocabulary: ModelVocabulary) -> Iterator[Finding]:
    tokenizer = processor.tokenizer
    first, *_ = texts = placeholders(processor)
    for text in texts:
        if not _is_one_token(tokenizer, text):
            yield Finding(
                level="error",
                what=f"its tokenizer has no token '{text}', which stands for an image",
                fix="Take tokenizer and processor from one checkpoint",
            )
    own = tokenizer.convert_tokens_to_ids(first)
    if vocabulary.image_token_id is not None and own != vocabulary.image_token_id:
        yield Finding(
            level="error",
            what=f"'{first}' is token {own} for its tokenizer, and the model puts images at token"
            f" {vocabulary.image_token_id}: they would reach it nowhere",
            fix="Take tokenizer and weights from one checkpoint",
        )


def _turn_findings(processor: Any, vocabulary: ModelVocabulary) -> Iterator[Finding]:
    tokenizer = processor.tokenizer
    try:
        form = answer_form(processor)
        whole = processor.apply_chat_template([_turn("user"), _turn("assistant")])
    except Exception as error:  # whatever a template of somebody else's makes jinja raise
        message = " ".join(str(error).split())[:300]
        yield Finding(level="error", what=f"its chat template writes no answer ({message})")
        return
    for mark in sorted(set(MARK.findall(whole))):
        if not _is_one_token(tokenizer, mark):
            count = len(tokenizer(mark, add_special_tokens=False)["input_ids"])
            yield Finding(
                level="error",
                what=f"its chat template writes '{mark}', which its tokenizer cuts into {count} tokens:"
                " one of the two is another model's",
                fix="Take chat template and tokenizer from one checkpoint",
            )
    framing = set(tokenizer(form.lead, add_special_tokens=False)["input_ids"]) & set(
        tokenizer.all_special_ids
    )
    if framing or MARK.search(form.lead):
        yield Finding(
            level="error",
            what=f"its prompt does not end where the model starts to answer: the chat template puts"
            f" '{form.lead.strip()}' between the two",
            fix="Give the template an add_generation_prompt that writes this",
        )
    if vocabulary.end_ids and form.end_id not in vocabulary.end_ids:
        known = ", ".join(f"'{tokenizer.convert_ids_to_tokens(one)}'" for one in vocabulary.end_ids)
        yield Finding(
            level="warning",
            what=f"its template ends a turn with '{tokenizer.convert_ids_to_tokens(form.end_id)}', and its"
            f" generation_config stops at {known}",
        )


def _is_one_token(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def _turn(role: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": PROBE}]}
