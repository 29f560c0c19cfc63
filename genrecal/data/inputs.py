"""What a VLM's processor makes of a prompt and its images, in one form for all families.

    messages, images --(processor, chat template)--> ids [Q], inputs per token [Q], vision tensors

The prompt is the processor's own, as it is for generation: it ends where the model would start to answer.
Vision tensors are whatever the family's model takes beside the ids; those of several samples are joined along
their first dimension (images, tiles, patches or samples) and padded with zeros along the others. The models
tell padding apart: Idefics3 by tiles that are zero throughout, LLaVA-OneVision by the images' sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from genrecal.core.errors import ModelError
from genrecal.models.families import family_of_processor

# Names that transformers' processors give to inputs with an entry for every token, beside the attention mask.
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
BLANK_PX = 28
# Stands for an answer when the chat template is asked what it puts around one.
PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as one VLM reads it."""

    ids: torch.Tensor  # [Q]
    token_inputs: dict[str, torch.Tensor]  # [Q] each; what some families read beside the ids
    vision: dict[str, torch.Tensor]  # pixel_values and what goes with them; empty for text alone


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What a chat template puts around an answer."""

    lead: str  # between the prompt's end and the answer: a space after "Assistant:", mostly nothing
    end_id: int  # the token that ends the turn


def encode_prompt(
    processor: Any, messages: Sequence[dict[str, Any]], images: Iterable[Image.Image]
) -> Prompt:
    """The prompt that `processor` gives its model to generate an answer from.

    Args:
        processor: of a family in FAMILIES.
        messages: turns in the form of chat templates; an entry `{"type": "image"}` takes the next image.
        images: in the order of those entries.
    """
    following = iter(images)
    filled = [
        {
            "role": message["role"],
            "content": [
                {**part, "image": next(following)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    encoded = processor.apply_chat_template(
        filled,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        # Processors guess it, and take an image 1 or 3 pixels high for one with its channels first.
        input_data_format="channels_last",
    )
    entries = {name: value for name, value in encoded.items() if name != "attention_mask"}
    ids = entries.pop("input_ids")[0]
    return Prompt(
        ids=ids,
        token_inputs={name: entries.pop(name)[0] for name in PER_TOKEN if name in entries},
        vision=entries,
    )


def blank_prompt(processor: Any) -> Prompt:
    """A prompt with the smallest image that says nothing (batch.py says what for).

    White, as Idefics3 takes a tile that is zero after normalisation for padding.

    Raises:
        ModelError: chat template and processor do not fit each other.
    """
    smallest = copy.copy(processor)
    smallest.image_processor = copy.copy(processor.image_processor)
    for name, value in family_of_processor(processor).uncut.items():
        setattr(smallest.image_processor, name, value)
    white = Image.new("RGB", (BLANK_PX, BLANK_PX), "white")
    try:
        return encode_prompt(smallest, [{"role": "user", "content": [{"type": "image"}]}], [white])
    except Exception as error:  # whatever a template or a processor of another model makes of it
        message = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{type(processor).__name__} cannot put an image into a prompt ({message})",
            where=getattr(processor.tokenizer, "name_or_path", None) or None,
            fix="Are its chat template, tokenizer and settings from one checkpoint?",
        ) from error


def image_token_counts(processor: Any, sizes: np.ndarray) -> np.ndarray:
    """How many tokens images of these sizes take in a prompt, but for what a template puts around each, [N].

    By the method that every VLM's processor in transformers has for engines that plan their batches.

    Args:
        processor: of a family in FAMILIES, with its limits set.
        sizes: width and height, [N, 2].
    """
    if not len(sizes):
        return np.zeros(0, np.int64)
    found = processor._get_num_multimodal_tokens(
        image_sizes=[(int(height), int(width)) for width, height in sizes]
    )
    return np.array(found["num_image_tokens"], np.int64)


def placeholders(processor: Any) -> tuple[str, ...]:
    """The texts that stand for an image or a video, so that no user's text may hold them."""
    return tuple(getattr(processor, name) for name in family_of_processor(processor).placeholders)


@lru_cache(maxsize=64)
def turn_tokens(processor: Any) -> tuple[str, ...]:
    """The special tokens that the chat template builds a conversation of, and those that begin or end a text.

    A tokenizer reads them wherever they stand: typed in a user's text, they would end the turn. Special
    tokens that no template writes (boxes, regions) are the data's own, and texts may hold them.
    """
    text = {"type": "text", "text": PROBE}
    question = {"role": "user", "content": [{"type": "image"}, text]}
    whole = processor.apply_chat_template(
        [question, {"role": "assistant", "content": [text]}, question], add_generation_prompt=True
    )
    tokenizer = processor.tokenizer
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted({token for token in special if token in whole or token in ends}))


@lru_cache(maxsize=64)
def answer_form(processor: Any) -> AnswerForm:
    """What the chat template puts before an answer, and the token that it ends the turn with.

    Raises:
        ModelError: neither template nor tokenizer names such a token.
    """
    question = {"role": "user", "content": [{"type": "text", "text": PROBE}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": PROBE}]}
    prompt = processor.apply_chat_template([question], add_generation_prompt=True)
    whole = processor.apply_chat_template([question, reply])
    before, _, after = whole.rpartition(PROBE)
    # Some templates write a past answer otherwise than they ask for the next one: then the prompt decides.
    lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
    tokenizer = processor.tokenizer
    first = tokenizer(after, add_special_tokens=False)["input_ids"][:1]
    special = [token for token in first if _is_special(tokenizer, token)]
    end_id = special[0] if special else tokenizer.eos_token_id
    if end_id is None:
        raise ModelError(
            "neither its chat template nor its tokenizer ends a turn", fix="Set the tokenizer's eos_token"
        )
    return AnswerForm(lead=lead, end_id=end_id)


def join_vision(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The vision tensors of several samples, in their order; samples without images have none."""
    names = sorted({name for row in rows for name in row})
    return {name: _join([row[name] for row in rows if name in row]) for name in names}


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    joined = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *largest)
    start = 0
    for tensor in tensors:
        place = (slice(start, start + len(tensor)), *(slice(size) for size in tensor.shape[1:]))
        joined[place] = tensor
        start += len(tensor)
    return joined


def _is_special(tokenizer: Any, token: int) -> bool:
    added = tokenizer.added_tokens_decoder
    return token in added and added[token].special
