"""Greedy answers of a VLM to several samples at once, on one rank or on all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from genrecal.core.errors import DataError
from genrecal.core.types import Sample
from genrecal.data.inputs import Prompt, answer_form, blank_prompt, join_vision
from genrecal.data.pair import open_images, question_prompt
from genrecal.models.families import family_of
from genrecal.train.engine import device
from genrecal.train.settings import RelabelConfig


def greedy_answers(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    settings: RelabelConfig,
    *,
    together: bool,
    skips: bool = False,
) -> list[str]:
    """Greedy answers, padded on the left so that all begin in the same column; empty where one is not kept.

    With `together` all ranks run the same modules, as they need each other's weights: the vision encoder too,
    and they write on until the last one is done. With `skips`, a sample that cannot be read has no answer.
    """
    blank = blank_prompt(processor)
    found = [_prompt(sample, processor, skips=skips) for sample in samples]
    prompts = [prompt or blank for prompt in found]
    masks = [torch.ones_like(prompt.ids) for prompt in prompts]
    if together and not any(prompt.vision for prompt in prompts):
        place = min(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        masks[place] = torch.cat([torch.zeros_like(blank.ids), masks[place]])
        prompts[place] = _behind(blank, prompts[place])
    tokenizer = processor.tokenizer
    ids_BS = _left_padded([prompt.ids for prompt in prompts], tokenizer.pad_token_id)
    extras = {
        name: _left_padded([prompt.token_inputs[name] for prompt in prompts], 0)
        for name in family_of(model.config).token_inputs
    }
    vision = {
        name: value.to(device(), model.dtype) if value.is_floating_point() else value.to(device())
        for name, value in join_vision([prompt.vision for prompt in prompts]).items()
    }
    end_id = answer_form(processor).end_id
    with torch.no_grad():
        written_BN = model.generate(
            input_ids=ids_BS,
            attention_mask=_left_padded(masks, 0),
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=tokenizer.pad_token_id,
            synced_gpus=together and dist.get_world_size() > 1,
            **extras,
            **vision,
        )
    answers_BN = written_BN[:, ids_BS.shape[1] :]
    texts = tokenizer.batch_decode(answers_BN, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    kept_B = ((answers_BN == end_id).any(1) | settings.keep_unended).tolist()
    return [
        text.strip() if kept and prompt else ""
        for text, kept, prompt in zip(texts, kept_B, found, strict=True)
    ]


def _prompt(sample: Sample, processor: Any, *, skips: bool) -> Prompt | None:
    """What the teacher is asked; None where it cannot be read: the stage that meets it leaves it out, too."""
    try:
        return question_prompt(sample, processor, open_images(sample))
    except DataError:
        if not skips:
            raise
        return None


def _left_padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """rows_BS, each at the right end of its row."""
    longest = max(len(row) for row in rows)
    padded = [torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows]
    return torch.stack(padded).to(device())


def _behind(blank: Prompt, prompt: Prompt) -> Prompt:
    """A prompt of text alone behind a blank image, which no mask shows."""
    inputs = {
        name: torch.cat([blank.token_inputs[name], value]) for name, value in prompt.token_inputs.items()
    }
    return Prompt(ids=torch.cat([blank.ids, prompt.ids]), token_inputs=inputs, vision=blank.vision)
